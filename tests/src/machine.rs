//! A machine as an operator has it: a clean Debian root that boots systemd, on a network of the lab.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{Guard, Output};
use crate::netns::Namespace;
use crate::root::{Directory, lab_directory};
use crate::{Skip, command};

/// Time limit for downloading and unpacking the root.
const INSTALL_LIMIT: Duration = Duration::from_secs(400);
const BOOT: Duration = Duration::from_secs(240);
/// Time limit for one command in the machine.
const COMMAND: Duration = Duration::from_secs(240);

/// A running machine; dropping it kills everything in it.
#[derive(Debug)]
pub struct Machine {
    child: Guard,
    init: u32,
    cgroup: PathBuf,
    directory: Directory,
}

impl Machine {
    /// Boots a machine on the network of `namespace`.
    ///
    /// # Errors
    /// [`Skip`] with the reason when there is no root, or no usable cgroup v2 hierarchy; otherwise the error of the
    /// boot.
    pub fn boot(namespace: &Namespace) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let root = root()?;
        let name = format!("machine-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroups()?.join(format!("smtpwatch-{name}"));
        std::fs::create_dir(&cgroup).map_err(|error| Skip(format!("no cgroup for a machine: {error}")))?;
        let directory = Directory::create(lab_directory().join("run").join(name), &["layers", "lab"])?;
        let log = std::fs::File::create(directory.lab().join("boot.log"))?;
        let mut shell = namespace.command_with_cgroups("sh");
        shell.args(["-c", BOOT_SCRIPT, "sh"]).arg(root).arg(directory.path()).arg(&cgroup);
        let child = Guard(shell.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        let mut machine = Self { child, init: 0, cgroup, directory };
        machine.wait()?;
        Ok(machine)
    }

    /// Waits until systemd has started its services.
    fn wait(&mut self) -> Result<()> {
        let unshare = self.child.0.id();
        let first = command::eventually(BOOT, "the first process of a machine", || {
            let child: &mut Child = &mut self.child.0;
            ensure!(matches!(child.try_wait(), Ok(None)), "it ended");
            let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
            let first = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            let named =
                |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n");
            Ok(first.filter(named))
        });
        // Failures up to this point depend on the host: mounts, namespaces, cgroups.
        self.init = first
            .map_err(|error| Skip(format!("no machine can be booted here: {error:#}: {}", self.read("boot.log"))))?;
        command::eventually(BOOT, "the services of a machine", || {
            let out = self.output(&["systemctl", "is-system-running"])?;
            Ok(matches!(out.stdout.trim(), "running" | "degraded").then_some(()))
        })
        .with_context(|| self.read("boot.log"))
    }

    /// Runs a program in the machine to its end; the caller checks the exit code.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn output(&self, program: &[&str]) -> Result<Output> {
        let mut enter = command::mortal("nsenter");
        enter.args(["--target", &self.init.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        enter.args([
            "--root",
            "--wd=/",
            "--",
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND=noninteractive",
        ]);
        command::output(enter.args(program), COMMAND)
    }

    /// Runs a program in the machine and returns its output.
    ///
    /// # Errors
    /// When it fails: the error carries its output.
    pub fn run(&self, program: &[&str]) -> Result<String> {
        let out = self.output(program)?;
        ensure!(out.status.success(), "{program:?} ended with {}: {}{}", out.status, out.stdout, out.stderr);
        Ok(out.stdout)
    }

    /// The directory that the machine sees as `/lab`.
    #[must_use]
    pub fn lab(&self) -> PathBuf {
        self.directory.lab()
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.lab().join(file)).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // When the first process of the process namespace is killed, the kernel kills the rest; its cgroups are then
        // empty.
        if self.init != 0
            && let Ok(init) = i32::try_from(self.init)
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = command::eventually(Duration::from_secs(5), "the end of a machine", || Ok(self.child.0.try_wait()?));
        let _ = command::eventually(Duration::from_secs(5), "empty cgroups", || Ok(remove(&self.cgroup).ok()));
    }
}

/// Removes a cgroup and its descendants.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cgroup)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup)
}

/// Mount point of cgroup2.
fn cgroups() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount =
        fields.find(|fields| fields.get(2) == Some(&"cgroup2")).and_then(|fields| fields.get(1).map(PathBuf::from));
    Ok(mount.ok_or_else(|| Skip("cgroup2 is not mounted here".to_owned()))?)
}

/// The Debian root that machines boot from.
fn root() -> Result<&'static Path> {
    static ROOT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = ROOT.get_or_init(|| {
        let home = lab_directory().join("debian");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian-root.sh");
        let made = command::run(Command::new(script).arg(&home), INSTALL_LIMIT);
        made.map(|_| home.join("root")).map_err(|error| format!("{error:#}"))
    });
    Ok(made.as_deref().map_err(|reason| Skip(format!("no clean Debian root: {reason}")))?)
}

/// `$1`: the root, `$2`: directory of this run, `$3`: its cgroup. What the machine writes stays in memory. It pivots
/// away from the host's root, as a container does.
const BOOT_SCRIPT: &str = r#"
set -eu
echo $$ > "$3/cgroup.procs"
exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child sh -euc '
root=$2/layers/root
mount --make-rprivate /
mount -t tmpfs tmpfs "$2/layers"
mkdir "$2/layers/upper" "$2/layers/work" "$root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/layers/upper,workdir=$2/layers/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
mkdir "$root/dev/shm" "$root/dev/pts" "$root/lab"
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
mount --bind "$2/lab" "$root/lab"
hostname gateway
cd "$root"
pivot_root . mnt
exec chroot . sh -c "umount -l /mnt && exec env -i container=lab /lib/systemd/systemd --system --log-target=console --show-status=no"
' sh "$@"
"#;
