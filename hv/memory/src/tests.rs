//! A VM's memory over an arena.

#[cfg(not(shuttle))]
mod arbitrary;
#[cfg(not(shuttle))]
mod cleared;
#[cfg(not(shuttle))]
mod frames_run_out;
#[cfg(not(shuttle))]
mod hidden_pages;
#[cfg(shuttle)]
mod models;
#[cfg(not(shuttle))]
mod planned_failures;
#[cfg(not(shuttle))]
mod raw_copies;
#[cfg(not(shuttle))]
mod restart;
#[cfg(not(shuttle))]
mod shadow_frames;
#[cfg(not(shuttle))]
mod stale_translations;
#[cfg(not(shuttle))]
mod steps;
#[cfg(not(shuttle))]
mod world;
