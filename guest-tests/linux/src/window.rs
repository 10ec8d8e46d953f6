//! A window of address space with its model: each operation is done on both, and each check compares them.

use core::ops::Range;
use core::ptr;
use core::sync::atomic::AtomicU32;

use linux_raw_sys::general::{
    MADV_COLLAPSE, MADV_DONTNEED, MADV_REMOVE, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED,
    MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE,
};

use crate::ktap::Outcome;
use crate::model::{Backing, FILE_PAGES, Model, PAGES, Protection, Stamp};
use crate::probe::{Access, Probed, probe};
use crate::random::Random;
use crate::sys::{self, Errno, Mapping, PAGE};
use crate::{check, check_eq, check_ok};

/// The words of a page, of 32 bits.
const WORDS: usize = PAGE / 4;
/// Windows begin at a multiple of this: that of a large page, of 2 MiB or 4 MiB.
const ALIGNMENT: usize = 4 << 20;
/// The machine code of RET, with which each pattern begins.
const RET: u32 = 0xc3;

/// Address space that is taken.
const RESERVED: Mapping =
    Mapping { protection: PROT_NONE, flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, file: 0, file_page: 0 };

/// Word number `index` of the pattern: pages that were mixed up, and words that were, differ from it.
fn pattern(stamp: Stamp, index: usize) -> u32 {
    let word = stamp.wrapping_mul(0x9e37_79b1) ^ (index as u32).wrapping_mul(0x85eb_ca6b);
    match (stamp, index) {
        (0, _) => 0,
        (_, 0) => word << 8 | RET,
        _ => word,
    }
}

/// Where a window's pages are, and its file. Nothing else is ever mapped there: while there is no window, the place is reserved,
/// and while there is one, all mappings are at fixed addresses.
#[derive(Clone, Copy)]
pub(crate) struct Reservation {
    start: usize,
    file: usize,
    stamps: &'static [AtomicU32; FILE_PAGES],
}

impl Reservation {
    /// Takes a place.
    pub(crate) fn take() -> Self {
        // SAFETY: the kernel takes a place where nothing is.
        let start = unsafe { sys::map(0, PAGES + ALIGNMENT / PAGE, RESERVED) }.expect("address space");
        let shared = Mapping { protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED | MAP_ANONYMOUS, ..RESERVED };
        // SAFETY: as above.
        let stamps = unsafe { sys::map(0, size_of::<[AtomicU32; FILE_PAGES]>().div_ceil(PAGE), shared) };
        let stamps = stamps.expect("a page") as *const [AtomicU32; FILE_PAGES];
        // SAFETY: it is mapped, zero, which is a value of it, and never unmapped.
        let stamps = unsafe { &*stamps };
        let file = sys::memory_file(FILE_PAGES).expect("memfd_create");
        Self { start: start.next_multiple_of(ALIGNMENT), file, stamps }
    }

    /// The address of a page.
    pub(crate) const fn address(self, page: usize) -> usize {
        self.start + page * PAGE
    }

    /// A word that forked processes share; a new window makes it 0.
    pub(crate) fn shared_word(self) -> &'static AtomicU32 {
        &self.stamps[0]
    }
}

/// A window.
pub(crate) struct Window {
    place: Reservation,
    model: Model<'static>,
    random: Random,
    /// Another process has the window, too, at this time: what both see may not change.
    pub(crate) is_file_frozen: bool,
}

impl Window {
    /// A window at this place where nothing is mapped. What is random in it follows from `seed`.
    pub(crate) fn new(place: Reservation, seed: u64, no_execute: bool) -> Result<Self, crate::ktap::NotPassed> {
        // SAFETY: the window's own memory.
        check_ok!(unsafe { sys::unmap(place.start, PAGES) });
        let model = Model::new(place.stamps, no_execute);
        let mut window = Self { place, model, random: Random::new(seed), is_file_frozen: false };
        // What a window before this one left in the file.
        window.map(0..FILE_PAGES, Protection::ReadWrite, Backing::Shared(0))?;
        window.punch(0..FILE_PAGES)?;
        window.unmap(0..FILE_PAGES)?;
        Ok(window)
    }

