//! The accesses that the manual allows: by a walk of the guest's tables as they are now, or by a translation that was valid at any
//! time since it was last invalidated.

use super::memory::{Plain, ROM, Words};
use super::sequences;
use crate::Registers;
use addr::{Gpa, Gva, PageSize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;
use walk::{Access, AccessKind, Fault, PhysMem, Privilege, Rights, SetAccessedDirty, trace, translate};

/// The result of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Page(Gpa),
    Fault(u32, Gva),
    /// No memory.
    Nothing(Gpa),
    /// A write to read-only memory.
    ReadOnly(Gpa),
    /// No memory for a table.
    NoTable(Gpa),
}

impl Seen {
    /// The result of an access to `gpa`.
    pub(super) fn of(gpa: Gpa, access: Access) -> Self {
        let nothing = RefCell::default();
        match Plain(&nothing).read_u32(gpa) {
            None => Self::Nothing(gpa),
            Some(_) if gpa.frame().raw() == ROM && access.kind == AccessKind::Write => Self::ReadOnly(gpa),
            Some(_) => Self::Page(gpa),
        }
    }
}

/// A translation that a processor may have cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CachedTranslation {
    page: Gpa,
    size: PageSize,
    rights: Rights,
    dirty: bool,
}

/// The memory as it must be, and the translations of each linear page that each vCPU may have cached.
pub(super) struct Oracle {
    pub(super) words: RefCell<Words>,
    cached: Vec<BTreeMap<u64, Vec<CachedTranslation>>>,
}

const ACCESSED: u64 = 1 << 5;

impl Oracle {
    pub(super) fn new(words: Words, vcpus: usize) -> Self {
        Self { words: RefCell::new(words), cached: (0..vcpus).map(|_| BTreeMap::new()).collect() }
    }

    pub(super) fn write(&self, gpa: Gpa, bytes: &[u8]) {
        Plain(&self.words).write(gpa, bytes).expect("it is memory");
    }

    pub(super) fn load(&mut self, vcpu: usize) {
        self.cached[vcpu].clear();
    }

    /// Drops all translations of the address, for pages of any size.
    pub(super) fn invlpg(&mut self, vcpu: usize, gva: Gva) {
        for (&page, cached) in &mut self.cached[vcpu] {
            cached.retain(|cached| (page << 12) / cached.size.bytes() != gva.raw() / cached.size.bytes());
        }
    }

    /// Records the translations that a processor may cache from now on: those whose entries are present and accessed.
    pub(super) fn look(&mut self, vcpu: usize, registers: &Registers) {
        let access = Access { kind: AccessKind::Read, privilege: Privilege::Supervisor { ac: true } };
        for page in sequences::pages() {
            let gva = Gva::new(page << 12);
            let found = trace(&Plain(&self.words), registers.paging(), gva, access, SetAccessedDirty::No);
            let Ok((found, steps)) = found else { continue };
            if steps.as_slice().iter().any(|step| step.entry & ACCESSED == 0) {
                continue;
            }
            let cached =
                CachedTranslation { page: found.gpa, size: found.size, rights: found.rights, dirty: steps.is_dirty() };
            let all = self.cached[vcpu].entry(page).or_default();
            if !all.contains(&cached) {
                all.push(cached);
            }
        }
    }

    /// Checks an access that took an exit: its result is that of a walk now.
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

    /// Checks an access without an exit: a translation that may have been cached allows it.
    pub(super) fn check_cached(
        &self,
        words: &Words,
        vcpu: usize,
        registers: &Registers,
        gva: Gva,
        access: Access,
        seen: Seen,
    ) {
        let cached = self.cached[vcpu].get(&(gva.raw() >> 12)).map_or(&[][..], Vec::as_slice);
        let allows = |cached: &CachedTranslation| {
            let gpa = cached.page.wrapping_add(gva.page_offset());
            seen == Seen::of(gpa, access)
                && permits(registers, cached.rights, access)
                && (cached.dirty || access.kind != AccessKind::Write)
        };
        assert!(cached.iter().any(allows), "{seen:?} for {access:?} at {gva}, but there were {cached:x?}");
        assert_eq!(*words, *self.words.borrow(), "without a walk no accessed or dirty bit changes");
    }
}

/// The rights of the manual's section 4.6, written independently of `walk`.
fn permits(registers: &Registers, page: Rights, access: Access) -> bool {
    let controls = registers.paging().controls;
    let (wp, smep, smap) = (controls.cr0 >> 16 & 1 == 1, controls.cr4 >> 20 & 1 == 1, controls.cr4 >> 21 & 1 == 1);
    // These checks apply with paging only.
    let (smep, smap) = if controls.cr0 >> 31 == 0 { (false, false) } else { (smep, smap) };
    match (access.privilege, access.kind) {
        (Privilege::User, _) if !page.user => false,
        (Privilege::User, AccessKind::Write) => page.writable,
        (Privilege::User, AccessKind::Fetch) => page.executable,
        (Privilege::User, AccessKind::Read) => true,
        (Privilege::Supervisor { .. }, AccessKind::Fetch) => page.executable && !(page.user && smep),
        (Privilege::Supervisor { ac }, kind) => {
            !(page.user && smap && !ac) && (kind == AccessKind::Read || page.writable || !wp)
        }
    }
}
