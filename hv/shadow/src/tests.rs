//! Random guests, compared with an oracle that walks the guest's tables for each access; and concurrent vCPUs, compared with the
//! results that the manual allows.

#[cfg(not(shuttle))]
mod cached;
#[cfg(not(shuttle))]
mod guest;
#[cfg(not(shuttle))]
mod many_pages;
#[cfg(not(shuttle))]
mod memory;
#[cfg(shuttle)]
mod models;
#[cfg(not(shuttle))]
mod oracle;
#[cfg(not(shuttle))]
mod registers;
#[cfg(not(shuttle))]
mod sequences;
#[cfg(not(shuttle))]
mod sharing;
#[cfg(not(shuttle))]
mod vtlb;
#[cfg(not(shuttle))]
mod work;
