//! Tests of the manual's rules one by one, and of whole walks against a second, naive implementation.

mod cache;
mod model;
mod operand;
mod rules;

use crate::ram::Ram;
use crate::*;
use std::vec::Vec;

// Bits as the manual numbers them, apart from those that the code has by name.
pub(crate) const P: u64 = 1 << 0;
pub(crate) const RW: u64 = 1 << 1;
pub(crate) const US: u64 = 1 << 2;
pub(crate) const PS: u64 = 1 << 7;
pub(crate) const NX: u64 = 1 << 63;

pub(crate) const PE_PG: u64 = 0x8000_0001;
pub(crate) const WP: u64 = 1 << 16;
pub(crate) const PSE: u64 = 1 << 4;
pub(crate) const PAE: u64 = 1 << 5;
pub(crate) const LA57: u64 = 1 << 12;
pub(crate) const SMEP: u64 = 1 << 20;
pub(crate) const SMAP: u64 = 1 << 21;
pub(crate) const LMA: u64 = 1 << 10;
pub(crate) const NXE: u64 = 1 << 11;

pub(crate) const FEATURES: Features =
    Features { maxphyaddr: 40, pages_1g: true, pse36: true, pml4e_bit8_reserved: false };

pub(crate) fn paging(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Paging {
    Paging { controls: Controls { cr0, cr3, cr4, efer }, pdptes: None, features: FEATURES }
}

pub(crate) const SUPERVISOR: Privilege = Privilege::Supervisor { ac: false };

pub(crate) fn access(kind: AccessKind, privilege: Privilege) -> Access {
    Access { kind, privilege }
}
