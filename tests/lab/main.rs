//! The lab's scenarios: real servers, a real attacker, the real daemon. Needs root; see `cargo xtask test --only lab`.

mod acceptance;
mod adversary;
mod api;
mod auth;
mod body;
mod boundary;
mod canary;
mod foundations;
mod honest;
mod killed;
mod kubernetes;
mod lifecycle;
mod losses;
mod pages;
mod policies;
mod policy_check;
mod policy_fetch;
mod policy_world;
mod prometheus;
mod proxy;
mod sender;
mod set_up;
mod strip;
mod survival;
mod taken_away;
mod unwatched;
