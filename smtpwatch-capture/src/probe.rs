//! `smtpwatch probe`: tests what this kernel and host support by trying it. Nothing stays attached.

use std::{collections::BTreeSet, io};

use smtpwatch_common::{Direction, Link};
use smtpwatch_config::{Config, Ingress};

use super::{
    CaptureError, CaptureSettings, Located,
    attach::{AUTO, Attachments, Hook},
    connections, interfaces, listeners,
    object::{self, LoadSettings, Loaded},
};

/// Result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Passed.
    Pass,
    /// Works with a restriction.
    Warn,
    /// smtpwatch cannot run in this environment.
    Fail,
}

/// One check and its result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Result.
    pub status: Status,
    /// Details of the result.
    pub detail: String,
    /// Remedy; empty if none is needed.
    pub remedy: String,
}

/// Runs all checks; hooks are tried only on the named interface. `config` is the daemon's configuration, and
/// `confinement` is the result of the privilege check.
#[must_use]
pub fn run(interface: Option<&str>, config: &Config, confinement: Check) -> Vec<Check> {
    let mut checks = vec![kernel(), capabilities(), confinement, btf(), listeners_elsewhere(&config.ports)];
    checks.push(connections_elsewhere(&CaptureSettings::from(config)));
    let settings = LoadSettings { ring: 256 * 1024, flows: 1024, orders: 1024, ..LoadSettings::default() };
    match object::load(&settings) {
        Ok(mut loaded) => {
            checks.push(pass("programs", "maps, ring buffer and TC programs load".to_owned()));
            checks.extend(optional(&loaded));
            match interface {
                Some(name) => checks.extend(hooks(&mut loaded, name)),
                None => checks.extend(default_interfaces()),
            }
        }
        Err(error) => checks.push(Check {
            name: "programs".to_owned(),
            status: Status::Fail,
            // The error text itself names the missing permission.
            remedy: if error.is_permission() { String::new() } else { LOAD_REMEDY.to_owned() },
            detail: error.to_string(),
        }),
    }
    checks
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    pass("kernel", format!("Linux {}; features are tried, not derived from the version", release.trim()))
}

fn capabilities() -> Check {
    let missing: Vec<String> = super::capabilities::missing().iter().map(ToString::to_string).collect();
    if missing.is_empty() {
        return pass("capabilities", "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned());
    }
    Check {
        name: "capabilities".to_owned(),
        status: Status::Fail,
        detail: format!("{} missing", missing.join(", ")),
        remedy: "run it as root, or grant them: AmbientCapabilities= in the unit".to_owned(),
    }
}

fn btf() -> Check {
    if std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        return pass("btf", "the kernel has type information; the programs do not need it".to_owned());
    }
    pass("btf", "the kernel has no type information; the programs do not need it".to_owned())
}

fn listeners_elsewhere(ports: &[u16]) -> Check {
    let found = listeners::unwatched(ports);
    if found.is_empty() {
        return pass("listeners", "no mail server listens on a port that is not watched".to_owned());
    }
    let found: Vec<_> = found.iter().map(listeners::Unwatched::describe).collect();
    warn("listeners", found.join("; "), listeners::REMEDY.to_owned())
}

/// Checks whether open connections of watched ports use interfaces that the daemon would not watch.
fn connections_elsewhere(settings: &CaptureSettings) -> Check {
    let look = || -> io::Result<Vec<String>> {
        let (selected, _) = super::select_interfaces(settings, &super::taken(settings)?).map_err(io::Error::other)?;
        let watched = selected.iter().map(|interface| interface.index).collect();
        let located = Located::read(settings)?;
        Ok(located.unseen(&watched).map(|(interface, carried)| carried.describe(&interface.name)).collect())
    };
    match look() {
        Ok(found) if found.is_empty() => {
            pass("connections", "no open connection of a watched port uses an unwatched interface".to_owned())
        }
        Ok(found) => warn(
            "connections",
            format!("{}, which would not be watched", found.join("; ")),
            connections::NOT_AMONG_INTERFACES.to_owned(),
        ),
        Err(error) => warn("connections", error.to_string(), connections::REMEDY.to_owned()),
    }
}

fn optional(loaded: &Loaded) -> Vec<Check> {
    let xdp = match &loaded.no_xdp {
        None => {
            pass("xdp", "the XDP program loads; it is used only with ingress = \"xdp\" or \"xdp-generic\"".to_owned())
        }
        Some(why) => warn(
            "xdp",
            format!("the XDP program does not load: {why}"),
            "ingress = \"auto\", \"tcx\" and \"clsact\" do not need XDP".to_owned(),
        ),
    };
    let attribution = match &loaded.no_attribution {
        None => pass("attribution", "user and cgroup of senders are available".to_owned()),
        Some(why) => warn("attribution", why.clone(), "findings do not name the sender's user and cgroup".to_owned()),
    };
    vec![xdp, attribution]
}

