//! Guest physical addresses without memory: a device has them, or nothing answers. Then reads give ones and writes are lost, as on a
//! PC's bus.

use crate::debug_traps::Watch;
use crate::shared::Vm;
use crate::trouble::Trouble;
use addr::{Gpa, Gva, PAGE_SIZE};
use devices::{Clock, Sink};
use emul::Width;
use emul::mmio::{Bus, MemoryRef};
use walk::{Fault, Paging, PhysMem, Privilege};

/// What the operands of an instruction that accessed such an address lead to. Of MOVS, one operand may well be in memory.
pub(crate) struct DeviceBus<'a, M, S, C> {
    pub(crate) memory: &'a M,
    pub(crate) paging: Paging,
    pub(crate) privilege: Privilege,
    pub(crate) vm: &'a Vm<S, C>,
    /// The guest-physical address of the only operand.
    pub(crate) operand: Gpa,
    pub(crate) watch: Watch,
    /// Whether a device was accessed.
    pub(crate) accessed: bool,
}

impl<M, S: Sink, C: Clock + Clone> DeviceBus<'_, M, S, C> {
    fn read_device(&mut self, at: Gpa, element: &mut [u8]) {
        element.fill(0xff);
        self.accessed |= self.vm.devices().read_mmio(at, element);
    }

    fn write_device(&mut self, at: Gpa, element: &[u8]) {
        self.accessed |= self.vm.devices().write_mmio(at, element);
    }
}

/// Whether `missing`, where no memory is, is the whole element of `length` bytes at `at`: neither its second page nor a page table.
fn is_element(missing: Gpa, at: Gva, length: usize) -> bool {
    missing.page_offset() == at.page_offset() && at.page_offset() + length as u64 <= PAGE_SIZE
}

impl<M: PhysMem, S: Sink, C: Clock + Clone> Bus for DeviceBus<'_, M, S, C> {
    type Error = Trouble;

    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, Trouble> {
        self.watch.read(at, width);
        let mut bytes = [0; 8];
        let element = &mut bytes[..width.bytes() as usize];
        match at {
            MemoryRef::Operand => self.read_device(self.operand, element),
            MemoryRef::Linear(at) => match walk::read(self.memory, &self.paging, at, self.privilege, element) {
                Err(Fault::Unbacked(missing)) if is_element(missing, at, element.len()) => {
                    self.read_device(missing, element);
                }
                Err(Fault::Unbacked(_)) => element.fill(0xff),
                result => result?,
            },
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), Trouble> {
        self.watch.write(at, width);
        let element = &value.to_le_bytes()[..width.bytes() as usize];
        match at {
            MemoryRef::Operand => self.write_device(self.operand, element),
            MemoryRef::Linear(at) => match walk::write(self.memory, &self.paging, at, self.privilege, element) {
                Err(Fault::Unbacked(missing)) if is_element(missing, at, element.len()) => {
                    self.write_device(missing, element);
                }
                Err(Fault::Unbacked(_)) => {}
                result => result?,
            },
        }
        Ok(())
    }
}
