//! Guest page tables where there is no memory.

use addr::Gpa;
use walk::PhysMem;

/// Memory whose page tables may be where there is none: entries read as ones there, and lose what is written, as on a PC's bus.
/// Operands are not looked for there.
pub(crate) struct OpenBus<'a, M>(pub(crate) &'a M);

impl<M: PhysMem> PhysMem for OpenBus<'_, M> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        Some(self.0.read_u64(at).unwrap_or(u64::MAX))
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        Some(self.0.read_u32(at).unwrap_or(u32::MAX))
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        Some(self.0.cmpxchg_u64(at, old, new).unwrap_or(true))
    }
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        Some(self.0.cmpxchg_u32(at, old, new).unwrap_or(true))
    }
    fn mark_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        Some(self.0.mark_u64(at, old, new).unwrap_or(true))
    }
    fn mark_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        Some(self.0.mark_u32(at, old, new).unwrap_or(true))
    }
    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        self.0.read(at, bytes)
    }
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        self.0.write(at, bytes)
    }
}
