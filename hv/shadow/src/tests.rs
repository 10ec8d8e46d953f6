//! Random guests, compared with an oracle that walks the guest's tables for each access; and concurrent vCPUs, compared with the
//! results that the manual allows.

#[cfg(not(any(loom, shuttle)))]
mod cached;
#[cfg(not(any(loom, shuttle)))]
mod guest;
#[cfg(not(any(loom, shuttle)))]
mod many_pages;
#[cfg(not(any(loom, shuttle)))]
mod memory;
#[cfg(shuttle)]
mod models;
#[cfg(not(any(loom, shuttle)))]
mod oracle;
#[cfg(not(any(loom, shuttle)))]
mod registers;
#[cfg(not(any(loom, shuttle)))]
mod resolve;
#[cfg(not(any(loom, shuttle)))]
mod sequences;
#[cfg(not(any(loom, shuttle)))]
mod sharing;
#[cfg(loom)]
mod suspended;
#[cfg(not(any(loom, shuttle)))]
mod vtlb;
#[cfg(shuttle)]
mod vtlb_models;
#[cfg(not(any(loom, shuttle)))]
mod work;
