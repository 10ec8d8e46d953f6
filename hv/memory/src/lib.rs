//! A VM's memory: frames on first touch, behind nested or shadow tables, given back and accounted for.
//!
//! ```text
//!   vCPU's slice ──▶ View ──────▶ VmMemory ──┬─▶ Tree         what the guest's memory is (mmu)
//!                    one vCPU      shared by  ├─▶ ShadowTrees  without nested paging: what is walked (shadow)
//!                    on one CPU    all vCPUs  └─▶ Account      the VM's pool of frames, and its figures
//!                                                    │
//!   HostMemory: direct map, descriptors, CPUs ◀────────────┴─▶ FrameAllocator   all VMs' frames
//! ```
//!
//! [`HostMemory`] is the machine under it: the image implements it over the real one, `arena::Arena` over a piece of the heap, for
//! tests. It is the platform of the machine's [`rcu::Domain`], so all begins with a CPU of that.
//!
//! A [`View`] is what the rest of the hypervisor has of a VM's memory: [`vm::Memory`] to the handlers of exits, [`walk::PhysMem`]
//! and [`walk::HandleMem`] to walks of the guest's own tables, [`loader::GuestMemory`] to the loader.
//!
//! ```
//! use addr::{Gpa, PageSize};
//! use loader::{GuestRam, VmConfig};
//! use memory::arena::Arena;
//! use memory::{HostMemory, ViewState, VmMemory};
//! use mmu::{Caps, Npt};
//! use rcu::Tlb;
//! use vm::{Memory, NestedFault, Resolved};
//! use walk::PhysMem;
//!
//! // A machine with 8 MiB of memory, and the first of its CPUs.
//! let domain = Arena::domain(2048);
//! let mut cpu = domain.register(0).unwrap();
//!
//! // A VM with 4 MiB, by pages of 4 KiB.
//! let config = VmConfig { ram: GuestRam::new(4 << 20).unwrap(), ..VmConfig::nth(0) };
//! let caps = Caps::new(48, PageSize::Size4K, true);
//! let memory = VmMemory::<Npt, _>::new(&mut cpu, &config, (caps, caps), None).expect("there are frames");
//!
//! // A vCPU's slice on that CPU.
//! let (mut tlb, state) = (Tlb::new(), ViewState::new());
//! let mut view = memory.view_of(0, &mut cpu, &mut tlb, &state);
//!
//! // The guest touches a page: it gets a frame of zeroes, and the guest's instruction runs again.
//! let at = Gpa::new(0x12_3000);
//! assert_eq!(view.fault(NestedFault::new(at, true, false, false)), Resolved::Retry);
//! view.guest(|flush| assert!(flush, "nothing is known of the tag yet"));
//! assert_eq!(view.read_u64(at), Some(0));
//!
//! // Software writes to another one, which gets its frame by that.
//! PhysMem::write(&view, Gpa::new(0x20_0ffe), b"hi").unwrap();
//! assert_eq!(view.read_u64(Gpa::new(0x40_0000)), None, "there is no memory");
//!
//! assert_eq!(memory.report(&cpu).to_string(), "4K rwxu: 2, tables: 5");
//! assert_eq!(memory.free(&mut cpu).accounts.left, 0);
//! ```
//!
//! # When a frame is free for other use
//!
//! A page that is taken from a running guest is unlinked from the tree, flushed from every processor's translations, and then waits
//! for a grace period: another CPU may be copying from its frame through the direct map. All of a [`View`]'s methods that take
//! `&self` are RCU read sections, as no quiescent state can be reported before they end. [`poll_idle`] and
//! [`vm::Memory::poll`] give pages back whose grace period is over.
//!
//! # When no frame is left
//!
//! A fault, or an operation on the tables, that finds no frame leaves all as it was, waits for what the VM has waiting for a grace
//! period, and tries once more. Tests plan failures of single allocations, see [`abi::hypercall::TestCall::FailAllocations`].
//!
//! # Guest memory and Rust
//!
//! Guest memory is never referenced: it is copied by instructions of the processor's own, or accessed as atomics. All such accesses
//! are in the file `raw.rs`, whose documentation has the argument.
#![no_std]

extern crate alloc;
#[cfg(any(test, fuzzing, shuttle, feature = "arena"))]
extern crate std;

mod account;
#[cfg(any(test, fuzzing, feature = "arena"))]
pub mod arena;
mod clear;
mod ending;
mod frames;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hidden_pages;
mod host;
mod pool;
mod raw;
mod restart;
mod rules;
mod shadow_paging;
mod shadow_trees;
mod sync;
mod test_calls;
#[cfg(test)]
mod tests;
mod tree_env;
mod view;
mod vm_iface;
mod vm_memory;

pub use account::{VmAccounts, poll, poll_idle};
pub use ending::{Ending, EndingStatus, EndingTimes, Freed};
pub use frames::{FrameAllocator, carve};
pub use host::HostMemory;
pub use raw::DirectPtr;
pub use restart::{Restart, RestartStatus};
pub use tree_env::Nested;
pub use view::{Path, View, ViewState};
pub use vm_memory::VmMemory;
