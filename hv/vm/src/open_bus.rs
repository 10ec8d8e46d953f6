//! Guest physical addresses that nothing answers: reads give ones and writes are lost, as on a PC's bus.

use crate::trouble::Trouble;
use emul::Width;
use emul::mmio::{Bus, MemoryRef};
use walk::{Fault, Paging, PhysMem, Privilege};

/// What the operands of an instruction that accessed such an address lead to. Of MOVS, one operand may well be in memory.
pub(crate) struct OpenBus<'a, M> {
    pub(crate) memory: &'a M,
    pub(crate) paging: Paging,
    pub(crate) privilege: Privilege,
}

impl<M: PhysMem> Bus for OpenBus<'_, M> {
    type Error = Trouble;

    fn read(&mut self, at: MemoryRef, width: Width) -> Result<u64, Trouble> {
        let mut bytes = [0xff; 8];
        if let MemoryRef::Linear(at) = at {
            let element = &mut bytes[..width.bytes() as usize];
            match walk::read(self.memory, &self.paging, at, self.privilege, element) {
                Err(Fault::Unbacked(_)) => element.fill(0xff),
                result => result?,
            }
        }
        Ok(u64::from_le_bytes(bytes) & width.mask())
    }

    fn write(&mut self, at: MemoryRef, width: Width, value: u64) -> Result<(), Trouble> {
        if let MemoryRef::Linear(at) = at {
            let element = &value.to_le_bytes()[..width.bytes() as usize];
            match walk::write(self.memory, &self.paging, at, self.privilege, element) {
                Err(Fault::Unbacked(_)) => {}
                result => result?,
            }
        }
        Ok(())
    }
}