fn default_interfaces() -> Vec<Check> {
    let check = match interfaces::outward(&BTreeSet::new()) {
        Ok((found, _)) if found.is_empty() => Check {
            name: "interfaces".to_owned(),
            status: Status::Fail,
            detail: "no interface carries a default route".to_owned(),
            remedy: "name one with --interface, or in the configuration".to_owned(),
        },
        Ok((found, _)) => {
            let names: Vec<&str> = found.iter().map(|interface| interface.name.as_str()).collect();
            pass(
                "interfaces",
                format!("routes lead out of this host by {}; --interface tries the hooks of one", names.join(", ")),
            )
        }
        Err(error) => warn("interfaces", error.to_string(), String::new()),
    };
    vec![check]
}

/// Tries each ingress hook and the egress hook separately.
fn hooks(loaded: &mut Loaded, name: &str) -> Vec<Check> {
    let found = interfaces::matching(&[name.to_owned()]).unwrap_or_default();
    let Some(interface) = found.into_iter().find(|interface| interface.name == name) else {
        return vec![Check {
            name: "interface".to_owned(),
            status: Status::Fail,
            detail: CaptureError::NoInterface(name.to_owned()).to_string(),
            remedy: String::new(),
        }];
    };
    if interface.link.is_none() {
        return vec![Check {
            name: "interface".to_owned(),
            status: Status::Fail,
            detail: format!("{name} has a link layer that is not understood"),
            remedy: "watch the interface below or above it".to_owned(),
        }];
    }
    let mut checks = Vec::new();
    if let Some(why) = interface.hides_arrivals() {
        checks.push(warn(
            &format!("{name} tunnel"),
            why,
            "watch the interface below the tunnel if mail is in cleartext there, or use a later kernel".to_owned(),
        ));
    }
    let auto = format!("{name} ingress auto");
    for (label, ingress) in [("xdp", Ingress::Xdp), ("tcx", Ingress::Tcx), ("clsact", Ingress::Clsact)] {
        if ingress == Ingress::Xdp && interface.link == Some(Link::Ip) {
            continue;
        }
        // Each trial releases the interface before the next one, because Attachments hold its lock.
        let mut attachments = Attachments::default();
        let tried = attachments.attach(&mut loaded.object, &interface, ingress, loaded.no_xdp.as_deref());
        if let Err(CaptureError::Watched { holder, .. }) = &tried {
            // A trial beside an existing attachment could remove that attachment.
            return vec![pass(
                &format!("{name} ingress"),
                format!("watched by {holder}: no hooks are tried; its /-/ready and log list its hooks"),
            )];
        }
        let hook = |direction| {
            attachments
                .iter()
                .find(|attachment| attachment.direction == direction)
                .and_then(|attachment| attachment.hook)
        };
        if let (Some(hook @ (Hook::Tcx | Hook::Clsact)), false) =
            (hook(Direction::Ingress), checks.iter().any(|check| check.name == auto))
        {
            checks.push(pass(&auto, format!("takes {}: {AUTO}", hook.as_str())));
        }
        checks.push(match (hook(Direction::Ingress), tried) {
            (Some(hook), _) => {
                pass(&format!("{name} ingress {label}"), format!("{} attached and detached", hook.as_str()))
            }
            // The error text includes its remedy.
            (None, Err(error)) => warn(&format!("{name} ingress {label}"), error.to_string(), String::new()),
            (None, Ok(())) => warn(&format!("{name} ingress {label}"), "not attached".to_owned(), String::new()),
        });
        if ingress == Ingress::Tcx {
            checks.push(match hook(Direction::Egress) {
                Some(hook @ (Hook::Tcx | Hook::Clsact)) => {
                    pass(&format!("{name} egress"), format!("{} attached and detached", hook.as_str()))
                }
                Some(Hook::Xdp | Hook::XdpGeneric) | None => Check {
                    name: format!("{name} egress"),
                    status: Status::Fail,
                    detail: "neither TCX nor clsact can be attached".to_owned(),
                    remedy: "`tc qdisc show` lists the qdiscs; the kernel needs CONFIG_NET_CLS_ACT".to_owned(),
                },
            });
        }
    }
    checks
}

const LOAD_REMEDY: &str = "the kernel needs CONFIG_BPF_SYSCALL and must be 5.10 or later";

/// A check that passed.
#[must_use]
pub fn pass(name: &str, detail: String) -> Check {
    Check { name: name.to_owned(), status: Status::Pass, detail, remedy: String::new() }
}

/// A check that passed with a restriction.
#[must_use]
pub fn warn(name: &str, detail: String, remedy: String) -> Check {
    Check { name: name.to_owned(), status: Status::Warn, detail, remedy }
}
