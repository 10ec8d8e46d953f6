//! Everything between the machine's boot loader and the first guest instruction: the hypervisor's own boot information
//! and command line, guest images, and the boot information that guests get. All inputs are untrusted, so safe code
//! parses them and returns errors.
//!
//! The hypervisor uses it in this order:
//!
//! ```
//! use addr::{Gpa, Hpa};
//! use loader::{BootInfo, Config, GuestMemory, Paging, PhysRead, Platform};
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
//!     let platform = Platform { ram: vm.config.ram, long_mode: vm.config.paging == Paging::Nested, acpi: None };
//!     let entry = loader::load(image, &modules, &platform, memory)?;
//!     // The backend starts the boot vCPU there.
//!     let _: (arch::Entry, _) = (entry, &frames);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The hypervisor is loaded by multiboot: the rules are those of the Multiboot Specification 0.6.96 ("the specification" below).
//! Guests are loaded by Linux's boot protocol, multiboot2, multiboot or PVH, whichever their image is for.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, doctest, fuzzing))]
extern crate std;

mod bios_data;
mod block;
mod boot_info;
pub mod config;
mod elf_file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(any(test, fuzzing))]
mod guest_view;
mod image;
mod kernel;
mod linux;
mod load;
mod memory;
mod memory_map;
mod multiboot;
mod multiboot1;
mod multiboot2;
pub mod need;
mod placer;
mod pvh;
mod ranges;
pub mod rom;
#[cfg(test)]
mod tests;

pub use boot_info::{BootInfo, BootInfoError, BootModule, MalformedRegion, PhysRead, Region, RegionKind, Unreadable};
pub use config::{
    Backing, Config, ConfigError, Expected, OnReset, Paging, SelfTest, VmConfig, VmName, VmPlan, console_names,
};
pub use image::{ImageError, Part};
pub use linux::LinuxError;
pub use load::{AcpiTables, LoadError, Module, Platform, Rsdp, load};
pub use memory::{GuestMemory, GuestRam, MemoryError};
pub use memory_map::{GuestRegion, MemoryMap};
pub use multiboot2::Multiboot2Error;
pub use need::Need;
