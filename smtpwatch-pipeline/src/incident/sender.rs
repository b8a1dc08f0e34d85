//! The sending program on this host: resolves the cgroup of its socket to a systemd unit, a Kubernetes pod, or a
//! container. The main type is [`SenderCache`].

use hashlink::LruCache;
use smtpwatch_core::{Timestamp, finding::Sender};

use super::cgroup::Cgroups;

/// Maximum number of cached cgroups; the least recently used one is evicted.
const MAX_CGROUPS: usize = 4_096;
/// Length of a container id in characters: SHA-256 or random, in hexadecimal.
const CONTAINER_ID: usize = 64;
/// Prefixes of the id in the name of a container's scope. `crio-conmon-` and `libpod-conmon-` are left out: they are
/// monitors of a container.
const RUNTIMES: [&str; 5] = ["cri-containerd-", "crio-", "docker-", "libpod-", "nerdctl-"];

/// Cache of cgroups by id. A cgroup stays in the cache after it is gone, because short-lived processes are the
/// interesting ones. Cached entries stay valid: the kernel never reuses an id and never renames a cgroup (v2)
/// (fs/kernfs/dir.c, `kernfs_new_node`; kernel/cgroup/cgroup.c has no `rename`).
pub struct SenderCache {
    /// `None` if this host has no cgroups.
    cgroups: Option<Cgroups>,
    cache: LruCache<u64, CgroupNames>,
}

/// The names in the path of a cgroup.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct CgroupNames {
    cgroup: String,
    unit: Option<String>,
    pod: Option<String>,
    container: Option<String>,
}

impl SenderCache {
    /// Creates the cache for this host.
    #[must_use]
    pub fn new() -> Self {
        Self { cgroups: Cgroups::open(), cache: LruCache::new(MAX_CGROUPS) }
    }

    /// Looks up the cgroup of a connection at its start, while the cgroup exists.
    pub fn prefetch(&mut self, cgroup: u64, at: Timestamp) {
        let _ = self.lookup(cgroup, at);
    }

    /// Fills in the names from the cgroup id; leaves them empty if the cgroup is gone and not cached.
    pub fn enrich(&mut self, sender: &mut Sender, at: Timestamp) {
        let Some(names) = self.lookup(sender.cgroup_id, at) else { return };
        let CgroupNames { cgroup, unit, pod, container } = names.clone();
        *sender = Sender { cgroup, unit, pod, container, uid: sender.uid, cgroup_id: sender.cgroup_id };
    }

    fn lookup(&mut self, id: u64, at: Timestamp) -> Option<&CgroupNames> {
        // Zero: the kernel did not report it.
        if id == 0 {
            return None;
        }
        if !self.cache.contains_key(&id) {
            let path = self.cgroups.as_mut()?.path(id, at)?;
            self.cache.insert(id, CgroupNames::of(path));
        }
        let names: &CgroupNames = self.cache.get(&id)?;
        Some(names)
    }
}

impl Default for SenderCache {
    fn default() -> Self {
        Self::new()
    }
}

impl CgroupNames {
    /// The names of the innermost unit, pod and container in a path.
    fn of(cgroup: String) -> Self {
        let names = || cgroup.split('/').rev().map(plain);
        // containerd that uses a systemd driver's name as its own path: `<slice>:cri-containerd:<id>`.
        let parts = || names().flat_map(|name| name.rsplit(':'));
        // Processes are in a service or a scope; a slice is only a group of these.
        let unit = names().find(|name| is_unit(name, &[".service", ".scope"]));
        let unit = unit.or_else(|| names().find(|name| is_unit(name, &[".slice"]))).map(unescape);
        let (pod, container) = (parts().find_map(pod), parts().find_map(container).map(str::to_owned));
        Self { unit, pod, container, cgroup }
    }
}

/// systemd prefixes `_` to a name that could be a kernel file (`cg_escape`).
fn plain(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

fn is_unit(name: &str, types: &[&str]) -> bool {
    types.iter().any(|kind| name.strip_suffix(kind).is_some_and(|name| !name.is_empty()))
}

/// `\x2d` of systemd.unit(5) becomes `-`. An escape that is not UTF-8 stays unchanged.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = rest.strip_prefix(b"\\x").and_then(|rest| rest.get(..2)).and_then(|digits| {
            let digits = str::from_utf8(digits).ok().filter(|digits| is_hex(digits))?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { rest.get(4..).unwrap_or_default() } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| name.to_owned())
}

/// The UID of a pod: `pod<uid>` (cgroupfs driver), `…-pod<uid with _>.slice` (systemd driver). For a static pod the
/// UID is a hash.
fn pod(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let groups: Vec<_> = uid.split('-').map(str::len).collect();
    let shaped = matches!(groups.as_slice(), [32] | [8, 4, 4, 4, 12]);
    (shaped && uid.split('-').all(is_hex)).then_some(uid)
}

