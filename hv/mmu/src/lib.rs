//! The tables that processors walk for a guest: EPT, nested (NPT) and PAE tables behind one API.
//!
//! A [`Tree`] is shared by all CPUs. It is read without locks under an RCU [`Guard`](rcu::Guard); it is changed under the
//! lock of the one table concerned, or by compare-and-exchange; a table that is taken out is given back when no CPU walks it
//! any more, neither in software nor in hardware. Nobody assumes that a table seen once is still there: all access is
//! fallible, as in Linux since `pte_offset_map` may fail.
//!
//! # How a hypervisor uses it
//!
//! **Once**: an array with a [`TableDesc`] for each frame that may become a table, a static [`rcu::Domain`] whose
//! [`Platform::head`](rcu::Platform::head) is `descs[pfn].head()`, and [`rcu::Cpu`]s from it. Each CPU calls
//! [`Cpu::poll`](rcu::Cpu::poll) now and then; what that hands out are tables to give back to the frame allocator.
//!
//! **For each VM**: a [`Tree`] of an [`Env`], which says where frames come from and how a frame becomes a
//! `&[AtomicU64; 512]` (an offset into the direct map), and owns the VM's [`rcu::Space`]. vCPUs enter the guest by
//! [`Cpu::guest`](rcu::Cpu::guest) with [`Tree::space`], flush when that says so, and use [`Tree::root`] as nCR3 or EPTP.
//!
//! **At a nested page fault**: [`Tree::fault`] looks without locks. It answers with the page, if there is one by now, or with
//! [`Room`], which says how large a page could be and where it would begin; the hypervisor takes a frame of that size (or asks
//! for [`Room::at_most`] a smaller one) and [`Room::install`]s it. Where the tables exist that allocates nothing.
//!
//! **While it runs**: [`Tree::zap`], [`unmap`](Tree::unmap), [`protect`](Tree::protect), [`split`](Tree::split),
//! [`collapse`](Tree::collapse), [`harvest`](Tree::harvest), [`dirty_log`](Tree::dirty_log) with
//! [`unprotect`](Tree::unprotect), [`report`](Tree::report). What they hand out has been flushed: no processor uses a
//! zapped page's frame any more. [`Tree::share`] lets several trees have one table. [`Tree::replace`] and
//! [`Tree::collapse_into`] move content to other frames. Where software reads guest memory without locks, frames are free for
//! other use after a grace period only ([`Cpu::call_rcu`](rcu::Cpu::call_rcu)); where it writes, it does so by [`Tree::write`].
//!
//! **At its end**: [`Tree::free_pgtables`] hands out every page still mapped and gives all tables back. Tables that were
//! deferred before come back through `poll`; [`Cpu::barrier`](rcu::Cpu::barrier) waits for them.
//!
//! ```
//! use addr::{Gpa, PageSize, Pfn};
//! use mmu::{AtomicU64, BadEntry, Caps, Env, Fault, Leaf, Npt, Rights, TableDesc, Tree};
//! use rcu::{Domain, Head, Platform, CpuData, Space};
//!
//! /// A machine with 16 frames for tables, which are frames 0 to 15.
//! struct Frames {
//!     tables: [[AtomicU64; 512]; 16],
//!     descs: [TableDesc; 16],
//!     next: std::sync::atomic::AtomicU64,
//! }
//! # static FRAMES: Frames = Frames {
//! #     tables: [const { [const { AtomicU64::new(0) }; 512] }; 16],
//! #     descs: [const { TableDesc::new() }; 16],
//! #     next: std::sync::atomic::AtomicU64::new(0),
//! # };
//! struct ExamplePlatform;
//! impl Platform for ExamplePlatform {
//!     fn head(&self, page: Pfn) -> &Head { FRAMES.descs[page.raw() as usize].head() }
//!     fn kick(&self, _cpu: usize) { /* an interrupt */ }
//!     fn now(&self) -> u64 { /* the time stamp counter */ 0 }
//! }
//! static RCU: Domain<ExamplePlatform, [CpuData; 1]> = Domain::new(ExamplePlatform, 1024);
//!
//! struct Vm { space: Space }
//! impl Env for Vm {
//!     type Format = Npt;
//!     type Platform = ExamplePlatform;
//!     fn alloc_table(&self) -> Option<Pfn> {
//!         let next = FRAMES.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
//!         (next < 16).then_some(Pfn::new(next))
//!     }
//!     fn free_table(&self, table: Pfn) { /* to the allocator */ }
//!     fn table(&self, pfn: Pfn) -> Option<&[AtomicU64; 512]> { FRAMES.tables.get(pfn.raw() as usize) }
//!     fn desc(&self, pfn: Pfn) -> Option<&TableDesc> { FRAMES.descs.get(pfn.raw() as usize) }
//!     fn space(&self) -> &Space { &self.space }
//!     fn bad(&self, entry: BadEntry<Gpa>) { eprintln!("{entry:?}") }
//! }
//!
//! let cpu = RCU.register(0).unwrap();
//! let tree = Tree::new(Vm { space: Space::new(&RCU) }, Caps::new(48, PageSize::Size2M, true)).unwrap();
//!
//! // A nested page fault at this address; frames of 2 MiB may be used where they fit.
//! let gpa = Gpa::new(0x20_1234);
//! match tree.fault(cpu.read(), gpa, PageSize::Size2M).unwrap() {
//!     Fault::Present(_) => unreachable!("another CPU's fault came first"),
//!     Fault::Room(room) => {
//!         assert_eq!((room.start(), room.size()), (Gpa::new(0x20_0000), PageSize::Size2M));
//!         let frame = Pfn::new(0x8000); // 512 frames from the allocator; given back if `install` fails
//!         room.install(Leaf::new(frame, Rights::ALL)).unwrap();
//!     }
//! }
//! assert_eq!(tree.translate(cpu.read(), gpa).unwrap().hpa, addr::Hpa::new(0x800_1234));
//! assert_eq!(tree.report(cpu.read()).to_string(), "2M rwxu: 1, tables: 3");
//!
//! let mut back = Vec::new();
//! tree.free_pgtables(|start, size, leaf| back.push((start, size, leaf.pfn)));
//! assert_eq!(back, [(Gpa::new(0x20_0000), PageSize::Size2M, Pfn::new(0x8000))]);
//! ```
//!
//! # The offset maps
//!
//! Below those stand Linux's own words, for whoever wants one table: [`Tree::find`] gives the [`EntryRef`] of an entry (the
//! `pmd_t *`), and that the maps of the table below it.
//!
//! Locks are taken from above to below, two of one level in the order of their frames; no lock is held while a frame is
//! allocated. A flush is awaited under a lock only where a page is copied: the CPUs that it waits for are in guest mode, and
//! those that wait for the lock are not. Interrupts that may walk or change the same tree have to be off while a lock is held.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
extern crate std;

mod entry;
mod env;
mod fault;
mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod huge;
mod level;
mod map;
#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
pub mod pool;
mod range;
mod replace;
mod report;
mod rules;
mod share;
mod skip;
mod spare;
mod split_entry;
mod sync;
#[cfg(test)]
mod tests;
mod tree;

pub use entry::{Caps, Entry, Leaf, MemoryType, Pte, Rights, Soft};
pub use env::{BadEntry, Env, TableDesc};
pub use fault::{Fault, MapError, OutOfRange, Room};
#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
pub use format::Toy;
pub use format::{Ept, Format, LongMode, Npt, Pae};
pub use huge::{CollapseError, SplitError};
pub use level::{Address, Level};
pub use map::{Changed, EntryRef, NoTable, PteLock, PteMap, PteMapLocked, PteMapRo, PteMapRw, PteReadLock};
pub use range::{Page, RangeError};
pub use replace::{ReplaceError, WriteError};
pub use report::Report;
pub use share::ShareError;
pub use skip::After;
pub use split_entry::{Cleared, Empty, Interrupts, LocklessSync, SplitEntry};
pub use sync::AtomicU64;
pub use tree::{NoMemory, Translation, Tree};
