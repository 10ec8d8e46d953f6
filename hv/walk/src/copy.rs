//! Copies of bytes at linear addresses.

use crate::{Access, AccessKind, Fault, Paging, PhysMem, Privilege, SetAccessedDirty, translate};
use addr::{Gpa, Gva, PAGE_SIZE};
use arch::MAX_INSTRUCTION;

/// The bytes at an instruction pointer.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    bytes: [u8; MAX_INSTRUCTION],
    len: usize,
    /// The fault that ended the fetch before [`MAX_INSTRUCTION`] bytes: the guest gets it if its instruction needs more
    /// bytes.
    pub then: Option<Fault>,
}

impl Fetched {
    /// The bytes, at most [`MAX_INSTRUCTION`], at least one.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Fetches up to [`MAX_INSTRUCTION`] bytes at `gva` (the base of CS plus RIP), from two pages if necessary.
///
/// Only a fault on the first byte is an error. A fault on the second page matters only if the instruction reaches it,
/// which the decoder finds out: [`Fetched::then`] keeps that fault.
pub fn fetch<M: PhysMem>(mem: &M, paging: &Paging, gva: Gva, privilege: Privilege) -> Result<Fetched, Fault> {
    let access = Access { kind: AccessKind::Fetch, privilege };
    let mut fetched = Fetched { bytes: [0; MAX_INSTRUCTION], len: 0, then: None };
    let [first, second] = split(gva, MAX_INSTRUCTION);
    read_piece(mem, paging, gva, access, &mut fetched.bytes[..first])?;
    fetched.len = first;
    if second > 0 {
        match read_piece(mem, paging, gva.wrapping_add(first as u64), access, &mut fetched.bytes[first..]) {
            Ok(()) => fetched.len = MAX_INSTRUCTION,
            Err(fault) => fetched.then = Some(fault),
        }
    }
    Ok(fetched)
}

/// Reads `bytes`, at most 4096, at `gva` as an instruction of the guest does: accessed bits are set.
pub fn read<M: PhysMem>(
    mem: &M,
    paging: &Paging,
    gva: Gva,
    privilege: Privilege,
    bytes: &mut [u8],
) -> Result<(), Fault> {
    let access = Access { kind: AccessKind::Read, privilege };
    let pieces = both(mem, paging, gva, access, bytes.len())?;
    let (first, second) = bytes.split_at_mut(pieces[0].1);
    for ((gpa, _), piece) in pieces.into_iter().zip([first, second]).filter(|(_, piece)| !piece.is_empty()) {
        mem.read(gpa, piece).ok_or(Fault::Unbacked(gpa))?;
    }
    Ok(())
}

/// Writes `bytes`, at most 4096, at `gva` as an instruction of the guest does: accessed and dirty bits are set, and
/// nothing is written if either of two pages faults.
pub fn write<M: PhysMem>(mem: &M, paging: &Paging, gva: Gva, privilege: Privilege, bytes: &[u8]) -> Result<(), Fault> {
    let access = Access { kind: AccessKind::Write, privilege };
    let pieces = both(mem, paging, gva, access, bytes.len())?;
    let (first, second) = bytes.split_at(pieces[0].1);
    for ((gpa, _), piece) in pieces.into_iter().zip([first, second]).filter(|(_, piece)| !piece.is_empty()) {
        mem.write(gpa, piece).ok_or(Fault::Unbacked(gpa))?;
    }
    Ok(())
}

/// The number of the `len` bytes at `gva` that lie in its page, and the number in the next page.
fn split(gva: Gva, len: usize) -> [usize; 2] {
    let first = len.min((PAGE_SIZE - gva.page_offset()) as usize);
    [first, len - first]
}

/// Physical addresses and lengths of the two pieces of `len` bytes at `gva`. The second may be empty.
fn both<M: PhysMem>(
    mem: &M,
    paging: &Paging,
    gva: Gva,
    access: Access,
    len: usize,
) -> Result<[(Gpa, usize); 2], Fault> {
    debug_assert!(len as u64 <= PAGE_SIZE);
    let [first, second] = split(gva, len);
    let gpa = translate(mem, paging, gva, access, SetAccessedDirty::Yes)?.gpa;
    let next = match second {
        0 => gpa,
        _ => translate(mem, paging, gva.wrapping_add(first as u64), access, SetAccessedDirty::Yes)?.gpa,
    };
    Ok([(gpa, first), (next, second)])
}

fn read_piece<M: PhysMem>(mem: &M, paging: &Paging, gva: Gva, access: Access, bytes: &mut [u8]) -> Result<(), Fault> {
    let gpa = translate(mem, paging, gva, access, SetAccessedDirty::No)?.gpa;
    mem.read(gpa, bytes).ok_or(Fault::Unbacked(gpa))
}
