//! What the hypervisor, its guests and `xtask` agree on, written once.
#![no_std]
#![forbid(unsafe_code)]

pub mod wire;