    pub(crate) fn model(&self) -> &Model<'static> {
        &self.model
    }

    pub(crate) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    pub(crate) fn map(&mut self, range: Range<usize>, protection: Protection, backing: Backing) -> Outcome {
        let (flags, file_page) = match backing {
            Backing::Anonymous => (MAP_PRIVATE | MAP_ANONYMOUS, 0),
            Backing::Shared(page) => (MAP_SHARED, page),
            Backing::Private(page) => (MAP_PRIVATE, page),
        };
        let mapping = Mapping {
            protection: protection.bits(),
            flags: flags | MAP_FIXED | MAP_NORESERVE,
            file: self.place.file,
            file_page,
        };
        let address = self.place.address(range.start);
        // SAFETY: the window's own memory.
        check_eq!(unsafe { sys::map(address, range.len(), mapping) }, Ok(address));
        self.model.map(range, protection, backing);
        Ok(())
    }

    pub(crate) fn unmap(&mut self, range: Range<usize>) -> Outcome {
        // SAFETY: the window's own memory.
        check_eq!(unsafe { sys::unmap(self.place.address(range.start), range.len()) }, Ok(()));
        self.model.unmap(range);
        Ok(())
    }

    pub(crate) fn protect(&mut self, range: Range<usize>, protection: Protection) -> Outcome {
        // SAFETY: the window's own memory.
        let result = unsafe { sys::protect(self.place.address(range.start), range.len(), protection.bits()) };
        let has_hole = self.model.protect(range, protection);
        check_eq!(result, if has_hole { Err(Errno::NO_MEMORY) } else { Ok(()) });
        Ok(())
    }

    pub(crate) fn discard(&mut self, range: Range<usize>) -> Outcome {
        // SAFETY: the window's own memory.
        let result = unsafe { sys::advise(self.place.address(range.start), range.len(), MADV_DONTNEED) };
        let has_hole = self.model.discard(range);
        check_eq!(result, if has_hole { Err(Errno::NO_MEMORY) } else { Ok(()) });
        Ok(())
    }

    /// Moves pages to where none of them is; page by page where they are of several mappings. What is not mapped is not moved.
    pub(crate) fn relocate(&mut self, from: Range<usize>, to: usize, keep: bool) -> Outcome {
        self.unmap(to..to + from.len())?;
        match self.remap(from.clone(), to, keep) {
            Err(Errno::FAULT) => from.clone().enumerate().try_for_each(|(offset, page)| {
                if self.model.page(page).is_none() {
                    return Ok(());
                }
                check_eq!(self.remap(page..page + 1, to + offset, keep), Ok(self.place.address(to + offset)));
                Ok(())
            })?,
            result => check_eq!(result, Ok(self.place.address(to))),
        }
        self.model.relocate(from, to, keep);
        Ok(())
    }

    fn remap(&self, from: Range<usize>, to: usize, keep: bool) -> Result<usize, Errno> {
        let flags = MREMAP_MAYMOVE | MREMAP_FIXED | if keep { MREMAP_DONTUNMAP } else { 0 };
        let (address, pages) = (self.place.address(from.start), from.len());
        // SAFETY: the window's own memory.
        unsafe { sys::remap(address, pages, pages, flags, self.place.address(to)) }
    }

    /// Lets the anonymous page before `range` grow over it; nothing is mapped there.
    pub(crate) fn grow(&mut self, range: Range<usize>, protection: Protection) -> Outcome {
        let address = self.place.address(range.start - 1);
        // SAFETY: the window's own memory.
        let result = unsafe { sys::remap(address, 1, 1 + range.len(), 0, 0) };
        check_eq!(result, Ok(address));
        self.model.map(range, protection, Backing::Anonymous);
        Ok(())
    }

    /// Makes pages of the file zero, by a shared mapping of them that can be written.
    pub(crate) fn punch(&mut self, range: Range<usize>) -> Outcome {
        // SAFETY: the window's own memory.
        check_eq!(unsafe { sys::advise(self.place.address(range.start), range.len(), MADV_REMOVE) }, Ok(()));
        for page in range {
            if let Some(Backing::Shared(file_page)) = self.model.page(page).map(|page| page.backing) {
                self.model.punch(file_page);
            }
        }
        Ok(())
    }

    /// Gives advice that changes nothing that can be seen, and that the kernel need not take.
    pub(crate) fn advise(&mut self, range: Range<usize>, advice: u32) -> Result<(), Errno> {
        // SAFETY: the window's own memory.
        unsafe { sys::advise(self.place.address(range.start), range.len(), advice) }
    }

    /// Makes large pages of what is mapped; false: the kernel could not.
    pub(crate) fn collapse(&mut self, range: Range<usize>) -> bool {
        self.advise(range, MADV_COLLAPSE).is_ok()
    }

    /// Writes the pages that can be written, and sees that stores to the others fault.
    pub(crate) fn write(&mut self, range: Range<usize>) -> Outcome {
        for page in range {
            let is_shared = matches!(self.model.page(page).map(|page| page.backing), Some(Backing::Shared(_)));
            if self.model.fault(page, Access::Store).is_some() {
                self.check_fault(page, Access::Store)?;
            } else if !(is_shared && self.is_file_frozen) {
                let stamp = (self.random.next_u64() as Stamp).max(1);
                self.fill(page, stamp);
                self.model.write(page, stamp);
            }
        }
        Ok(())
    }

    fn fill(&self, page: usize, stamp: Stamp) {
        let words = self.words(page);
        for index in 0..WORDS {
            // SAFETY: the page is mapped and can be written, says the model; if it can't, the process ends.
            unsafe { words.wrapping_add(index).write_volatile(pattern(stamp, index)) };
        }
    }

    fn words(&self, page: usize) -> *mut u32 {
        ptr::with_exposed_provenance_mut(self.place.address(page))
    }

    /// Compares pages with the model: the content of those that can be read, and the faults of those that can't.
    pub(crate) fn verify(&mut self, range: Range<usize>) -> Outcome {
        for page in range {
            if self.model.fault(page, Access::Load).is_some() {
                self.check_fault(page, Access::Load)?;
            } else {
                self.check_content(page)?;
            }
        }
        Ok(())
    }

    /// Compares the whole window with the model; of neighbours that fault, only a few.
    pub(crate) fn verify_all(&mut self) -> Outcome {
        for page in 0..PAGES {
            if self.model.fault(page, Access::Load).is_none() {
                self.check_content(page)?;
            } else if page == 0 || self.model.fault(page - 1, Access::Load).is_none() || self.random.one_in(32) {
                self.check_fault(page, Access::Load)?;
            }
        }
        Ok(())
    }

    fn check_content(&self, page: usize) -> Outcome {
        let Some(mapped) = self.model.page(page) else { return Ok(()) };
        let (stamp, words) = (self.model.stamp(mapped), self.words(page));
        for index in 0..WORDS {
            // SAFETY: the page is mapped and can be read, says the model; if it can't, the process ends.
            let word = unsafe { words.wrapping_add(index).read_volatile() };
            let expected = pattern(stamp, index);
            check!(
                word == expected,
                "page {page} word {index} at {:#x}: {word:#x}, expected {expected:#x} of {mapped:?}",
                words.wrapping_add(index).addr()
            );
        }
        Ok(())
    }

    /// Makes an access to a page that has to fault.
    fn check_fault(&mut self, page: usize, access: Access) -> Outcome {
        let address = self.place.address(page) + 4 * self.random.below(WORDS as u64) as usize;
        let probed = probe(access, address, 0);
        let expected = self.model.fault(page, access).map(Probed::Faulted);
        check!(
            Some(probed) == expected,
            "page {page}: {access:?} at {address:#x}: {probed:x?}, expected {expected:?} of {:?}",
            self.model.page(page)
        );
        Ok(())
    }

    /// Executes a page, or sees that it can't be: as long as it has a pattern, and begins with a RET.
    pub(crate) fn execute(&mut self, page: usize) -> Outcome {
        let Some(mapped) = self.model.page(page).filter(|page| self.model.stamp(*page) != 0) else { return Ok(()) };
        let expected = self.model.fault(page, Access::Execute).map_or(Probed::Done(0), Probed::Faulted);
        let probed = probe(Access::Execute, self.place.address(page), 0);
        check!(probed == expected, "page {page}: execution: {probed:x?}, expected {expected:?} of {mapped:?}");
        Ok(())
    }

    /// Changes a word behind the model's back, for a test of this test. It takes a page that can be written.
    pub(crate) fn inject_content(&mut self, page: usize) {
        let word = self.words(page).wrapping_add(1);
        // SAFETY: the page is mapped and can be written, says the caller.
        let before = unsafe { word.read_volatile() };
        // SAFETY: as above.
        unsafe { word.write_volatile(!before) };
    }

    /// Maps a page behind the model's back.
    pub(crate) fn inject_mapping(&mut self, page: usize) -> Outcome {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        let mapping = Mapping { protection: PROT_READ, flags, file: 0, file_page: 0 };
        // SAFETY: the window's own memory.
        check_ok!(unsafe { sys::map(self.place.address(page), 1, mapping) });
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let reserved = Mapping { flags: RESERVED.flags | MAP_FIXED, ..RESERVED };
        // SAFETY: the window's own memory.
        let result = unsafe { sys::map(self.place.start, PAGES, reserved) };
        assert_eq!(result, Ok(self.place.start));
    }
}
