//! Quiescent-state-based RCU: CPUs read tables without locks, and a table is freed when no CPU can be reading it any
//! more.
//!
//! A CPU of the [`Domain`] reads under a [`Guard`], which costs nothing, and reports quiescent states, in which it
//! holds no guard. An unlinked page is queued, linked through its descriptor, until every CPU has reported a quiescent
//! state *and* every CPU whose hardware may walk the page has flushed. One grace period covers both, see [`Domain`] and
//! [`Space`].
//!
//! ```
//! use rcu::{CpuData, Domain, Flush, Head, Platform, Space, Tlb};
//! use addr::Pfn;
//!
//! struct ExamplePlatform { descriptors: Vec<Head> }
//! impl Platform for ExamplePlatform {
//!     fn head(&self, page: Pfn) -> &Head { &self.descriptors[page.raw() as usize] }
//!     fn kick(&self, _cpu: usize) {}
//!     fn now(&self) -> u64 { 0 }
//! }
//! let platform = ExamplePlatform { descriptors: (0..8).map(|_| Head::new()).collect() };
//! let domain: Domain<_, [CpuData; 2]> = Domain::new(platform, 64);
//! let space = Space::new(&domain);
//! let mut cpu = domain.register(0).unwrap();
//!
//! let guard = cpu.read();               // walk tables
//! cpu.defer(&space, Pfn::new(3));       // unlinked: free it later
//! assert_eq!(cpu.poll(8, |_| unreachable!("this CPU may still hold it")), 0);
//!
//! let mut tlb = Tlb::new();
//! cpu.guest(&space, &mut tlb, |flush| assert_eq!(flush, Flush::Needed));
//! cpu.poll(8, |page| assert_eq!(page, Pfn::new(3)));
//! assert_eq!(cpu.backlog(), 0);
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom, shuttle))]
extern crate std;

mod cpu;
mod domain;
mod gather;
mod line;
mod list;
pub mod rules;
mod space;
mod state;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub use cpu::{Cpu, Guard, Session};
pub use domain::{CpuData, Domain, Platform, RegisterError, Stall, Stats};
pub use gather::{Backlog, Gather, Retired};
pub use list::Head;
pub use space::{Flush, Generation, Space, Tlb};
pub use state::Mode;
