//! Paging without long mode: address spaces of two levels, and of PAE's three.
//!
//! Intel SDM vol. 3, sections 4.3 and 4.4.

use crate::control::{CR0_PG, CR0_WP, CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMEP};
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::memory::{END, Page, Pages};
use crate::processor;

pub use arch::paging::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE};

/// What an entry has that leads to a table.
pub const TABLE: u64 = PRESENT | WRITABLE | USER;

/// What an entry has that maps a large page for the supervisor, and was used.
pub const LARGE_PAGE: u64 = PRESENT | WRITABLE | LARGE | ACCESSED | DIRTY;

/// How linear addresses are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Two levels of 4-byte entries; large pages are of 4 MiB.
    TwoLevel,
    /// PAE: four PDPTEs, and two levels of 8-byte entries; large pages are of 2 MiB.
    Pae,
}

impl Mode {
    /// The bytes that an entry of the page directory maps.
    pub const fn large_page(self) -> u32 {
        match self {
            Self::TwoLevel => 4 << 20,
            Self::Pae => 2 << 20,
        }
    }

    const fn entry_bytes(self) -> u32 {
        match self {
            Self::TwoLevel => 4,
            Self::Pae => 8,
        }
    }
}

/// An entry of a page directory or of a page table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    at: u32,
    mode: Mode,
}

impl Entry {
    /// The entry of number `index` of the table in `table`.
    pub fn of(table: Page, index: u32, mode: Mode) -> Self {
        assert!(index < 4096 / mode.entry_bytes());
        Self { at: table.address() + index * mode.entry_bytes(), mode }
    }

    /// Its physical address.
    pub const fn address(self) -> u32 {
        self.at
    }

    fn dword(self, half: u32) -> &'static AtomicU32 {
        // SAFETY: within a page of free memory, as in `Page::dword`.
        unsafe { &*ptr::with_exposed_provenance((self.at + 4 * half) as usize) }
    }

    fn qword(self) -> &'static AtomicU64 {
        // SAFETY: as above.
        unsafe { &*ptr::with_exposed_provenance(self.at as usize) }
    }

    /// What it holds.
    pub fn get(self) -> u64 {
        match self.mode {
            Mode::TwoLevel => self.dword(0).load(Relaxed).into(),
            Mode::Pae => self.qword().load(Relaxed),
        }
    }

    /// Writes it in one piece: by MOV, or LOCK CMPXCHG8B.
    pub fn set(self, value: u64) {
        match self.mode {
            Mode::TwoLevel => self.dword(0).store(value as u32, Relaxed),
            Mode::Pae => _ = self.qword().swap(value, Relaxed),
        }
    }

    /// Writes one of PAE's by FISTP, which is what the compiler stores eight bytes with: an instruction of the x87.
    pub fn set_by_x87(self, value: u64) {
        self.qword().store(value, Relaxed);
    }

    /// Writes one of PAE's in two halves, in the order that never shows a present entry of which a half is another's: not
    /// present, the high half, the low half (Linux's native_set_pte, arch/x86/include/asm/pgtable-3level.h). `pause`: done
    /// behind each store but the last.
    pub fn set_by_halves(self, value: u64, mut pause: impl FnMut()) {
        self.dword(0).store(0, Relaxed);
        pause();
        self.dword(1).store((value >> 32) as u32, Relaxed);
        pause();
        self.dword(0).store(value as u32, Relaxed);
    }
}

/// An address space, with all that is free and the image mapped one to one for the supervisor.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    mode: Mode,
    /// CR3's page.
    root: Page,
}

impl Space {
    /// A new one. Its tables are of `pages`.
    pub fn new(mode: Mode, pages: &mut Pages) -> Self {
        let root = pages.take();
        if mode == Mode::Pae {
            (0..4).for_each(|index| root.qword(index).store(u64::from(pages.take().address()) | PRESENT, Relaxed));
        }
        let space = Self { mode, root };
        for at in (0..END).step_by(mode.large_page() as usize) {
            space.pde(at).set(u64::from(at) | LARGE_PAGE);
        }
        space
    }

    /// What CR3 has.
    pub const fn cr3(self) -> u32 {
        self.root.address()
    }

    /// The page that CR3 names: the page directory of two levels, PAE's page directory pointer table.
    pub const fn root(self) -> Page {
        self.root
    }

    /// The page directory's entry for `linear`.
    pub fn pde(self, linear: u32) -> Entry {
        match self.mode {
            Mode::TwoLevel => Entry::of(self.root, linear >> 22, self.mode),
            Mode::Pae => {
                let directory = self.root.qword((linear >> 30) as usize).load(Relaxed) as u32 & !0xfff;
                Entry::of(Page::new(directory), linear >> 21 & 511, self.mode)
            }
        }
    }

