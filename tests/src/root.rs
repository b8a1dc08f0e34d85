//! Roots for real servers: an overlay over the machine's own `/`, into which Debian packages are installed, or over
//! packages of another release that are unpacked together with their libraries.
//!
//! The machine's own package list and mail server are never touched, servers that conflict (Postfix, Exim) can run side
//! by side, and what a server writes is removed with it. An installed root is cached below `target/lab` until the
//! machine's own package list changes.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{Guard, Output};
use crate::netns::Namespace;
use crate::{Skip, command};

/// Time limit for downloading and unpacking one package with its dependencies.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A set of packages that share one root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packages {
    /// Postfix, and swaks (with IPv6 and TLS) as a client for any server.
    Postfix,
    /// Postfix 3.10, of Debian 13.
    PostfixTrixie,
    /// Exim.
    Exim,
    /// Prometheus with promtool, and Alertmanager.
    Prometheus,
    /// Knot, the authoritative name server, and tools that sign a zone.
    Knot,
    /// Unbound, the resolver, and DNS query tools.
    Unbound,
    /// PowerDNS Recursor, whose DNSSEC support can be switched off.
    Recursor,
    /// nginx, and curl as its client.
    Nginx,
    /// Programs that attach third-party XDP programs through libxdp's dispatcher.
    XdpTools,
}

impl Packages {
    const fn name(self) -> &'static str {
        match self {
            Self::Postfix => "postfix",
            Self::PostfixTrixie => "postfix-trixie",
            Self::Exim => "exim",
            Self::Prometheus => "prometheus",
            Self::Knot => "knot",
            Self::Unbound => "unbound",
            Self::Recursor => "recursor",
            Self::Nginx => "nginx",
            Self::XdpTools => "xdp-tools",
        }
    }

    const fn debian(self) -> &'static [&'static str] {
        match self {
            Self::Postfix => &["postfix", "swaks", "libio-socket-inet6-perl", "libnet-ssleay-perl"],
            Self::PostfixTrixie => &[
                "postfix",
                "base-files",
                "dash",
                "coreutils",
                "sed",
                "grep",
                "findutils",
                "mawk",
                "libc-bin",
                "perl-base",
            ],
            Self::Exim => &["exim4-daemon-light"],
            Self::Prometheus => &["prometheus", "prometheus-alertmanager"],
            Self::Knot => &["knot", "ldnsutils"],
            Self::Unbound => &["unbound", "bind9-dnsutils"],
            Self::Recursor => &["pdns-recursor"],
            Self::Nginx => &["nginx", "curl"],
            Self::XdpTools => &["xdp-tools"],
        }
    }

    /// The Debian release of the packages, if it differs from that of the machine. Its programs then have libraries of
    /// their own.
    const fn suite(self) -> Option<&'static str> {
        match self {
            Self::PostfixTrixie => Some("trixie"),
            Self::Postfix
            | Self::Exim
            | Self::Prometheus
            | Self::Knot
            | Self::Unbound
            | Self::Recursor
            | Self::Nginx
            | Self::XdpTools => None,
        }
    }
}

/// An installed root.
#[derive(Debug)]
pub struct Root {
    packages: Packages,
    lower: PathBuf,
    upper: PathBuf,
}

