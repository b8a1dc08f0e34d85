//! Runs commands and waits for conditions, each with a time limit, so that no test of the lab can hang.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Polling interval while waiting for a condition.
const POLL: Duration = Duration::from_millis(20);

/// Output and exit status of a command.
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

/// Runs `command` for at most `limit` and returns its output, whatever its exit code.
///
/// # Errors
/// When it cannot be started, or has not ended in time (it is then killed).
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    output_with_input(command, b"", limit)
}

/// As [`output`], with `input` on standard input.
///
/// # Errors
/// As [`output`].
pub fn output_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn().with_context(|| format!("cannot start {shown}"))?);
    let (stdout, stderr) = (collect(child.0.stdout.take()), collect(child.0.stderr.take()));
    if let Some(mut stdin) = child.0.stdin.take() {
        // A command that does not read its input closes the pipe; its exit code reports what is wrong.
        let _ = stdin.write_all(input);
    }
    let status = eventually(limit, &format!("the end of {shown}"), || Ok(child.0.try_wait()?))?;
    let text = |reader: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Runs `command` for at most `limit` and requires exit code 0; returns its standard output.
///
/// # Errors
/// As [`output`], and when the exit code is not 0: the error carries what it printed.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    run_with_input(command, b"", limit)
}

/// As [`run`], with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Result<String> {
    let out = output_with_input(command, input, limit)?;
    if !out.status.success() {
        bail!("{command:?} ended with {}: {}{}", out.status, out.stdout, out.stderr);
    }
    Ok(out.stdout)
}

/// Polls `look` until it returns a value, for at most `limit`.
///
/// # Errors
/// When `look` fails, or on timeout: the error names the awaited condition, `what`.
pub fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// A command that is killed when the thread that starts it ends, even if that thread is killed.
#[must_use]
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// A child process that is killed and reaped on drop.
#[derive(Debug)]
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both calls fail only if the process has ended already, which is the aim.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
