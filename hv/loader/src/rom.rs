//! What a guest's memory holds at its start, to be written again when its machine is reset (QEMU's `rom_reset`).

use crate::load;
use crate::memory::{GuestMemory, MemoryError};
use addr::{Gpa, PAGE_SIZE};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;

/// What was written to a guest's memory at its start, piece by piece. What comes from files stays there.
#[derive(Debug, Default)]
pub struct Rom<'f>(Vec<(Gpa, Piece<'f>)>);

#[derive(Debug)]
enum Piece<'f> {
    /// A part of a file.
    File(&'f [u8]),
    /// Boot information, or a table of the firmware's.
    Own(Box<[u8]>),
    /// So many zeroes.
    Zeroes(u64),
}

/// How much of a [`Rom`] is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pieces: usize,
    /// Bytes of the next piece.
    bytes: u64,
}

/// Writes to a guest's memory, and notes what.
#[derive(Debug)]
pub struct Recorder<'f, 'm, M> {
    memory: &'m mut M,
    files: &'m [&'f [u8]],
    rom: Rom<'f>,
}

/// The pieces for which a note has room before it grows: those of an image with some segments, and of its modules.
const PIECES: usize = 32;

impl<'f, 'm, M: GuestMemory> Recorder<'f, 'm, M> {
    /// Nothing is written yet. Parts of `files` are noted as such, and are not copied.
    pub fn new(memory: &'m mut M, files: &'m [&'f [u8]]) -> Self {
        Self { memory, files, rom: Rom(Vec::with_capacity(PIECES)) }
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Rom<'f> {
        self.rom
    }
}

impl<M: GuestMemory> GuestMemory for Recorder<'_, '_, M> {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(at, bytes)?;
        let file = self.files.iter().find_map(|file| same_part(file, bytes));
        self.rom.0.push((at, file.map_or_else(|| Piece::Own(bytes.into()), Piece::File)));
        Ok(())
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.memory.zero(at, bytes)?;
        self.rom.0.push((at, Piece::Zeroes(bytes)));
        Ok(())
    }
}

/// The part of `file` that `bytes` is, if it is one.
fn same_part<'f>(file: &'f [u8], bytes: &[u8]) -> Option<&'f [u8]> {
    let start = bytes.as_ptr().addr().checked_sub(file.as_ptr().addr())?;
    file.get(start..start.checked_add(bytes.len())?)
}

impl Rom<'_> {
    /// What one takes of the heap, with boot information of a usual size, and with tables of the firmware's of so many bytes.
    pub fn allocations(firmware: usize) -> impl Iterator<Item = Layout> {
        let own = [firmware, (load::PAGES * PAGE_SIZE) as usize].map(Layout::array::<u8>);
        own.into_iter().chain([Layout::array::<(Gpa, Piece<'_>)>(PIECES)]).flatten()
    }

    /// The bytes that were copied.
    #[cfg(test)]
    pub(crate) fn own_bytes(&self) -> usize {
        self.0.iter().map(|(_, piece)| if let Piece::Own(bytes) = piece { bytes.len() } else { 0 }).sum()
    }

    /// Writes what follows `done`, but at most `most` bytes (not 0), or [prepares](GuestMemory::prepare) that; gives how much is written
    /// then, or None if that is all. Nothing is allocated.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn write_part(
        &self,
        memory: &mut impl GuestMemory,
        done: Progress,
        most: u64,
    ) -> Result<Option<Progress>, MemoryError> {
        let Some((at, piece)) = self.0.get(done.pieces) else { return Ok(None) };
        let end = piece.len().min(done.bytes + most);
        let at = at.wrapping_add(done.bytes);
        match piece.bytes() {
            Some(_) if !memory.prepare(at, end - done.bytes)? => return Ok(Some(done)),
            Some(bytes) => memory.write(at, &bytes[done.bytes as usize..end as usize])?,
            None => memory.zero(at, end - done.bytes)?,
        }
        Ok(Some(match end == piece.len() {
            true => Progress { pieces: done.pieces + 1, bytes: 0 },
            false => Progress { bytes: end, ..done },
        }))
    }
}

impl Piece<'_> {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::File(bytes) => Some(bytes),
            Self::Own(bytes) => Some(bytes),
            Self::Zeroes(_) => None,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::File(bytes) => bytes.len() as u64,
            Self::Own(bytes) => bytes.len() as u64,
            Self::Zeroes(bytes) => *bytes,
        }
    }
}
