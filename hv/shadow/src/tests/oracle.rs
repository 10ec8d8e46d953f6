//! What the manual allows: walks of the guest's tables as they are, and translations that were so since they were last
//! invalidated.

use super::guest::{Plain, ROM, Words};
use super::sequences;
use crate::Registers;
use addr::{Gpa, Gva, PageSize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;
use walk::{Access, Fault, Kind, PhysMem, Privilege, Rights, SetAccessedDirty, trace, translate};

/// What came of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Page(Gpa),
    Fault(u32, Gva),
    /// No memory.
    Nothing(Gpa),
    /// A write to memory that can't be written.
    ReadOnly(Gpa),
    /// No memory for a table.
    NoTable(Gpa),
}

impl Seen {
    /// What an access to `gpa` comes to.
    pub(super) fn of(gpa: Gpa, access: Access) -> Self {
        let nothing = RefCell::default();
        match Plain(&nothing).read_u32(gpa) {
            None => Self::Nothing(gpa),
            Some(_) if gpa.frame().raw() == ROM && access.kind == Kind::Write => Self::ReadOnly(gpa),
            Some(_) => Self::Page(gpa),
        }
    }
}

/// A translation that a processor may have kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    page: Gpa,
    size: PageSize,
    rights: Rights,
    dirty: bool,
}

/// The memory as it must be, and what each vCPU may have kept of each linear page.
pub(super) struct Oracle {
    pub(super) words: RefCell<Words>,
    kept: Vec<BTreeMap<u64, Vec<Kept>>>,
}

const ACCESSED: u64 = 1 << 5;

impl Oracle {
    pub(super) fn new(words: Words, vcpus: usize) -> Self {
        Self { words: RefCell::new(words), kept: (0..vcpus).map(|_| BTreeMap::new()).collect() }
    }

    pub(super) fn write(&self, gpa: Gpa, bytes: &[u8]) {
        Plain(&self.words).write(gpa, bytes).expect("it is memory");
    }

    pub(super) fn load(&mut self, vcpu: usize) {
        self.kept[vcpu].clear();
    }

    /// All pages that the address is in, whatever their size was.
    pub(super) fn invlpg(&mut self, vcpu: usize, gva: Gva) {
        for (&page, kept) in &mut self.kept[vcpu] {
            kept.retain(|kept| (page << 12) / kept.size.bytes() != gva.raw() / kept.size.bytes());
        }
    }

    /// Notes what a processor may keep from now on: what is there and marked as accessed.
    pub(super) fn look(&mut self, vcpu: usize, registers: &Registers) {
        let access = Access { kind: Kind::Read, privilege: Privilege::Supervisor { ac: true } };
        for page in sequences::pages() {
            let gva = Gva::new(page << 12);
            let found = trace(&Plain(&self.words), registers.paging(), gva, access, SetAccessedDirty::No);
            let Ok((found, steps)) = found else { continue };
            if steps.as_slice().iter().any(|step| step.entry & ACCESSED == 0) {
                continue;
            }
            let kept = Kept { page: found.gpa, size: found.size, rights: found.rights, dirty: steps.is_dirty() };
            let all = self.kept[vcpu].entry(page).or_default();
            if !all.contains(&kept) {
                all.push(kept);
            }
        }
    }

    /// An access that took an exit: as a walk done now.
    pub(super) fn check_fresh(&self, words: &Words, registers: &Registers, gva: Gva, access: Access, seen: Seen) {
        let found = translate(&Plain(&self.words), registers.paging(), gva, access, SetAccessedDirty::Yes);
        let expected = match found {
            Ok(found) => Seen::of(found.gpa, access),
            Err(Fault::Page { error_code, address }) => Seen::Fault(error_code.bits(), address),
            Err(Fault::Unbacked(gpa)) => Seen::NoTable(gpa),
            Err(fault) => panic!("{fault:?} without long mode and other CPUs"),
        };
        assert_eq!(seen, expected);
        assert_eq!(*words, *self.words.borrow(), "accessed and dirty bits");
    }

    /// An access without an exit: some translation that may have been kept allows it.
    pub(super) fn check_kept(
        &self,
        words: &Words,
        vcpu: usize,
        registers: &Registers,
        gva: Gva,
        access: Access,
        seen: Seen,
    ) {
        let kept = self.kept[vcpu].get(&(gva.raw() >> 12)).map_or(&[][..], Vec::as_slice);
        let allows = |kept: &Kept| {
            let gpa = kept.page.wrapping_add(gva.page_offset());
            seen == Seen::Page(gpa)
                && permits(registers, kept.rights, access)
                && (kept.dirty || access.kind != Kind::Write)
        };
        assert!(kept.iter().any(allows), "{seen:?} for {access:?} at {gva}, but there were {kept:x?}");
        assert_eq!(*words, *self.words.borrow(), "no walk, no bits");
    }
}

/// Tables 4-1 and 4-2 of the manual's section 4.6, again.
fn permits(registers: &Registers, page: Rights, access: Access) -> bool {
    let controls = registers.paging().controls;
    let (wp, smep, smap) = (controls.cr0 >> 16 & 1 == 1, controls.cr4 >> 20 & 1 == 1, controls.cr4 >> 21 & 1 == 1);
    // No paging, no such checks.
    let (smep, smap) = if controls.cr0 >> 31 == 0 { (false, false) } else { (smep, smap) };
    match (access.privilege, access.kind) {
        (Privilege::User, _) if !page.user => false,
        (Privilege::User, Kind::Write) => page.writable,
        (Privilege::User, Kind::Fetch) => page.executable,
        (Privilege::User, Kind::Read) => true,
        (Privilege::Supervisor { .. }, Kind::Fetch) => page.executable && !(page.user && smep),
        (Privilege::Supervisor { ac }, kind) => {
            !(page.user && smap && !ac) && (kind == Kind::Read || page.writable || !wp)
        }
    }
}
