//! Pages of a guest's memory that it can't access, because the registers of a vCPU's local APIC lie over them. Each access exits, and
//! is carried out for the vCPU: on its own APIC, or on the page. (Not so a fetch of instructions from it, and the delivery of an event
//! that accesses it: they end the VM by name.)

use crate::host::HostMemory;
use crate::rules::Rule;
use crate::sync::Mutex;
use crate::tree_env::{Nested, TreeEnv};
use crate::view::View;
use addr::{Gfn, PAGE_SIZE, PageSize, Pfn};
use core::sync::atomic::{AtomicBool, Ordering};
use loader::config::MAX_VCPUS;
use mmu::{Leaf, MapError, Rights, Room};
use model::kept;
use model::sync::{AtomicUsize, fence};

/// The page that each vCPU's APIC lies over, if that is memory.
pub(crate) struct HiddenPages {
    /// Held while an entry is installed beside one of them, so that it gets the rights that it is to have.
    pages: Mutex<[Option<Gfn>; MAX_VCPUS]>,
    /// How many of them there are, to be read without the lock: most guests never have any.
    count: AtomicUsize,
    /// Held while a page and its rights change, so that two vCPUs that change those of one page do not undo each other's. Taken before
    /// the shadow's lock, which `pages` is taken after.
    changing: Mutex<()>,
    /// It was said that a page can't be hidden.
    told: AtomicBool,
}

impl HiddenPages {
    pub(crate) const fn new() -> Self {
        Self {
            pages: Mutex::new([None; MAX_VCPUS]),
            count: AtomicUsize::new(0),
            changing: Mutex::new(()),
            told: AtomicBool::new(false),
        }
    }

    /// Whether one of them is in the page of `size` around `page`.
    #[inline]
    pub(crate) fn any_in(&self, page: Gfn, size: PageSize) -> bool {
        self.are_there_any() && in_page(&*self.pages.lock(), page, size).next().is_some()
    }

    /// Whether there is any. The answer is old when it comes.
    #[inline]
    fn are_there_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0
    }

    /// A VM begins anew: none is left.
    pub(crate) fn clear(&self) {
        *self.pages.lock() = [None; MAX_VCPUS];
        self.count.store(0, Ordering::Relaxed);
    }
}

fn in_page(pages: &[Option<Gfn>], page: Gfn, size: PageSize) -> impl Iterator<Item = Gfn> {
    let number = move |page: Gfn| page.raw() / size.frames();
    pages.iter().flatten().copied().filter(move |&hidden| number(hidden) == number(page))
}

impl<'m, F: Nested, H: HostMemory> View<'_, 'm, F, H> {
    /// Maps `frame` in `room`.
    #[inline]
    pub(crate) fn install(&self, room: Room<'_, TreeEnv<'m, F, H>>, frame: Pfn) -> Result<(), MapError> {
        if self.vm.hidden.are_there_any() {
            return self.install_beside_hidden(room, frame);
        }
        let installed = room.install(Leaf::new(frame, Rights::ALL));
        // Pairs with the fence in `hide`: either that finds the entry, or this finds that there is a page to be hidden.
        fence(Ordering::SeqCst);
        if self.vm.hidden.are_there_any() && kept(Rule::LookAgain) {
            self.hide_again();
        }
        installed
    }

    /// The same, with the rights that the page is to have. Where a hidden one is in a large page, it fails: the next fault maps a small
    /// one.
    #[cold]
    #[inline(never)]
    fn install_beside_hidden(&self, room: Room<'_, TreeEnv<'m, F, H>>, frame: Pfn) -> Result<(), MapError> {
        let pages = self.vm.hidden.pages.lock();
        let any = in_page(&*pages, room.start().frame(), room.size()).next();
        let _locked = kept(Rule::InstallLocked).then_some(pages);
        match (any, room.size()) {
            (None, _) => room.install(Leaf::new(frame, Rights::ALL)),
            (Some(_), PageSize::Size4K) => room.install(Leaf::new(frame, Rights::HIDDEN)),
            (Some(_), _) => Err(MapError::Raced),
        }
    }

    /// A page may have become hidden while it was mapped.
    #[cold]
    #[inline(never)]
    fn hide_again(&self) {
        let pages = self.vm.hidden.pages.lock();
        pages.iter().flatten().for_each(|&page| self.protect(page, Rights::HIDDEN));
    }

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
        fence(Ordering::SeqCst);
        self.change_frames(|| {
            shown.into_iter().for_each(|page| self.protect(page, Rights::ALL));
            page.into_iter().for_each(|page| self.protect(page, Rights::HIDDEN));
        });
    }

    /// Gives a small page these rights. A large page around it is split, for which one more try is made if there is no frame.
    fn protect(&self, page: Gfn, rights: Rights) {
        let range = page.start()..page.start().wrapping_add(PAGE_SIZE);
        let protect = || self.vm.tree.protect(&self.cpu, range.clone(), rights);
        let result = protect().or_else(|_| {
            self.give_back_at_once();
            protect()
        });
        if result.is_err() && !self.vm.hidden.told.swap(true, Ordering::Relaxed) {
            log::warn!("there is no frame for a table: where a local APIC should be, {page:?} is memory");
        }
    }
}
