//! Processor time and memory of a program, as the kernel reports them at its end.

use std::{
    fs::File,
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Resources of one run of a program.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// Peak resident memory, KiB. At least that of this process, from which it was forked.
    pub peak: u64,
}

/// Runs `command` to its end; returns its usage and its standard error.
pub fn of(command: &mut Command) -> Result<(Usage, String)> {
    command.stdin(Stdio::null()).stdout(File::create("/dev/null")?).stderr(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let mut said = String::new();
    child.stderr.take().context("its error output")?.read_to_string(&mut said)?;
    let pid = libc::pid_t::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: zero is a valid value of every field of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers outlive the call, and no other code waits for the child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    if waited != pid || status != 0 {
        bail!("{command:?} ended with status {status}: {said}");
    }
    let time = |time: libc::timeval| {
        let (secs, micros) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_usec).unwrap_or(0));
        Duration::from_secs(secs) + Duration::from_micros(micros)
    };
    let cpu = time(usage.ru_utime) + time(usage.ru_stime);
    Ok((Usage { cpu, peak: u64::try_from(usage.ru_maxrss).unwrap_or(0) }, said))
}
