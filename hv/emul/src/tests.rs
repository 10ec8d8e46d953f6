mod interpreter;
mod lengths;
mod memory;

mod segmentation;
mod strings;
mod systems;

use crate::{Gpr, Registers, Segment};

/// Registers in an array, without a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) bases: [u64; 6],
}

impl Registers for File {
    fn gpr(&self, gpr: Gpr) -> u64 {
        self.gpr[gpr.index()]
    }
    fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.gpr[gpr.index()] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.bases[segment as usize]
    }
}
