//! Shared by the tests, benchmarks and tasks of smtpwatch. It is not part of the product, and nothing of the product
//! depends on it.
//!
//! `scenario`: dialogues as segments, played to the engine; `threats`: the dialogues of docs/threats.md (both feature
//! `engine`). [`traffic`]: sessions as packets and capture files. [`packet`] and [`test_run`]: frames of any form, and how the kernel runs a program over them.
//! [`object_digest`]: the digest of the sources of the kernel object, written by `cargo xtask build-ebpf` and compared
//! by a test. `world`: worlds of sessions and what the engine makes of them (feature `engine`).
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

pub mod object_digest;
pub mod packet;
#[cfg(feature = "engine")]
#[expect(missing_docs, reason = "a builder's name is what it builds")]
pub mod scenario;
pub mod test_run;
#[cfg(feature = "engine")]
#[expect(missing_docs, reason = "a builder's name is what it builds")]
pub mod threats;
#[expect(missing_docs, reason = "a builder's name is what it builds")]
pub mod traffic;
#[cfg(feature = "engine")]
#[expect(missing_docs, reason = "a builder's name is what it builds")]
pub mod world;
