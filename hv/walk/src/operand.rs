//! Atomic accesses to operands of instructions.
//!
//! Other vCPUs of the guest may see a copy by [`write()`] half done. That must not happen to a page-table entry, nor to
//! the operand of an instruction with a LOCK prefix. Here, accesses to operands within eight aligned bytes are atomic;
//! those to operands across such a boundary, which are no page-table entries, are not.

use crate::{
    ATTEMPTS, Access, AccessKind, Fault, Paging, PhysMem, Privilege, SetAccessedDirty, read, translate, write,
};
use addr::{Gpa, Gva};

/// Accesses operands of an emulated instruction: sets accessed and dirty bits, and gives the faults that the guest
/// gets.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, M> {
    /// The guest's memory.
    pub mem: &'a M,
    /// How linear addresses are translated.
    pub paging: &'a Paging,
    /// The privilege of the accesses.
    pub privilege: Privilege,
}

/// The bits of the aligned eight bytes at `word` that belong to an operand.
#[derive(Clone, Copy)]
struct Part {
    word: Gpa,
    shift: u32,
    mask: u64,
}

impl Part {
    /// None for an operand that crosses the boundary of eight aligned bytes.
    fn of(gpa: Gpa, bytes: usize) -> Option<Self> {
        let offset = (gpa.raw() % 8) as usize;
        let whole = (1..=8 - offset).contains(&bytes);
        whole.then(|| Self { word: gpa.align_down(8), shift: 8 * offset as u32, mask: u64::MAX >> (64 - 8 * bytes) })
    }

    const fn get(self, word: u64) -> u64 {
        word >> self.shift & self.mask
    }

    const fn put(self, word: u64, value: u64) -> u64 {
        word & !(self.mask << self.shift) | (value & self.mask) << self.shift
    }

    fn load<M: PhysMem>(self, mem: &M) -> Result<u64, Fault> {
        mem.read_u64(self.word).ok_or(Fault::Unbacked(self.word))
    }

    /// Stores `value` if the eight bytes still hold `old`, and tells whether it did.
    fn replace<M: PhysMem>(self, mem: &M, old: u64, value: u64) -> Result<bool, Fault> {
        mem.cmpxchg_u64(self.word, old, self.put(old, value)).ok_or(Fault::Unbacked(self.word))
    }
}

/// The little-endian number in `bytes`.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Reads `bytes`, at most as many as the page of `gpa` has from there on.
pub fn load<M: PhysMem>(mem: &M, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Fault> {
    let Some(part) = Part::of(gpa, bytes.len()) else { return mem.read(gpa, bytes).ok_or(Fault::Unbacked(gpa)) };
    let value = part.get(part.load(mem)?).to_le_bytes();
    bytes.copy_from_slice(&value[..bytes.len()]);
    Ok(())
}

/// Writes `bytes`, at most as many as the page of `gpa` has from there on. Concurrent writes of other CPUs to the bytes around them
/// are not lost; [`Fault::Contended`] if these keep changing.
pub fn store<M: PhysMem>(mem: &M, gpa: Gpa, bytes: &[u8]) -> Result<(), Fault> {
    let Some(part) = Part::of(gpa, bytes.len()) else { return mem.write(gpa, bytes).ok_or(Fault::Unbacked(gpa)) };
    for _ in 0..ATTEMPTS {
        if part.replace(mem, part.load(mem)?, number(bytes))? {
            return Ok(());
        }
    }
    Err(Fault::Contended)
}

/// Writes `new` if the memory at `gpa` holds `old` (of the same length, at most 8 bytes, in one page), and tells whether it did. False
/// also if another CPU changed the bytes around them meanwhile, so a caller that needs the reason reads again.
pub fn compare_exchange<M: PhysMem>(mem: &M, gpa: Gpa, old: &[u8], new: &[u8]) -> Result<bool, Fault> {
    debug_assert_eq!(old.len(), new.len());
    let Some(part) = Part::of(gpa, old.len()) else {
        let mut found = [0; 8];
        let found = &mut found[..old.len()];
        mem.read(gpa, found).ok_or(Fault::Unbacked(gpa))?;
        return if found == old { mem.write(gpa, new).map(|()| true).ok_or(Fault::Unbacked(gpa)) } else { Ok(false) };
    };
    let word = part.load(mem)?;
    if part.get(word) != number(old) { Ok(false) } else { part.replace(mem, word, number(new)) }
}

impl<M: PhysMem> Operands<'_, M> {
    /// Where an operand is that lies in eight aligned bytes.
    fn whole(&self, gva: Gva, kind: AccessKind, bytes: usize) -> Result<Option<Gpa>, Fault> {
        let access = Access { kind, privilege: self.privilege };
        let gpa = translate(self.mem, self.paging, gva, access, SetAccessedDirty::Yes)?.gpa;
        Ok(Part::of(gpa, bytes).map(|_| gpa))
    }

    /// Reads `bytes`, at most 4096.
    pub fn load(&self, gva: Gva, bytes: &mut [u8]) -> Result<(), Fault> {
        match self.whole(gva, AccessKind::Read, bytes.len())? {
            Some(gpa) => load(self.mem, gpa, bytes),
            None => read(self.mem, self.paging, gva, self.privilege, bytes),
        }
    }

    /// Writes `bytes`, at most 4096. Concurrent writes of other CPUs to the bytes around them are not lost;
    /// [`Fault::Contended`] if these keep changing.
    pub fn store(&self, gva: Gva, bytes: &[u8]) -> Result<(), Fault> {
        match self.whole(gva, AccessKind::Write, bytes.len())? {
            Some(gpa) => store(self.mem, gpa, bytes),
            None => write(self.mem, self.paging, gva, self.privilege, bytes),
        }
    }

    /// Writes `new` if memory holds `old` (of the same length, at most 8 bytes), and tells whether it did. False also
    /// if another CPU changed the bytes around them meanwhile, so a caller that needs the reason reads again.
    pub fn compare_exchange(&self, gva: Gva, old: &[u8], new: &[u8]) -> Result<bool, Fault> {
        debug_assert_eq!(old.len(), new.len());
        if let Some(gpa) = self.whole(gva, AccessKind::Write, old.len())? {
            return compare_exchange(self.mem, gpa, old, new);
        }
        let mut found = [0; 8];
        let found = &mut found[..old.len()];
        read(self.mem, self.paging, gva, self.privilege, found)?;
        if found == old { write(self.mem, self.paging, gva, self.privilege, new).map(|()| true) } else { Ok(false) }
    }
}
