//! Everything between the machine's boot loader and the first guest instruction: the hypervisor's own boot information
//! and command line, guest images, and the boot information that guests get. All inputs are untrusted, so safe code
//! parses them and returns errors.
//!
//! The hypervisor uses it in this order:
//!
//! ```
//! use addr::{Gpa, Hpa};
//! use loader::{BootInfo, Config, GuestMemory, MemoryError, PhysRead, Unreadable};
//!
//! # fn boot(ebx: Hpa, phys: &impl PhysRead, module: &dyn Fn(usize) -> &'static [u8],
//! #         memory: &mut impl GuestMemory) -> Result<(), Box<dyn std::error::Error>> {
//! // EBX holds the address of the boot information at entry. It is copied, so that its memory can be used.
//! let boot = BootInfo::parse(ebx, phys)?;
//! let config = Config::parse(&boot.command_line)?;
//! let image = Hpa::new(0x10_0000)..Hpa::new(0x40_0000);
//! let frames = boot.usable_ranges(&image);
//!
//! // The plan assigns the modules to VMs.
//! for vm in config.plan(boot.modules.len())? {
//!     let modules: Vec<_> = vm
//!         .modules
//!         .map(|n| loader::Module { bytes: module(n), string: &boot.modules[n].string })
//!         .collect();
//!     let image = loader::Module { bytes: module(vm.image), string: &boot.modules[vm.image].string };
//!     let entry = loader::load(image, &modules, vm.config.ram, memory)?;
//!     // The backend starts the boot vCPU there.
//!     let _: (arch::Entry, _) = (entry, &frames);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The rules are those of the Multiboot Specification 0.6.96 ("the specification" below).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, doctest, fuzzing))]
extern crate std;

mod boot_info;
pub mod config;
mod elf_file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod image;
mod load;
mod memory;
mod multiboot;
pub mod need;
mod ranges;
#[cfg(test)]
mod tests;

pub use boot_info::{BootInfo, BootInfoError, BootModule, MalformedRegion, PhysRead, Region, RegionKind, Unreadable};
pub use config::{Backing, Config, ConfigError, Paging, SelfTest, VmConfig, VmName, VmPlan};
pub use image::{Image, ImageError, Segment};
pub use load::{LoadError, Module, load};
pub use memory::{GuestMemory, GuestRam, MemoryError};
pub use need::Need;
