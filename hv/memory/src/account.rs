//! What VMs have of the machine's frames, and the way back of those that they gave up.

use crate::host::HostMemory;
use crate::pool::{CACHED, PREZEROED, Pool};
use crate::raw;
use crate::sync::Mutex;
use abi::memory::POISON;
use addr::{PAGE_SIZE, PageSize, Pfn};
use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loader::VmConfig;
use mmu::TableDesc;
use rcu::Cpu;

/// What one VM has of the machine's frames.
///
/// Pages that wait for a grace period are on lists of CPUs, not of VMs; the private data in each page's descriptor has the number
/// of the account that the page goes back to. So accounts are the machine's, and a VM takes one for as long as it lives.
pub(crate) struct Account {
    /// Its place among the machine's.
    number: u32,
    taken: AtomicBool,
    pub(crate) pool: Mutex<Pool>,
    /// Pages that had to wait for a grace period, so far.
    deferred: AtomicU64,
    /// Those of them that have come back.
    returned: AtomicU64,
    /// The most that waited at once.
    peak_backlog: AtomicU64,
    /// Operations on the tables so far, but for the faults that the pool counts.
    operations: AtomicU64,
}

/// How many VMs there can be at once.
const ACCOUNTS: usize = 64;

/// The accounts of a machine's VMs.
pub struct VmAccounts([Account; ACCOUNTS]);

impl VmAccounts {
    /// No VM has any.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for a static: only a constant function will do")]
    pub const fn new() -> Self {
        let mut accounts = [const { Account::new() }; ACCOUNTS];
        let mut number = 0;
        while number < ACCOUNTS {
            accounts[number].number = number as u32;
            number += 1;
        }
        Self(accounts)
    }
}

/// Pre-zeroed frames that are of use to a VM of this configuration.
fn prezeroed(config: &VmConfig) -> usize {
    PREZEROED.min((config.ram.bytes() / PAGE_SIZE) as usize)
}

/// What an account allocates when it is opened. It is all that it ever does.
pub(crate) fn allocations(config: &VmConfig) -> impl Iterator<Item = Layout> {
    [CACHED, prezeroed(config)].into_iter().filter_map(|frames| Layout::array::<Pfn>(frames).ok())
}

impl Account {
    const fn new() -> Self {
        Self {
            number: 0,
            taken: AtomicBool::new(false),
            pool: Mutex::new(Pool::new()),
            deferred: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            peak_backlog: AtomicU64::new(0),
            operations: AtomicU64::new(0),
        }
    }

    /// Takes a free account for a VM of this configuration. None if all are taken, or too few frames are left to reserve.
    pub(crate) fn open<'m, H: HostMemory>(host: &'m H, config: &VmConfig) -> Option<&'m Self> {
        let account = host.accounts().0.iter().find(|account| !account.taken.swap(true, Ordering::Acquire))?;
        let opened = account.pool.lock().open(host.frames(), prezeroed(config), config.promise() as usize);
        if opened.is_none() {
            account.close(host);
        }
        opened?;
        for counter in [&account.deferred, &account.returned, &account.peak_backlog, &account.operations] {
            counter.store(0, Ordering::Relaxed);
        }
        Some(account)
    }

    /// For another VM, unless frames are missing: they may still find their way here.
    pub(crate) fn close<H: HostMemory>(&self, host: &H) {
        let mut pool = self.pool.lock();
        pool.close(host.frames());
        if pool.outstanding() == 0 {
            self.taken.store(false, Ordering::Release);
        }
    }

    /// Records that the page of `size` whose first frame has the descriptor `desc` is about to wait for a grace period, and for
    /// `give_back` after that.
    pub(crate) fn retire(&self, desc: &TableDesc, size: PageSize) {
        desc.set_private(self.number << 8 | size.shift());
        let deferred = self.deferred.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak_backlog.fetch_max(deferred.saturating_sub(self.returned()), Ordering::Relaxed);
    }

    /// Counts `count` operations on the tables.
    pub(crate) fn count(&self, count: u64) {
        self.operations.fetch_add(count, Ordering::Relaxed);
    }

    /// Operations on the tables so far: faults served, pages zapped, splits, collapses, replacements, log rounds, and the pages
    /// that these write-protect.
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed) + self.pool.lock().touched()
    }

    /// Pages that have come back from there, so far.
    pub(crate) fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Pages that had to wait for a grace period, so far.
    pub(crate) fn deferred(&self) -> u64 {
        self.deferred.load(Ordering::Relaxed)
    }

    /// Pages that wait for one now.
    pub(crate) fn backlog(&self) -> u64 {
        self.deferred().saturating_sub(self.returned())
    }

    /// The most that waited at once.
    pub(crate) fn peak_backlog(&self) -> u64 {
        self.peak_backlog.load(Ordering::Relaxed)
    }
}

/// What one poll between a guest's instructions fills with poison at most, in bytes, or one page more. It is little, as the
/// pages may be another VM's, which gives most of them back in its own time.
pub(crate) const POLL: u64 = 8 * PAGE_SIZE;
/// The same while the CPU has no guest to run.
pub(crate) const POLL_IDLE: u64 = 128 * PAGE_SIZE;

/// Gives back pages that waited on this CPU for a grace period that has ended, whichever VMs had them. To be called before the
/// CPU sleeps, and when it was interrupted: a kick may have asked for it.
pub fn poll_idle<H: HostMemory>(cpu: &Cpu<'_, H>) {
    give_back_some(cpu, POLL_IDLE);
}

/// The same before a guest is run, which it delays: few pages at once.
pub fn poll<H: HostMemory>(cpu: &Cpu<'_, H>) {
    give_back_some(cpu, POLL);
}

/// Gives back pages that have waited long enough, until `most` bytes are filled with poison.
pub(crate) fn give_back_some<H: HostMemory>(cpu: &Cpu<'_, H>, most: u64) {
    let host = cpu.domain().platform();
    let mut filled = 0;
    while filled < most && cpu.poll(1, |page| filled += give_back(host, page)) != 0 {}
}

const CACHE_LINE: u64 = 64;

/// Gives a page back whose grace period is over, whichever VM had it: what every CPU's `poll` calls. Returns the number of bytes
/// that it has filled with poison, which a CPU finds that still reads the page. Of a large page only the first cache line of each
/// 4 KiB is filled: all of it would take hundreds of microseconds, perhaps of another VM's slice.
pub(crate) fn give_back<H: HostMemory>(host: &H, page: Pfn) -> u64 {
    let Some(desc) = host.descriptors().get(page.raw() as usize) else { return 0 };
    let account = host.accounts().0.get((desc.private() >> 8) as usize);
    let size = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
    let size = size.into_iter().find(|size| size.shift() == desc.private() & 0xff);
    let (Some(account), Some(size)) = (account, size) else { return 0 };
    let bytes = if size == PageSize::Size4K { PAGE_SIZE } else { CACHE_LINE };
    for frame in 0..size.frames() {
        // SAFETY: the page is still in the VM's account, and its grace period is over.
        unsafe { raw::fill(host, page.add(frame), 0..bytes, POISON) };
    }
    account.pool.lock().free(host.frames(), page, size);
    account.returned.fetch_add(1, Ordering::Relaxed);
    bytes * size.frames()
}
