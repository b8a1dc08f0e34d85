//! Runs the pod as the kubelet would: a podman container with exactly the settings of the manifest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::command::{Guard, Output};
use crate::netns::Namespace;
use crate::prometheus::deploy;
use crate::{Skip, command, daemon};

const BUILD: Duration = Duration::from_secs(600);
const READY: Duration = Duration::from_secs(90);

/// Command line of the program that generates manifests (`write`) or checks that they are up to date and valid
/// (`check`).
#[must_use]
pub fn manifests(task: &str) -> Vec<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/manifests.py");
    vec![script, deploy(), task.into()]
}

/// A running container of the pod template.
#[derive(Debug)]
pub struct Pod<'a> {
    namespace: &'a Namespace,
    child: Guard,
    name: String,
    home: PathBuf,
}

impl<'a> Pod<'a> {
    /// Runs the container of the DaemonSet in the network of `namespace`, as a pod on the host network. Directories of
    /// `home` serve as volumes: `config` holds smtpwatch.toml, `state` the persistent state.
    ///
    /// # Errors
    /// [`Skip`] when images cannot be built here; otherwise the error with its log.
    pub fn start(namespace: &'a Namespace, daemonset: &Value, home: &Path) -> Result<Self> {
        let image = image()?;
        let pod = &daemonset["spec"]["template"]["spec"];
        ensure!(pod["hostNetwork"] == true, "a pod with a network of its own sees none of the host's");
        let container = &pod["containers"][0];
        let name = format!("smtpwatch-lab-{}", std::process::id());
        let mut run = podman(namespace);
        run.args(["run", "--rm", "--name", &name, "--network", "host", "--pull", "never", "--log-driver", "none"]);
        run.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        run.args(security(&container["securityContext"], home)?);
        for mount in container["volumeMounts"].as_array().context("volumeMounts")? {
            run.args(["--volume", &volume(pod, mount, home)?]);
        }
        run.arg(image);
        run.args(strings(&container["args"])?);
        let (out, log) = (std::fs::File::create(home.join("findings"))?, std::fs::File::create(home.join("log"))?);
        let child = Guard(run.stdin(Stdio::null()).stdout(out).stderr(log).spawn().context("cannot start podman")?);
        let mut pod = Self { namespace, child, name, home: home.to_owned() };
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            pod.probe(&container[probe]["httpGet"]).map_err(|error| anyhow!("{probe}: {error:#}; {}", pod.log()))?;
        }
        Ok(pod)
    }

    /// Sends a probe as the kubelet does, from the host's network.
    fn probe(&mut self, get: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
        let (host, path) = (text(&get["host"])?, text(&get["path"])?);
        let port = u16::try_from(get["port"].as_u64().context("a port")?)?;
        let address = (host.parse::<std::net::IpAddr>()?, port).into();
        command::eventually(READY, &path, || {
            ensure!(self.child.0.try_wait()?.is_none(), "the container ended");
            Ok(self.namespace.run(|| daemon::get(address, &path))?.ok().filter(|(status, _)| *status == 200).map(drop))
        })
    }

    /// The container's log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// Findings so far.
    #[must_use]
    pub fn findings(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.home.join("findings")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The process id of the program, in the machine's process namespace.
    ///
    /// # Errors
    /// When the container is not running.
    pub fn pid(&self) -> Result<u32> {
        let shown =
            command::run(podman(self.namespace).args(["inspect", "--format", "{{.State.Pid}}", &self.name]), READY)?;
        Ok(shown.trim().parse()?)
    }

    /// Ends the container with SIGTERM as the kubelet does; returns whether its exit code was 0.
    ///
    /// # Errors
    /// When it does not end.
    pub fn terminate(&mut self) -> Result<bool> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()?)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = command::eventually(Duration::from_secs(10), "the end of the container", || {
            Ok(self.child.0.try_wait()?)
        })?;
        Ok(ended.success())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if matches!(self.child.0.try_wait(), Ok(None)) {
            let _ = command::output(podman(self.namespace).args(["rm", "--force", "--time", "1", &self.name]), READY);
        }
    }
}