    /// The page table's entry for `linear`; a table of `pages` comes to be if there is none.
    pub fn pte(self, linear: u32, pages: &mut Pages) -> Entry {
        let pde = self.pde(linear);
        if pde.get() & PRESENT == 0 {
            pde.set(u64::from(pages.take().address()) | TABLE);
        }
        let table = Page::new(pde.get() as u32 & !0xfff);
        Entry::of(table, linear >> 12 & (4096 / self.mode.entry_bytes() - 1), self.mode)
    }

    /// Gives its tables to `pages`. No processor uses it any more.
    pub fn free(self, pages: &mut Pages) {
        let directories = match self.mode {
            Mode::TwoLevel => [Some(self.root), None, None, None],
            Mode::Pae => [0, 1, 2, 3].map(|n| Some(Page::new(self.root.dword(2 * n).load(Relaxed) & !0xfff))),
        };
        for directory in directories.into_iter().flatten() {
            let entries = (0..4096 / self.mode.entry_bytes()).map(|n| Entry::of(directory, n, self.mode).get());
            let tables = entries.filter(|entry| entry & (PRESENT | LARGE) == PRESENT);
            tables.for_each(|entry| pages.give(Page::new(entry as u32 & !0xfff)));
            pages.give(directory);
        }
        if self.mode == Mode::Pae {
            pages.give(self.root);
        }
    }

    /// Turns paging on in its mode, or switches to it.
    pub fn enter(self) {
        // SAFETY: the space maps the image one to one.
        unsafe { turn_on(self.mode, self.cr3()) };
    }

    /// Loads CR3, where paging is on in its mode.
    pub fn load(self) {
        // SAFETY: the space maps the image one to one.
        unsafe { processor::set_cr3(self.cr3()) };
    }
}

#[repr(align(4096))]
struct Directory([AtomicU32; 1024]);

/// Maps all one to one.
static FLAT: Directory = Directory([const { AtomicU32::new(0) }; 1024]);

/// Turns paging on with all 4 GiB mapped one to one, those without memory, too. The tables are the image's, so that all that is
/// free stays free.
pub fn enter_flat() {
    let entries = (0..).step_by(Mode::TwoLevel.large_page() as usize).zip(&FLAT.0);
    entries.for_each(|(at, entry): (u32, _)| entry.store(at | LARGE_PAGE as u32, Relaxed));
    // SAFETY: it maps the image one to one.
    unsafe { turn_on(Mode::TwoLevel, FLAT.0.as_ptr() as u32) };
}

/// Turns paging on, or switches to these tables.
///
/// # Safety
/// They map the image one to one.
unsafe fn turn_on(mode: Mode, cr3: u32) {
    let cr4 = processor::cr4() & !(CR4_PAE | CR4_PSE) | if mode == Mode::Pae { CR4_PAE } else { CR4_PSE };
    if processor::cr4() != cr4 {
        leave();
    }
    // SAFETY: paging is off, or the bits are as before.
    unsafe { processor::set_cr4(cr4) };
    // SAFETY: the caller's promise.
    unsafe { processor::set_cr3(cr3) };
    // SAFETY: the caller's promise.
    unsafe { processor::set_cr0(processor::cr0() | CR0_PG) };
}

/// Turns paging off.
pub fn leave() {
    // SAFETY: without paging all is mapped one to one.
    unsafe { processor::set_cr0(processor::cr0() & !CR0_PG) };
}

/// Whether read-only pages bind the supervisor, too.
pub fn set_write_protect(on: bool) {
    let cr0 = processor::cr0();
    // SAFETY: no page of the image is read-only.
    unsafe { processor::set_cr0(if on { cr0 | CR0_WP } else { cr0 & !CR0_WP }) };
}

/// Whether the supervisor may not fetch from user pages, for a processor that [has it](processor::has_smep).
pub fn set_smep(on: bool) {
    let cr4 = processor::cr4();
    // SAFETY: the image is in the supervisor's pages.
    unsafe { processor::set_cr4(if on { cr4 | CR4_SMEP } else { cr4 & !CR4_SMEP }) };
}

/// Whether translations may stay when CR3 is loaded: no entry here asks for it. A change drops all.
pub fn set_global_pages(on: bool) {
    let cr4 = processor::cr4();
    // SAFETY: the bit changes no translation.
    unsafe { processor::set_cr4(if on { cr4 | CR4_PGE } else { cr4 & !CR4_PGE }) };
}
