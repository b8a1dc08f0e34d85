//! Version information from the build, the same in `--version` and in `smtpwatch_build_info`.

use std::sync::OnceLock;

use smtpwatch_core::Timestamp;
pub use smtpwatch_core::VERSION;

/// Output of `git describe` for the sources; empty for a build outside of a checkout.
pub const REVISION: &str = env!("SMTPWATCH_REVISION");
/// The version of the compiler.
pub const RUSTC: &str = env!("SMTPWATCH_RUSTC");
/// Time of the build in seconds since the epoch, from `SOURCE_DATE_EPOCH`; empty without it, so that builds are
/// reproducible.
pub const DATE: &str = env!("SMTPWATCH_DATE");

/// The text of `-V`.
#[must_use]
pub const fn short() -> &'static str {
    VERSION
}

/// The text of `--version`.
#[must_use]
pub fn long() -> &'static str {
    static LONG: OnceLock<String> = OnceLock::new();
    LONG.get_or_init(|| {
        let or_unknown = |text: &'static str| if text.is_empty() { "unknown" } else { text };
        let date =
            DATE.parse().map(|secs| format!("\nbuilt: {}", Timestamp::from_secs(secs).date())).unwrap_or_default();
        format!(
            "{VERSION}\nrevision: {}{date}\nrustc: {}\nkernel object: sha256:{}",
            or_unknown(REVISION),
            or_unknown(RUSTC),
            smtpwatch_capture::object_digest(),
        )
    })
}
