//! QEMU's `pc-testdev` (hw/misc/pc-testdev.c), as test kernels for KVM use it: scratch ports, and a page of memory that is accessed
//! as a device's. The [`Board`](crate::Board) has its interrupt lines. Its flush port makes KVM's tables forget a page; no guest
//! can see that, so that a write has no effect here.
//!
//! QEMU's second set of scratch ports, from 0xe8 on, is missing: Bochs' debug console is one of these ports.

use crate::Size;
use crate::bus::{DwordWrite, part};
use alloc::boxed::Box;
use alloc::vec;

/// The size of the memory, of which QEMU has more.
pub(crate) const MEMORY_BYTES: usize = 4096;

#[derive(Debug)]
pub(crate) struct TestDevice {
    scratch: u32,
    /// On the heap: a VM is moved as a whole when it ends, on a stack that has no room for this.
    memory: Box<[u8]>,
}

impl TestDevice {
    pub(crate) fn new() -> Self {
        Self { scratch: 0, memory: vec![0; MEMORY_BYTES].into_boxed_slice() }
    }

    /// As [`new`](Self::new) makes it.
    pub(crate) fn reset(&mut self) {
        self.scratch = 0;
        self.memory.fill(0);
    }

    /// Reads scratch `port`.
    pub(crate) fn read(&self, port: u16, size: Size) -> u32 {
        part(self.scratch, port, size)
    }

    /// Writes scratch `port`.
    pub(crate) fn write(&mut self, port: u16, size: Size, value: u32) {
        self.scratch = DwordWrite::new(port, size, value).onto(self.scratch, u32::MAX);
    }

    /// The memory from `offset` on; less than `length` at its end.
    pub(crate) fn memory(&mut self, offset: u16, length: usize) -> &mut [u8] {
        let start = usize::from(offset).min(MEMORY_BYTES);
        &mut self.memory[start..(start + length).min(MEMORY_BYTES)]
    }
}
