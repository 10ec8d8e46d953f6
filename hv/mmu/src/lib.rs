//! The tables that processors walk for a guest: EPT, nested (NPT) and PAE tables behind one API.
//!
//! All CPUs share a [`Tree`]. They read it without locks under an RCU [`Guard`](rcu::Guard), and change it under the
//! lock of the one table concerned, or by compare-and-exchange. A table that is unlinked is freed when no CPU walks it
//! any more, neither in software nor in hardware. A table that was found once may be gone at the next look, so all
//! accesses are fallible, as in Linux since `pte_offset_map` may fail.
//!
//! # How a hypervisor uses it
//!
//! **Once**: an array with a [`TableDesc`] for each frame that may become a table, a static [`rcu::Domain`] whose
//! [`Platform::head`](rcu::Platform::head) is `descs[pfn].head()`, and [`rcu::Cpu`]s from it. Each CPU calls
//! [`Cpu::poll`](rcu::Cpu::poll) regularly, which passes tables to return to the frame allocator.
//!
//! **For each VM**: a [`Tree`] with an [`Env`], which allocates frames, maps a frame to a `&[AtomicU64; 512]` (an
//! offset into the direct map), and owns the VM's [`rcu::Space`]. vCPUs enter the guest by
//! [`Cpu::guest`](rcu::Cpu::guest) with [`Tree::space`], flush when it demands that, and use [`Tree::root`] as nCR3 or
//! EPTP.
//!
//! **At a nested page fault**: [`Tree::fault`] walks without locks. It returns the page, if another CPU has mapped one
//! meanwhile, or a [`Room`] with the largest possible page there. The hypervisor allocates a frame of that size (or of
//! a smaller one, by [`Room::at_most`]) and calls [`Room::install`], which allocates nothing if the tables exist.
//!
//! **While it runs**: [`Tree::zap`], [`unmap`](Tree::unmap), [`protect`](Tree::protect), [`split`](Tree::split),
//! [`collapse`](Tree::collapse), [`age`](Tree::age), [`harvest`](Tree::harvest), [`dirty_log`](Tree::dirty_log) with
//! [`unprotect`](Tree::unprotect), [`report`](Tree::report). They flush before they report pages: no processor uses the
//! frame of a zapped page any more. [`Tree::share`] makes several trees use one table. [`Tree::replace`] and
//! [`Tree::collapse_into`] move content to other frames. If software reads guest memory without locks, a frame may be
//! reused only after a grace period ([`Cpu::call_rcu`](rcu::Cpu::call_rcu)). If software writes guest memory, it must
//! use [`Tree::write`].
//!
//! **At its end**: [`Tree::free_pgtables`] reports every page still mapped and frees all tables; a [`Teardown`] does it in
//! steps. `poll` passes the tables that were deferred before; [`Cpu::barrier`](rcu::Cpu::barrier) waits for them.
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
//! For access to single tables there are functions with Linux's names: [`Tree::find`] gives an [`EntryRef`] (the
//! `pmd_t *`), which gives the maps of the table below it.
//!
//! Locks are taken from the root down, two of one level in the order of their frames. No lock is held during the
//! allocation of a frame. A flush is awaited under a lock only while a page is copied: it waits for CPUs in guest mode,
//! and those do not wait for locks. A handler of an interrupt that may walk or change the same tree must not run while
//! a lock is held.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
extern crate std;

mod age;
mod entry;
mod env;
mod fault;
mod fault_injection;
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
mod spare;
mod split_entry;
mod teardown;
#[cfg(test)]
mod tests;
mod tree;
mod unlink;
mod zap_tables;

pub use entry::{Caps, Entry, Leaf, MemoryType, Pte, Rights, Soft};
pub use env::{BadEntry, Env, TableDesc};
pub use fault::{Fault, MapError, OutOfRange, Room};
pub use fault_injection::After;
#[cfg(any(test, loom, shuttle, fuzzing, feature = "pool"))]
pub use format::Toy;
pub use format::{Ept, Format, LongMode, Npt, Pae};
pub use huge::{CollapseError, SplitError};
pub use level::{Address, Level};
pub use map::{Changed, EntryRef, NoTable, PteLock, PteMap, PteMapLocked, PteMapRo, PteMapRw, PteReadLock};
pub use model::sync::AtomicU64;
pub use range::{Page, RangeError};
pub use replace::{ReplaceError, WriteError};
pub use report::Report;
pub use share::ShareError;
pub use split_entry::{Cleared, Empty, Interrupts, LocklessSync, SplitEntry};
pub use teardown::Teardown;
pub use tree::{NoMemory, Translation, Tree};
pub use zap_tables::ZappedTables;
