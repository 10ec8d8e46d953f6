//! The surroundings of a VM's tables: where their frames come from and go to.

use crate::account::Account;
use crate::host::HostMemory;
use crate::raw;
use addr::{Gpa, PageSize, Pfn};
use core::fmt;
use core::marker::PhantomData;
use mmu::{BadEntry, Env, Format, TableDesc};
use rcu::{Domain, Space};

/// The surroundings of one tree of a VM's, nested or shadow.
pub(crate) struct TreeEnv<'m, F, H> {
    pub(crate) host: &'m H,
    pub(crate) descriptors: &'m [TableDesc],
    pub(crate) account: &'m Account,
    space: Space,
    format: PhantomData<fn() -> F>,
}

impl<'m, F, H: HostMemory> TreeEnv<'m, F, H> {
    /// For a tree whose frames are counted in `account`, on the machine of `domain`.
    pub(crate) fn new(domain: &'m Domain<H>, account: &'m Account) -> Self {
        let host = domain.platform();
        Self { host, descriptors: host.descriptors(), account, space: Space::new(domain), format: PhantomData }
    }

    /// Takes a page of `size` for this VM. What it holds is undefined.
    pub(crate) fn alloc(&self, size: PageSize) -> Option<Pfn> {
        self.account.pool.lock().alloc(self.host.frames(), size)
    }

    /// Gives back a page at once, which no CPU can reach.
    pub(crate) fn free(&self, page: Pfn, size: PageSize) {
        self.account.pool.lock().free(self.host.frames(), page, size);
    }
}

impl<F: Format, H> TreeEnv<'_, F, H> {
    /// Whether the root has to lie below 4 GiB.
    const HAS_LOW_ROOT: bool = F::ROOT_END <= 1 << 32;
}

impl<F: Format<Table = [mmu::AtomicU64; 512], Input: fmt::Display>, H: HostMemory> Env for TreeEnv<'_, F, H> {
    type Format = F;
    type Platform = H;

    fn alloc_table(&self) -> Option<Pfn> {
        self.alloc(PageSize::Size4K)
    }

    fn alloc_root(&self) -> Option<Pfn> {
        if Self::HAS_LOW_ROOT { self.account.pool.lock().alloc_root(self.host.frames()) } else { self.alloc_table() }
    }

    fn free_table(&self, table: Pfn) {
        if Self::HAS_LOW_ROOT && self.host.frames().is_root(table) {
            self.account.pool.lock().free_root(self.host.frames(), table);
        } else {
            self.free(table, PageSize::Size4K);
        }
    }

    fn retire(&self, table: Pfn) {
        if let Some(desc) = self.desc(table) {
            self.account.retire(desc, PageSize::Size4K);
        }
    }

    #[inline]
    fn table(&self, pfn: Pfn) -> Option<&F::Table> {
        raw::table(self.host, self.descriptors, pfn)
    }

    #[inline]
    fn desc(&self, pfn: Pfn) -> Option<&TableDesc> {
        self.descriptors.get(pfn.raw() as usize)
    }

    #[inline]
    fn space(&self) -> &Space {
        &self.space
    }

    fn bad(&self, entry: BadEntry<F::Input>) {
        log::error!("bad entry {:?} of level {:?} at {}", entry.pte, entry.level, entry.at);
    }
}

/// A format of nested tables: 512 entries in a frame, for guest-physical addresses.
pub trait Nested: Format<Input = Gpa, Table = [mmu::AtomicU64; 512]> {}

impl<F: Format<Input = Gpa, Table = [mmu::AtomicU64; 512]>> Nested for F {}