/// The default seccomp profile of podman.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// That profile plus a rule of containerd and Docker: a process with CAP_BPF may call `bpf(2)`. Debian's podman allows
/// it for CAP_SYS_ADMIN only.
fn runtime_default(home: &Path) -> Result<PathBuf> {
    let mut profile: Value = serde_json::from_slice(&std::fs::read(PROFILE).with_context(|| PROFILE)?)?;
    let rules = profile["syscalls"].as_array_mut().context("syscalls")?;
    for names in rules.iter_mut().filter_map(|rule| rule["names"].as_array_mut()) {
        names.retain(|name| name != "bpf");
    }
    rules.push(json!({"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {"caps": ["CAP_BPF"]}, "excludes": {}}));
    let path = home.join("seccomp.json");
    std::fs::write(&path, profile.to_string())?;
    Ok(path)
}

/// Translates a Kubernetes security context into podman flags.
fn security(context: &Value, home: &Path) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    ensure!(context["seccompProfile"]["type"] == "RuntimeDefault", "another filter of system calls");
    flags.push(format!("--security-opt=seccomp={}", runtime_default(home)?.display()));
    for (value, flag) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
        flags.extend(strings(&context["capabilities"][value])?.into_iter().map(|name| format!("{flag}={name}")));
    }
    ensure!(context["privileged"] == false, "a privileged container");
    if context["readOnlyRootFilesystem"] == true {
        // The kubelet adds no tmpfs to a read-only root either.
        flags.extend(["--read-only".to_owned(), "--read-only-tmpfs=false".to_owned()]);
    }
    if context["allowPrivilegeEscalation"] == false {
        flags.push("--security-opt=no-new-privileges".to_owned());
    }
    flags.push(format!("--user={}", context["runAsUser"]));
    Ok(flags)
}

/// A mount whose volume is below `home`. Host directories that are mounted read-only are the real ones.
fn volume(pod: &Value, mount: &Value, home: &Path) -> Result<String> {
    let name = mount["name"].as_str().context("a name")?;
    let path = mount["mountPath"].as_str().context("a path")?;
    let mut volumes = pod["volumes"].as_array().context("volumes")?.iter();
    let volume = volumes.find(|volume| volume["name"] == name).with_context(|| format!("there is no volume {name}"))?;
    let read_only = mount["readOnly"] == true;
    let from = match volume["hostPath"]["path"].as_str() {
        Some(host) if read_only => PathBuf::from(host),
        _ => home.join(name),
    };
    std::fs::create_dir_all(&from)?;
    Ok(format!("{}:{path}:{}", from.display(), if read_only { "ro,rslave" } else { "rw" }))
}

fn strings(list: &Value) -> Result<Vec<String>> {
    let texts = list.as_array().with_context(|| format!("{list} is no list"))?.iter();
    texts.map(|text| Ok(text.as_str().context("text")?.to_owned())).collect()
}

/// Builds the container image with the test build of the program.
fn image() -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let name = "localhost/smtpwatch:lab";
    let mut build = Command::new(cargo);
    build.args(["run", "-q", "-p", "xtask", "--", "image", "--dev", "--name", name]).current_dir(workspace());
    daemon::forget_cargo(&mut build);
    let out: Output = command::output(&mut build, BUILD)?;
    if !out.status.success() {
        return Err(Skip(format!("no image can be built: {}{}", out.stdout, out.stderr)).into());
    }
    Ok(name.to_owned())
}

/// podman with the storage that holds the image, on the network of `namespace`.
fn podman(namespace: &Namespace) -> Command {
    let mut command = namespace.command_with_cgroups("podman");
    command.args(["--runtime", "runc", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--root"]);
    command.arg(workspace().join("target/image/storage")).arg("--runroot").arg(workspace().join("target/image/run"));
    command
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}
