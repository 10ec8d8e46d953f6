//! What this crate needs of the machine.

use crate::account::VmAccounts;
use crate::frames::FrameAllocator;
use addr::Hpa;
use mmu::TableDesc;
use rcu::Platform;
use sched::Heart;

/// The machine under its VMs' memory: page frames that a direct map covers, a descriptor beside each, and the CPUs whose grace
/// periods freed pages wait for. It is the platform of the machine's [`rcu::Domain`], so that a [`Cpu`](rcu::Cpu) leads to it.
///
/// The image implements it over the real machine, `arena::Arena` over a piece of the host's heap.
///
/// # Safety
/// As long as the value lives:
///
/// - Where frame n has a descriptor ([`descriptors`](Self::descriptors)`[n]`), [`direct`](Self::direct) of its first byte points
///   to [`PAGE_SIZE`](addr::PAGE_SIZE) bytes that can be read and written, and each of its other bytes lies as far behind that
///   as in the frame. The answer is always the same.
/// - Every frame that [`frames`](Self::frames) was given has a descriptor, and nothing but what takes it from there uses it: no
///   Rust object is in it, no device writes it.
/// - [`Platform::head`] of a page is [`TableDesc::head`] of the descriptor of its first frame.
pub unsafe trait HostMemory: Platform + Sync {
    /// The direct map's pointer to `at`. It need not be one to memory where no frame has a descriptor.
    fn direct(&self, at: Hpa) -> *mut u8;

    /// The descriptors of page frames, by frame number from 0.
    fn descriptors(&self) -> &[TableDesc];

    /// The machine's page frames.
    fn frames(&self) -> &FrameAllocator;

    /// What each VM has of them.
    fn accounts(&self) -> &VmAccounts;

    /// The heart of CPU `cpu`, which [`Memory::poll`](vm::Memory::poll) has beat.
    fn heart(&self, cpu: usize) -> &Heart;

    /// The table in frame `table`, if a table can be there. A model's atomics are larger than the processor's, and have no room
    /// in frames.
    #[cfg(shuttle)]
    fn table(&self, table: addr::Pfn) -> Option<&[mmu::AtomicU64; 512]>;
}
