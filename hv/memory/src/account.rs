//! What VMs have of the machine's frames, and the way back of those that they gave up.

use crate::frames::{self, Pool};
use crate::paging;
use crate::rcu_domain;
use addr::{PAGE_SIZE, PageSize, Pfn};
use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loader::VmConfig;
use mmu::TableDesc;
use spin::Mutex;

/// What one VM has of the machine's frames.
///
/// Pages that wait for a grace period are on lists of CPUs, not of VMs; each page's descriptor has a note of the account that
/// it goes back to. So accounts are statics, which a VM takes for as long as it lives.
pub(super) struct Account {
    taken: AtomicBool,
    pub(super) pool: Mutex<Pool>,
    /// Pages that were to wait for a grace period, so far.
    deferred: AtomicU64,
    /// Those of them that have come back.
    returned: AtomicU64,
    /// The most that waited at once.
    peak_backlog: AtomicU64,
    /// Operations on the tables so far, but for the faults that the pool counts.
    operations: AtomicU64,
}

/// As many VMs as can be at once.
const ACCOUNTS: usize = 64;

static ACCOUNT: [Account; ACCOUNTS] = [const { Account::new() }; ACCOUNTS];

/// What a freed page holds, byte by byte: Linux's POISON_FREE (include/linux/poison.h).
const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;

/// Zeroed frames that are of use to a VM of this configuration.
fn stock(config: &VmConfig) -> usize {
    frames::STOCK.min((config.ram.bytes() / PAGE_SIZE) as usize)
}

/// What an account allocates when it is opened. It is all that it ever does.
pub(super) fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
    [frames::CACHED, stock(config)].into_iter().filter_map(|frames| Layout::array::<Pfn>(frames).ok())
}

impl Account {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            pool: Mutex::new(Pool::new()),
            deferred: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            peak_backlog: AtomicU64::new(0),
            operations: AtomicU64::new(0),
        }
    }

    /// An account that no VM has, for one of this configuration. None if what it is promised is not there.
    pub(super) fn open(config: &VmConfig) -> Option<&'static Self> {
        let account = ACCOUNT.iter().find(|account| !account.taken.swap(true, Ordering::Acquire))?;
        let opened = account.pool.lock().open(stock(config), config.promise() as usize);
        if opened.is_none() {
            account.close();
        }
        opened?;
        for counter in [&account.deferred, &account.returned, &account.peak_backlog, &account.operations] {
            counter.store(0, Ordering::Relaxed);
        }
        Some(account)
    }

    /// For another VM, unless frames are missing: they may still find their way here.
    pub(super) fn close(&self) {
        let mut pool = self.pool.lock();
        pool.close();
        if pool.outstanding() == 0 {
            self.taken.store(false, Ordering::Release);
        }
    }

    /// Notes that the page of `size` whose first frame has the descriptor `desc` is about to wait for a grace period, and for
    /// [`give_back`] after that.
    pub(super) fn retire(&self, desc: &TableDesc, size: PageSize) {
        let index = (core::ptr::from_ref(self).addr() - ACCOUNT.as_ptr().addr()) / size_of::<Self>();
        desc.set_note((index as u32) << 8 | size.shift());
        let deferred = self.deferred.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak_backlog.fetch_max(deferred.saturating_sub(self.returned()), Ordering::Relaxed);
    }

    /// Notes `count` operations on the tables.
    pub(super) fn count(&self, count: u64) {
        self.operations.fetch_add(count, Ordering::Relaxed);
    }

    /// Operations on the tables so far: faults served, pages zapped, splits, collapses, replacements, log rounds, and the pages
    /// that these write-protect.
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed) + self.pool.lock().touched()
    }

    fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Pages that were to wait for a grace period, so far.
    pub(super) fn deferred(&self) -> u64 {
        self.deferred.load(Ordering::Relaxed)
    }

    /// Pages that wait for one now.
    pub(super) fn backlog(&self) -> u64 {
        self.deferred().saturating_sub(self.returned())
    }

    /// The most that waited at once.
    pub(super) fn peak_backlog(&self) -> u64 {
        self.peak_backlog.load(Ordering::Relaxed)
    }
}

/// Gives a page back whose grace period is over, whichever VM's it was: what every CPU's `poll` calls. A CPU that should still
/// see it finds poison: in all of a small page, and in the first cache line of each 4 KiB of a larger one, which takes
/// hundreds of microseconds to fill, and may be another VM's time. How many bytes were filled.
pub(super) fn give_back(page: Pfn) -> u64 {
    let Some(desc) = rcu_domain::descriptors().get(page.raw() as usize) else { return 0 };
    let mut filled = 0;
    let account = ACCOUNT.get((desc.note() >> 8) as usize);
    let size = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    let size = size.into_iter().find(|size| size.shift() == desc.note() & 0xff);
    if let (Some(account), Some(size)) = (account, size) {
        let bytes = if size == PageSize::Size4K { PAGE_SIZE } else { CACHE_LINE };
        filled = bytes * size.frames();
        for frame in 0..size.frames() {
            // SAFETY: no CPU can reach the page any more, and the direct map covers it.
            unsafe { super::fill(paging::direct(page.add(frame).start()), bytes, POISON) };
        }
        account.pool.lock().free(page, size);
        account.returned.fetch_add(1, Ordering::Relaxed);
    }
    filled
}

const CACHE_LINE: u64 = 64;
