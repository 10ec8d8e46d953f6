//! What a window's pages hold and permit, by the rules of mmap(2), mremap(2) and madvise(2).

use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use linux_raw_sys::general::{PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::probe::{Access, FaultCause};
use crate::random::Random;

/// The pages of a window.
pub(crate) const PAGES: usize = 2048;
/// The pages of a window's file.
pub(crate) const FILE_PAGES: usize = 256;

/// What a page holds, by one number: 0 is a page of zeros, any other a pattern.
pub(crate) type Stamp = u32;

/// What a page permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    None,
    Read,
    ReadWrite,
    ReadExecute,
    ReadWriteExecute,
}

impl Protection {
    /// As PROT_*.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::None => PROT_NONE,
            Self::Read => PROT_READ,
            Self::ReadWrite => PROT_READ | PROT_WRITE,
            Self::ReadExecute => PROT_READ | PROT_EXEC,
            Self::ReadWriteExecute => PROT_READ | PROT_WRITE | PROT_EXEC,
        }
    }

    /// One by chance; most can be written.
    pub(crate) fn any(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Self::None,
            1 => Self::Read,
            2 => Self::ReadExecute,
            3 => Self::ReadWriteExecute,
            _ => Self::ReadWrite,
        }
    }

    fn permits(self, access: Access, no_execute: bool) -> bool {
        match access {
            Access::Load => self.bits() & PROT_READ != 0,
            Access::Store => self.bits() & PROT_WRITE != 0,
            Access::Execute if no_execute => self.bits() & PROT_EXEC != 0,
            Access::Execute => self.bits() & PROT_READ != 0,
        }
    }
}

/// What a page is mapped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Anonymous,
    /// A page of the window's file, MAP_SHARED.
    Shared(usize),
    /// A page of the window's file, MAP_PRIVATE.
    Private(usize),
}

impl Backing {
    /// What the page `count` pages further on is mapped from.
    pub(crate) const fn further(self, count: usize) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::Shared(page) => Self::Shared(page + count),
            Self::Private(page) => Self::Private(page + count),
        }
    }
}

/// A mapped page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) protection: Protection,
    pub(crate) backing: Backing,
    /// What was written to it, if it is no shared page.
    written: Option<Stamp>,
}

/// The model of a window.
pub(crate) struct Model<'f> {
    pages: [Option<Page>; PAGES],
    /// What the file's pages hold. It is in memory that processes share, as the file is.
    file: &'f [AtomicU32; FILE_PAGES],
    no_execute: bool,
}

impl<'f> Model<'f> {
    /// A window in which nothing is mapped.
    pub(crate) fn new(file: &'f [AtomicU32; FILE_PAGES], no_execute: bool) -> Self {
        Self { pages: [None; PAGES], file, no_execute }
    }

    /// What is mapped there.
    pub(crate) fn page(&self, index: usize) -> Option<Page> {
        self.pages[index]
    }

    /// FaultCause an access there faults; None: it does not.
    pub(crate) fn fault(&self, index: usize, access: Access) -> Option<FaultCause> {
        match self.pages[index] {
            None => Some(FaultCause::Unmapped),
            Some(page) if page.protection.permits(access, self.no_execute) => None,
            Some(_) => Some(FaultCause::Forbidden),
        }
    }

    /// What a mapped page holds.
    pub(crate) fn stamp(&self, page: Page) -> Stamp {
        match page.backing {
            Backing::Shared(file_page) => self.file[file_page].load(Relaxed),
            Backing::Private(file_page) => page.written.unwrap_or_else(|| self.file[file_page].load(Relaxed)),
            Backing::Anonymous => page.written.unwrap_or(0),
        }
    }

    pub(crate) fn map(&mut self, range: Range<usize>, protection: Protection, backing: Backing) {
        for (offset, page) in self.pages[range].iter_mut().enumerate() {
            *page = Some(Page { protection, backing: backing.further(offset), written: None });
        }
    }

    pub(crate) fn unmap(&mut self, range: Range<usize>) {
        self.pages[range].fill(None);
    }

    /// Protects up to the first page that is not mapped; whether there is one.
    pub(crate) fn protect(&mut self, range: Range<usize>, protection: Protection) -> bool {
        for page in &mut self.pages[range] {
            match page {
                Some(page) => page.protection = protection,
                None => return true,
            }
        }
        false
    }

    /// Forgets what was written (MADV_DONTNEED); whether a page was not mapped.
    pub(crate) fn discard(&mut self, range: Range<usize>) -> bool {
        let mut has_hole = false;
        for page in &mut self.pages[range] {
            match page {
                Some(page) => page.written = None,
                None => has_hole = true,
            }
        }
        has_hole
    }

    /// Moves pages; with `keep`, the old place stays mapped, with nothing written to it (MREMAP_DONTUNMAP).
    pub(crate) fn relocate(&mut self, from: Range<usize>, to: usize, keep: bool) {
        for (offset, index) in from.enumerate() {
            let page = self.pages[index];
            self.pages[to + offset] = page;
            self.pages[index] = page.filter(|_| keep).map(|page| Page { written: None, ..page });
        }
    }

    /// Writes the whole page, which is mapped.
    pub(crate) fn write(&mut self, index: usize, stamp: Stamp) {
        let Some(page) = &mut self.pages[index] else { return };
        match page.backing {
            Backing::Shared(file_page) => self.file[file_page].store(stamp, Relaxed),
            Backing::Anonymous | Backing::Private(_) => page.written = Some(stamp),
        }
    }

    /// Makes a page of the file zero (MADV_REMOVE).
    pub(crate) fn punch(&mut self, file_page: usize) {
        self.file[file_page].store(0, Relaxed);
    }
}
