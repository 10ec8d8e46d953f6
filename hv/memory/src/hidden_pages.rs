//! Pages of a guest's memory that it can't access, because the registers of a vCPU's local APIC lie over them. Each access exits, and
//! is carried out for the vCPU: on its own APIC, or on the page.

use crate::host::HostMemory;
use crate::sync::Mutex;
use crate::tree_env::Nested;
use crate::view::View;
use addr::{Gfn, PAGE_SIZE, PageSize};
use core::sync::atomic::{AtomicUsize, Ordering};
use loader::config::MAX_VCPUS;
use mmu::{RangeError, Rights};

/// The page that each vCPU's APIC lies over, if that is memory.
pub(crate) struct HiddenPages {
    pages: Mutex<[Option<Gfn>; MAX_VCPUS]>,
    /// How many of them there are, to be read without the lock: most guests never have any.
    count: AtomicUsize,
    /// Held while a page and its rights change, so that two vCPUs that change those of one page do not undo each other's.
    changing: Mutex<()>,
}

impl HiddenPages {
    pub(crate) const fn new() -> Self {
        Self { pages: Mutex::new([None; MAX_VCPUS]), count: AtomicUsize::new(0), changing: Mutex::new(()) }
    }

    /// The rights that a small page gets that is mapped anew.
    #[inline]
    pub(crate) fn rights(&self, page: Gfn) -> Rights {
        if self.any_in(page, PageSize::Size4K) { Rights::HIDDEN } else { Rights::ALL }
    }

    /// Whether one of them is in the page of `size` around `page`.
    #[inline]
    pub(crate) fn any_in(&self, page: Gfn, size: PageSize) -> bool {
        self.count.load(Ordering::Relaxed) != 0 && self.search(page, size)
    }

    #[cold]
    fn search(&self, page: Gfn, size: PageSize) -> bool {
        let number = |page: Gfn| page.raw() / size.frames();
        self.pages.lock().iter().flatten().any(|&hidden| number(hidden) == number(page))
    }

    /// A VM begins anew: none is left.
    pub(crate) fn clear(&self) {
        *self.pages.lock() = [None; MAX_VCPUS];
        self.count.store(0, Ordering::Relaxed);
    }
}

impl<F: Nested, H: HostMemory> View<'_, '_, F, H> {
    /// The registers of `vcpu`'s APIC are at `page` from now on, and no longer where they were before.
    #[cold]
    pub(crate) fn hide(&self, vcpu: usize, page: Option<Gfn>) {
        let hidden = &self.vm.hidden;
        let page = page.filter(|page| self.vm.ram.backs(page.start()));
        let _changing = hidden.changing.lock();
        let mut pages = hidden.pages.lock();
        let before = core::mem::replace(&mut pages[vcpu], page);
        if before == page {
            return;
        }
        hidden.count.store(pages.iter().flatten().count(), Ordering::Relaxed);
        let shown = before.filter(|before| !pages.contains(&Some(*before)));
        drop(pages);
        // It is mapped first: a fault that was begun before the page was hidden then finds that it has come too late.
        let _ = page.map(|page| self.touch_at_most(page.start(), PageSize::Size4K, false));
        for (page, rights) in [(shown, Rights::ALL), (page, Rights::HIDDEN)] {
            if let Some(page) = page
                && self.change_frames(|| self.protect(page, rights)).is_err()
            {
                log::warn!("no frame for a table: {page:?} is not where a local APIC's registers are");
            }
        }
    }

    fn protect(&self, page: Gfn, rights: Rights) -> Result<(), RangeError> {
        let start = page.start();
        self.vm.tree.protect(&self.cpu, start..start.wrapping_add(PAGE_SIZE), rights)
    }
}
