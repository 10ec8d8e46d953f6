//! What an instruction's memory operands are read from and written to.

use crate::Width;
use addr::Gva;

/// The memory and devices that one vCPU accesses, at linear addresses.
pub trait Memory {
    /// The reason of a refused access.
    type Error;

    /// Reads `bytes`, at most 512.
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes `bytes`, at most 512.
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Writes `new`, of `width`, if memory still holds `old`, and tells whether it did. Locked instructions use this.
    ///
    /// The default implementation always writes, which is right for a device that no other vCPU can write between the
    /// read and the write. Memory needs its own implementation.
    fn compare_exchange(&mut self, at: Gva, width: Width, old: u64, new: u64) -> Result<bool, Self::Error> {
        let _ = old;
        self.write(at, &new.to_le_bytes()[..width.bytes() as usize]).map(|()| true)
    }

    /// Whether a [`write`](Self::write) of so many bytes would be refused. An instruction with two operands asks before it reads the
    /// first one: reading a device may have effects, and a fault after that would have the guest read it twice.
    fn prepare_write(&mut self, at: Gva, bytes: usize) -> Result<(), Self::Error> {
        let _ = (at, bytes);
        Ok(())
    }
}

/// Reads a value of `width`.
#[inline]
pub(crate) fn read<M: Memory + ?Sized>(memory: &mut M, at: Gva, width: Width) -> Result<u64, M::Error> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes[..width.bytes() as usize])?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes a value of `width`; bits above it are ignored.
#[inline]
pub(crate) fn write<M: Memory + ?Sized>(memory: &mut M, at: Gva, width: Width, value: u64) -> Result<(), M::Error> {
    memory.write(at, &value.to_le_bytes()[..width.bytes() as usize])
}
