//! The lab's scenarios: real servers, a real attacker, the real daemon. Needs root; see `cargo xtask test --only lab`.

mod foundations;