impl Root {
    /// Returns the root with `packages`; it is installed on first use.
    ///
    /// # Errors
    /// [`Skip`] with the reason when overlayfs, chroot or the packages cannot be had here.
    pub fn with(packages: Packages) -> Result<&'static Self> {
        static ROOTS: [OnceLock<Result<Root, String>>; 9] = [const { OnceLock::new() }; 9];
        ROOTS[packages as usize]
            .get_or_init(|| install(packages).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|reason| Skip(format!("no root with {}: {reason}", packages.debian().join(" "))).into())
    }

    /// Starts `program` of this root in `namespace`: over a fresh upper layer, as the first process of a process
    /// namespace that ends with it. `prepare` writes its files into the directory that the program sees as `/lab`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &self,
        namespace: &Namespace,
        program: &[&str],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Instance> {
        let (mut command, directory) = self.prepare(namespace, program, prepare)?;
        let log = File::create(directory.lab().join("output.log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Instance { child: Guard(child.context("cannot start unshare")?), directory })
    }

    /// Runs `program` of this root in `namespace` to its end, at most `limit`.
    ///
    /// # Errors
    /// When it cannot be started or does not end; its exit code is for the caller to judge.
    pub fn output(
        &self,
        namespace: &Namespace,
        program: &[&str],
        limit: Duration,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Output> {
        let (mut command, _directory) = self.prepare(namespace, program, prepare)?;
        command::output(&mut command, limit)
    }

    fn prepare(
        &self,
        namespace: &Namespace,
        program: &[&str],
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<(Command, Directory)> {
        let serial = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{serial}-{}", std::process::id(), self.packages.name());
        let directory = Directory::create(lab_directory().join("run").join(name), &["layers", "lab"])?;
        prepare(&directory.lab())?;
        let mut command = namespace.command("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", START, "sh"])
            .args([&self.lower, &self.upper, &directory.0])
            .args(program);
        Ok((command, directory))
    }
}

/// A running program of a root; dropping it kills the program and all processes that it started.
#[derive(Debug)]
pub struct Instance {
    child: Guard,
    directory: Directory,
}

impl Instance {
    /// The directory that the program sees as `/lab`.
    #[must_use]
    pub fn lab(&self) -> PathBuf {
        self.directory.lab()
    }

    /// The text of a file in [`Instance::lab`]; empty if the file does not exist.
    #[must_use]
    pub fn read(&self, file: &str) -> String {
        std::fs::read(self.lab().join(file))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether the program has ended.
    pub fn ended(&mut self) -> bool {
        let child: &mut Child = &mut self.child.0;
        !matches!(child.try_wait(), Ok(None))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The program is the first process of its namespace: when it is killed the kernel kills the rest. unshare,
        // which waits for it, ends after all of them, so ports and files are free then.
        let unshare = self.child.0.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap_or_default();
        for program in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // The program may have ended by itself.
            let _ = kill(Pid::from_raw(program), Signal::SIGKILL);
        }
        let _ = command::eventually(Duration::from_secs(5), "the end of a server", || Ok(self.child.0.try_wait()?));
    }
}

/// Directory of the lab's roots and runs: `target/lab` of the workspace.
#[must_use]
pub fn lab_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).join("target/lab")
}

