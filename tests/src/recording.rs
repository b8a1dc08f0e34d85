//! Records the lab's own traffic as it would appear on a wire.

use std::path::Path as FilePath;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{self, Guard, eventually};
use crate::netns::{GATEWAY_INTERFACE, Namespace, Path};

const LIMIT: Duration = Duration::from_secs(60);
/// Time for the last FIN to arrive after the traffic has ended.
const SETTLE: Duration = Duration::from_secs(2);

/// Switches segmentation and checksum offload off on the whole path, so that packets have wire sizes and correct
/// checksums.
///
/// # Errors
/// The error of ethtool.
pub fn as_on_a_wire(path: &Path) -> Result<()> {
    for (namespace, interface) in
        [(&path.gateway, GATEWAY_INTERFACE), (&path.router, "left"), (&path.router, "right"), (&path.exchanger, "mx0")]
    {
        let off = ["-K", interface, "tso", "off", "gso", "off", "gro", "off", "tx", "off"];
        command::run(namespace.command("ethtool").args(off), LIMIT)?;
    }
    Ok(())
}

/// Records the mail that crosses `interface` of `namespace` while `traffic` runs; returns the number of packets.
///
/// # Errors
/// When the traffic or tcpdump fails, or tcpdump loses a packet.
pub fn record(
    namespace: &Namespace,
    interface: &str,
    file: &FilePath,
    traffic: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let mut tcpdump = namespace.command("tcpdump");
    tcpdump.args(["-i", interface, "-s", "0", "-B", "262144", "-Z", "root", "-w"]).arg(file);
    tcpdump.arg("tcp port 25 or tcp port 587").stderr(Stdio::piped()).stdin(Stdio::null());
    let mut tcpdump = Guard(tcpdump.spawn().context("cannot start tcpdump")?);
    eventually(LIMIT, "tcpdump", || Ok(file.exists().then_some(())))?;
    traffic()?;
    std::thread::sleep(SETTLE);
    let said = end(&mut tcpdump)?;
    ensure!(number_before(&said, " packets dropped by kernel") == Some(0), "the recording has holes: {said}");
    number_before(&said, " packets captured").with_context(|| format!("tcpdump says {said}"))
}

/// Ends a tcpdump whose standard error is piped, and returns its final statistics.
///
/// # Errors
/// When it does not end.
pub fn end(tcpdump: &mut Guard) -> Result<String> {
    kill(Pid::from_raw(i32::try_from(tcpdump.0.id())?), Signal::SIGINT)?;
    eventually(LIMIT, "the end of tcpdump", || Ok(tcpdump.0.try_wait()?))?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut tcpdump.0.stderr.take().context("its error output")?, &mut said)?;
    Ok(said)
}

/// The number directly before `words`.
#[must_use]
pub fn number_before(text: &str, words: &str) -> Option<u64> {
    let (head, _) = text.split_once(words)?;
    head.rsplit(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::number_before;

    #[test]
    fn the_number_before_the_words() {
        let said = "tcpdump: listening on mail0\n12 packets captured\n30 packets received by filter\n";
        assert_eq!(number_before(said, " packets captured"), Some(12));
        assert_eq!(number_before(said, " packets received"), Some(30));
        assert_eq!(number_before(said, " packets dropped"), None);
        assert_eq!(number_before("no packets captured", " packets captured"), None);
    }
}
