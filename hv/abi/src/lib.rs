//! What the hypervisor, its guests and `xtask` agree on, each thing written once.
//!
//! | module | content | writer, reader |
//! | --- | --- | --- |
//! | [`hypercall`] | numbers, arguments, results and errors | guests; the hypervisor |
//! | [`cpuid`] | how the hypervisor is found | the hypervisor; guests |
//! | [`cpus`] | which CPUs run guests | the hypervisor; `xtask` |
//! | [`ports`] | console and exit ports, and what is written to them | guests and the hypervisor; emulators, the hypervisor and `xtask` |
//! | [`uart`] | the console's registers | the device and the hypervisor's driver; guests |
//! | [`mmio`], [`timers`] | where a PC's memory-mapped devices are, and how fast its timers count | devices; guests, the hypervisor on its own machine |
//! | [`irq`], [`mmio`] | interrupt lines and addresses of a PC's devices | devices; the firmware's tables |
//! | [`multiboot`] | numbers of multiboot's headers and boot information | `xtask`, images, loaders; loaders, guests |
//! | [`acpi`] | how ACPI's tables are found | the firmware's tables; guests, the hypervisor on its own machine |
//! | [`memory`] | what freed memory holds | the hypervisor; guests |
//! | [`verdict`] | how runs end: names and exit statuses | the hypervisor; `xtask` |
//! | [`reasons`] | parts of the texts of verdicts and other lines | the hypervisor; `xtask` |
//! | [`wire`] | whose line of the console is whose | the hypervisor; `xtask` |
//! | [`options`] | the words of the hypervisor's command line, and of the test guests' | `xtask`; the hypervisor, guests |
//! | [`typed`] | what is typed for a guest that compares it | `xtask`; that guest |
//! | [`lines`] | lines that are read by a program | the hypervisor and guests; `xtask` |
//!
//! `docs/guest-interface.md` is the page for authors of guests. The tests of this crate compare it with these modules.
//!
//! A guest encodes a call, and the hypervisor decodes the registers:
//!
//! ```
//! use abi::hypercall::{self, Refused, TestCall};
//!
//! // The guest: what goes into RAX, and into RBX, RCX, RDX and RSI.
//! let (number, arguments) = TestCall::Release { start: 0x20_0000, bytes: 0x1000 }.encode();
//! let rax = number.into();
//!
//! // The hypervisor: the call, and its result for RAX.
//! assert_eq!(TestCall::decode(rax, arguments), Ok(TestCall::Release { start: 0x20_0000, bytes: 0x1000 }));
//! let rax = hypercall::encode_result(Err(Refused::NoMemory));
//!
//! // The guest again.
//! assert_eq!(hypercall::decode_result(rax), Ok(Err(Refused::NoMemory)));
//! assert_eq!(rax.cast_signed(), -12);
//! ```
//!
//! The hypervisor prints a line, and `xtask` reads it from the console:
//!
//! ```
//! use abi::lines::VerdictLine;
//! use abi::verdict::Verdict;
//! use abi::wire;
//!
//! let printed = format!("{}{}", wire::Own(Some("a")), VerdictLine { verdict: Verdict::Pass, text: "all is well" });
//! assert_eq!(printed, "hv: a: verdict: pass 0 all is well");
//!
//! let text = wire::own(&printed, Some("a")).unwrap();
//! assert_eq!(VerdictLine::parse(text).unwrap().unwrap().verdict, Verdict::Pass);
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod cpuid;
pub mod cpus;
pub mod hypercall;
pub mod irq;
pub mod lines;
pub mod memory;
pub mod mmio;
pub mod multiboot;
pub mod multiboot2;
mod numbered;
pub mod options;
pub mod ports;
pub mod pvh;
pub mod reasons;
#[cfg(test)]
mod tests;
pub mod timers;
pub mod typed;
pub mod uart;
pub mod verdict;
pub mod wire;

pub use numbered::Unknown;
pub use verdict::{GuestStatus, Verdict};