/// The id of a container: `<runtime>-<id>.scope` (systemd driver) or bare (cgroupfs driver).
fn container(name: &str) -> Option<&str> {
    let id = match name.strip_suffix(".scope") {
        Some(scope) => RUNTIMES.iter().find_map(|runtime| scope.strip_prefix(runtime))?,
        None => name,
    };
    (id.len() == CONTAINER_ID && is_hex(id)).then_some(id)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3b1b9a1d0f4c6e8a7b5d2c9e1f0a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c";
    const UID: &str = "0a1b2c3d-4e5f-6789-abcd-ef0123456789";

    #[test]
    fn paths_tell_unit_pod_and_container() {
        let (under, hash) = (UID.replace('-', "_"), UID.replace('-', ""));
        let kube = "/kubepods.slice/kubepods-burstable.slice";
        let table = [
            // systemd
            ("/".to_owned(), "", "", ""),
            ("/init.scope".to_owned(), "init.scope", "", ""),
            ("/system.slice/php8.2-fpm.service".to_owned(), "php8.2-fpm.service", "", ""),
            ("/system.slice/system-postfix.slice/postfix@-.service".to_owned(), "postfix@-.service", "", ""),
            (r"/system.slice/mail\x2drelay.service".to_owned(), "mail-relay.service", "", ""),
            ("/system.slice/_cpu.service".to_owned(), "cpu.service", "", ""),
            ("/system.slice/haproxy.service/workers".to_owned(), "haproxy.service", "", ""),
            ("/user.slice/user-1000.slice/session-3.scope".to_owned(), "session-3.scope", "", ""),
            (
                r"/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.mozilla\x2dmail.scope".to_owned(),
                "app-org.mozilla-mail.scope",
                "",
                "",
            ),
            ("/machine.slice/systemd-nspawn@web.service/payload".to_owned(), "systemd-nspawn@web.service", "", ""),
            ("/user.slice/user-1000.slice".to_owned(), "user-1000.slice", "", ""),
            ("/lxc.payload.web/postfix".to_owned(), "", "", ""),
            // Containers
            (format!("/system.slice/docker-{ID}.scope"), "docker-{ID}.scope", "", ID),
            (format!("/docker/{ID}"), "", "", ID),
            (format!("/system.slice/docker-{ID}.scope/system.slice/postfix.service"), "postfix.service", "", ID),
            (format!("/machine.slice/libpod-{ID}.scope/container"), "libpod-{ID}.scope", "", ID),
            (format!("/machine.slice/libpod-conmon-{ID}.scope"), "libpod-conmon-{ID}.scope", "", ""),
            (format!("/machine.slice/machine-libpod_pod_{ID}.slice"), "machine-libpod_pod_{ID}.slice", "", ""),
            (format!("/ecs/6f1d0e3f/{ID}"), "", "", ID),
            // Kubernetes
            (format!("/kubepods/burstable/pod{UID}/{ID}"), "", UID, ID),
            (format!("/kubepods/pod{hash}/{ID}"), "", &hash, ID),
            (
                format!("{kube}/kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope"),
                "cri-containerd-{ID}.scope",
                UID,
                ID,
            ),
            (format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope"), "crio-{ID}.scope", UID, ID),
            (
                format!("/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:{ID}"),
                "containerd.service",
                UID,
                ID,
            ),
            (
                format!(
                    "/docker/{}/kubelet.slice/kubelet-kubepods-pod{under}.slice/cri-containerd-{ID}.scope",
                    "0".repeat(64)
                ),
                "cri-containerd-{ID}.scope",
                UID,
                ID,
            ),
        ];
        for (path, unit, pod, container) in table {
            let some = |text: &str| Some(text.replace("{ID}", ID)).filter(|text| !text.is_empty());
            let (unit, pod, container) = (some(unit), some(pod), some(container));
            assert_eq!(CgroupNames::of(path.clone()), CgroupNames { cgroup: path, unit, pod, container });
        }
    }

    #[test]
    fn what_is_almost_a_name_is_none() {
        for path in
            ["/.service", "//", "/podcast", "/pod12", "/x-podcast.slice:", "/docker/abc", "/docker-xyz.scope/é:"]
        {
            let names = CgroupNames::of(path.to_owned());
            assert_eq!((names.pod, names.container), (None, None), "{path}");
        }
        assert_eq!(CgroupNames::of("/.service".to_owned()).unit, None);
        for (name, plain) in
            [(r"a\x2", r"a\x2"), (r"a\x+1", r"a\x+1"), (r"a\xff", r"a\xff"), (r"\x41é", "Aé"), (r"a\x", r"a\x")]
        {
            assert_eq!(unescape(name), plain);
        }
    }

    #[test]
    fn one_that_was_met_stays_known() {
        let mut sender_cache = SenderCache { cgroups: None, cache: LruCache::new(MAX_CGROUPS) };
        sender_cache.cache.insert(7, CgroupNames::of("/system.slice/cron.service".to_owned()));
        let mut sender = Sender { uid: Some(33), cgroup_id: 7, ..Sender::default() };
        sender_cache.enrich(&mut sender, Timestamp::default());
        assert_eq!((sender.unit.as_deref(), sender.uid), (Some("cron.service"), Some(33)));
        for cgroup_id in [0, 8] {
            let mut unknown = Sender { cgroup_id, ..Sender::default() };
            sender_cache.enrich(&mut unknown, Timestamp::default());
            assert_eq!(unknown, Sender { cgroup_id, ..Sender::default() });
        }
    }
}
