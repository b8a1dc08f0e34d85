//! Tests of the kernel programs on the running kernel: against the userspace gate, and attached to interfaces of
//! private namespaces.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where something is not as expected")]

/// Skips a test that this user may not run, with a message.
macro_rules! need_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {}: loading kernel programs needs root", module_path!());
            return;
        }
    };
}
pub(crate) use need_root;

mod attach;
mod coexistence;
mod differential;
mod encapsulated;
mod scratch;

use smtpwatch_testkit::{packet, test_run};
