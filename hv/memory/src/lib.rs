//! A VM's memory.
#![no_std]

extern crate alloc;
#[cfg(any(test, fuzzing, feature = "arena"))]
extern crate std;

mod account;
mod frames;
mod host;
mod pool;
mod raw;
mod shadow_paging;
mod shadow_trees;
mod sync;
mod test_calls;
mod tree_env;
mod view;
mod vm_iface;
mod vm_memory;

pub use account::{Accounts, poll_idle};
pub use frames::FrameAllocator;
pub use host::Host;
pub use raw::DirectPtr;
pub use tree_env::Nested;
pub use view::{Path, View, ViewState};
pub use vm_memory::{FixedPage, Freed, VmMemory};
