//! The lab: network namespaces, real mail servers, a real attacker on the path, and the real daemon.
//!
//! Everything runs in namespaces that the lab creates and removes: the machine's own interfaces, mail server and
//! package list are never touched. If the machine lacks a capability, the scenario returns a [`Skip`] with the reason
//! instead of a failure.

pub mod alertmanager;
pub mod attacker;
pub mod command;
pub mod daemon;
pub mod exim;
pub mod kubernetes;
pub mod load;
pub mod machine;
pub mod names;
pub mod netns;
pub mod packet;
pub mod policy_host;
pub mod postfix;
pub mod prometheus;
pub mod python;
pub mod recording;
pub mod resolver;
pub mod root;
pub mod scripted;
pub mod smtp;
pub mod tls;
pub mod userspace_tcp;
pub mod wire;

/// A capability that the machine lacks, with the reason. The scenario cannot run, and its result says nothing about the
/// product.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Runs one scenario. An error that is a [`Skip`] prints `SKIPPED name: reason` (counted by `cargo xtask test`); any
/// other error fails the test.
///
/// # Panics
/// When the scenario fails: the panic fails the test.
pub fn scenario(name: &str, body: impl FnOnce() -> anyhow::Result<()>) {
    let Err(error) = body() else { return };
    match error.downcast_ref::<Skip>() {
        Some(Skip(reason)) => println!("SKIPPED {name}: {reason}"),
        #[expect(clippy::panic, reason = "the verdict of a test")]
        None => panic!("{name}: {error:#}"),
    }
}
