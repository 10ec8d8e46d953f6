//! Quiescent-state-based RCU: tables are read without locks, and freed when nobody can be reading them any more.
//!
//! A CPU of the [`Domain`] reads under a [`Guard`], which costs nothing, and reports from time to time that it holds
//! none. A page that was unlinked waits, linked through its descriptor, until every CPU has done so, *and* until every
//! CPU whose hardware may walk it has flushed: both are one grace period, see [`Domain`] and [`Space`].
//!
//! ```
//! use rcu::{Domain, Flush, Head, Platform, Slot, Space, Tlb};
//! use addr::Pfn;
//!
//! struct Machine { descriptors: Vec<Head> }
//! impl Platform for Machine {
//!     fn head(&self, page: Pfn) -> &Head { &self.descriptors[page.raw() as usize] }
//!     fn kick(&self, _cpu: usize) {}
//!     fn now(&self) -> u64 { 0 }
//! }
//! let machine = Machine { descriptors: (0..8).map(|_| Head::new()).collect() };
//! let domain: Domain<_, [Slot; 2]> = Domain::new(machine, 64);
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
mod list;
pub mod rule;
mod space;
mod state;
mod sync;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

pub use cpu::{Cpu, Guard, Session};
pub use domain::{Domain, Platform, RegisterError, Slot, Stall, Stats};
pub use gather::{Backlog, Gather, Retired};
pub use list::Head;
pub use space::{Flush, Generation, Space, Tlb};
pub use state::Mode;