/// The directory of one run, removed with its contents on drop.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Creates it with these subdirectories.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: PathBuf, parts: &[&str]) -> Result<Self> {
        for part in parts {
            std::fs::create_dir_all(path.join(part)).with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(Self(path))
    }

    /// Path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The subdirectory that a program sees as `/lab`.
    #[must_use]
    pub fn lab(&self) -> PathBuf {
        self.0.join("lab")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The directory is below target/, and the next run uses another name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `$1`, `$2`: layers of the installed root, `$3`: directory of this run, then the program. The layer is copied because
/// overlayfs does not accept `/` and a directory below it as two lower layers. The copy is in memory and needs no
/// cleanup after a kill. The shell stays the first process of the namespace: a server that changes its user id loses
/// its parent-death signal; the shell keeps it, and when it dies the kernel kills the rest.
const START: &str = r#"
set -eu
lower=$1 installed=$2 run=$3; shift 3
mount --make-rprivate /
mount -t tmpfs tmpfs "$run/layers"
mkdir "$run/layers/work" "$run/layers/root"
cp -a "$installed" "$run/layers/upper"
root=$run/layers/root
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$run/layers/upper,workdir=$run/layers/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$root/lab"
mount --bind "$run/lab" "$root/lab"
chroot "$root" "$@"
exit $?
"#;

/// `$1`: directory of the root, then the packages. Recommended packages, documentation and manual pages are left out.
/// Exit code 101 of policy-rc.d keeps packages from starting services.
const INSTALL: &str = r#"
set -eu
root=$1; shift
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/root"
mount -t proc proc "$root/root/proc"
mount --rbind /sys "$root/root/sys"
mount --rbind /dev "$root/root/dev"
printf '#!/bin/sh\nexit 101\n' > "$root/root/usr/sbin/policy-rc.d"
chmod 755 "$root/root/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
install() {
  chroot "$root/root" apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--path-exclude=/usr/share/doc/* \
    -o Dpkg::Options::=--path-exclude=/usr/share/man/* -o Dpkg::Options::=--path-exclude=/usr/share/javascript/* "$@"
}
install "$@" || { chroot "$root/root" apt-get update -q; install "$@"; }
chroot "$root/root" apt-get clean
"#;

/// `$1`: directory of the root, `$2`: Debian release, then the packages. They are unpacked together with their
/// libraries, without running the maintainer scripts, which need a whole system. apt has its own lists and cache and an
/// empty list of installed packages; the archive is the one that this machine's own packages come from.
const UNPACK: &str = r#"
set -eu
home=$1 suite=$2; shift 2
mkdir -p "$home/apt/lists/partial" "$home/apt/archives/partial"
: > "$home/apt/status"
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -m 1 '/debian/*$')
cat > "$home/apt/sources" <<END
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main
END
cat > "$home/apt/conf" <<END
Dir::Etc::SourceList "$home/apt/sources";
Dir::Etc::SourceParts "-";
Dir::State "$home/apt";
Dir::State::Lists "$home/apt/lists";
Dir::State::Status "$home/apt/status";
Dir::Cache "$home/apt";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
END
export APT_CONFIG="$home/apt/conf"
apt-get update -q
apt-get install -y -q --download-only --no-install-recommends "$@"
# The links of /bin, /lib and /sbin come first.
for package in "$home"/apt/archives/base-files_*.deb "$home"/apt/archives/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$home/root" --keep-directory-symlink \
    --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale
done
rm -rf "$home/apt"
for file in passwd group; do cp "$home/root/usr/share/base-passwd/$file.master" "$home/root/etc/$file"; done
"#;

/// Does what the maintainer scripts of the package postfix would do.
const SET_UP_POSTFIX: &str = r#"
root=$home/root
echo 'postfix:x:990:990::/var/spool/postfix:/usr/sbin/nologin' >> "$root/etc/passwd"
printf 'postfix:x:990:\npostdrop:x:991:\n' >> "$root/etc/group"
chown 990:990 "$root/var/lib/postfix"
: > "$root/etc/postfix/dynamicmaps.cf"
cp "$root/etc/postfix/main.cf.proto" "$root/etc/postfix/main.cf"
cp "$root/etc/postfix/master.cf.proto" "$root/etc/postfix/master.cf"
"#;

fn install(packages: Packages) -> Result<Root> {
    let debian = packages.debian().join(" ");
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "overlayfs and chroot need root");
    let home = lab_directory().join("roots");
    std::fs::create_dir_all(&home)?;
    let lock = File::create(home.join(format!("{}.lock", packages.name())))?;
    // Another test process may be installing it: the second one waits and finds it installed.
    lock.lock()?;
    let path = home.join(packages.name());
    let (upper, stamp) = (path.join("upper"), path.join("stamp"));
    let lower = packages.suite().map_or_else(|| PathBuf::from("/"), |_| path.join("root"));
    let wanted = stamp_text(packages, &debian)?;
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(Root { packages, lower, upper });
    }
    eprintln!("lab: installing Debian packages {debian} into {} (not into this machine)", path.display());
    if path.exists() {
        std::fs::remove_dir_all(&path)?;
    }
    let directory = std::mem::ManuallyDrop::new(Directory::create(path, &["upper", "work", "root"])?);
    let mut command = match packages.suite() {
        None => {
            let mut command = command::mortal("unshare");
            command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSTALL, "sh"]).arg(&directory.0);
            command
        }
        Some(suite) => {
            let mut command = command::mortal("sh");
            command.args(["-c", &[UNPACK, SET_UP_POSTFIX].concat(), "sh"]).arg(&directory.0).arg(suite);
            command
        }
    };
    let out = command::output(command.args(packages.debian()), INSTALL_LIMIT)?;
    let lines: Vec<_> = out.stderr.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join(" | ");
    anyhow::ensure!(out.status.success(), "apt-get install {debian} in an overlay root: {}: {tail}", out.status);
    std::fs::write(stamp, wanted)?;
    Ok(Root { packages, lower, upper })
}

/// Removes the directories of runs whose process is gone: a killed run cannot clean up.
pub(crate) fn sweep() {
    let Ok(entries) = std::fs::read_dir(lab_directory().join("run")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another run may remove the same directory.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Key of a cached layer: the package list that it was laid over and the recipe. A root with libraries of its own
/// depends on the recipe alone.
fn stamp_text(packages: Packages, debian: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    if packages.suite().is_some() {
        (UNPACK, SET_UP_POSTFIX).hash(&mut hasher);
    } else {
        let status = std::fs::read("/var/lib/dpkg/status");
        let status = status.context("this machine is no Debian: no /var/lib/dpkg/status")?;
        (status, INSTALL).hash(&mut hasher);
    }
    Ok(format!("{debian}\n{:016x}\n", hasher.finish()))
}
