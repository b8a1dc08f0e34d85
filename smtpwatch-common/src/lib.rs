#![no_std]
//! What the kernel program and the daemon share.
