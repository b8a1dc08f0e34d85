//! A mail server that stores the messages it receives.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use smtpwatch_tests::command::Guard;
use smtpwatch_tests::python;

/// A running mail server; dropping it ends it.
pub struct MailServer {
    pub address: SocketAddr,
    directory: PathBuf,
    _process: Guard,
}

impl MailServer {
    /// Starts it; it stores messages in `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/take_mail.py");
        let mut command = Command::new(python::interpreter()?);
        command.arg(script).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Guard(command.spawn().context("cannot start the mail server")?);
        let mut port = String::new();
        let stdout = process.0.stdout.take().context("its output is piped")?;
        BufReader::new(stdout).read_line(&mut port)?;
        let port = port.trim().parse().with_context(|| format!("the mail server says {port:?}"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { address, directory: directory.to_owned(), _process: process })
    }

    /// Messages received so far.
    pub fn messages(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.directory)?.collect::<Result<Vec<_>, _>>()?;
        let paths = entries.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "eml")).collect())
    }
}
