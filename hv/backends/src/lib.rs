//! Hardware virtualization behind one trait: AMD's SVM and Intel's VMX.
//!
//! A [`Backend`] is chosen once, at boot, and the code above is compiled for each: no call on the exit path goes through a
//! pointer. A backend reports an exit as [`vm::Exit`], and gives the handlers a [`vm::Vcpu`].
//!
//! Both backends have the same files: `backend` (enabling), `vcpu` (entry and registers), `exits` (from the hardware's exit
//! codes to [`vm::Exit`]), `events` (injection), `setup` (state after INIT and at start), `switch` (the world switch), `host`
//! (the host's state), `permissions` (bitmaps of ports and MSRs) and `dump`.
//!
//! The code above a backend is generic, and what it does without the processor runs anywhere: here it makes the tables of a VM, and
//! finds how much memory to set aside for each of its vCPUs.
//!
//! ```
//! use addr::{Gpa, Hpa, PageSize, Pfn};
//! use backends::{Backend, svm::Svm, vmx::Vmx};
//! use core::alloc::Layout;
//! use mmu::{Format, Leaf, Level, Rights, pool};
//!
//! /// Maps the guest's first page, and gives its entry in the format that the processor walks.
//! fn first_entry<B: Backend>() -> u64 {
//!     // `pool` is a stand-in for the machine's frames and CPUs.
//!     let frames = pool::Memory::<B::Tables>::new(8);
//!     let domain = pool::domain::<B::Tables, 1>(&frames);
//!     let cpu = domain.register(0).unwrap();
//!     let tree = pool::Pool::new(&frames, &domain).tree().unwrap();
//!     let leaf = Leaf::new(Pfn::new(0x100), Rights::ALL);
//!     tree.map(cpu.read(), Gpa::new(0), leaf, PageSize::Size4K).unwrap();
//!     // `tree.root()` is what `Backend::vcpu` is given.
//!     let found = tree.translate(cpu.read(), Gpa::new(0x123)).unwrap();
//!     assert_eq!(found.hpa, Hpa::new(0x10_0123));
//!     B::Tables::leaf(&found.leaf, Level::PTE).raw()
//! }
//! // NPT: present, writable and user. EPT: read, write, execute, and write-back as the memory type.
//! assert_eq!(first_entry::<Svm>(), 0x10_0007);
//! assert_eq!(first_entry::<Vmx>(), 0x10_0037);
//!
//! fn bytes_of_a_vcpu<B: Backend>() -> usize {
//!     B::VCPU_ALLOCATIONS.iter().map(Layout::size).sum()
//! }
//! // Two VMCBs, three pages of permissions for ports and two for MSRs.
//! assert_eq!(bytes_of_a_vcpu::<Svm>(), 7 * 4096);
//! assert!(bytes_of_a_vcpu::<Vmx>() >= 2 * 4096, "a VMCS and a page of permissions for MSRs");
//! ```
//!
//! On the machine each CPU switches its backend on, once, and makes the vCPUs that it runs:
//!
//! ```no_run
//! use addr::Hpa;
//! use backends::{Backend, Missing, Physical, Start};
//! use core::num::NonZeroU16;
//! use vm::Vcpu;
//!
//! fn first_exit<B: Backend>(physical: Physical, root: Hpa) -> Result<vm::Exit, Missing> {
//!     // SAFETY: this is ring 0 with interrupts off, and the only call on this CPU.
//!     let backend = unsafe { B::enable(physical) }?;
//!     backend.nested()?;
//!     let tag = NonZeroU16::MIN;
//!     let mut vcpu = backend.vcpu(root, 0, tag, Start::Sipi(0x8));
//!     vcpu.load();
//!     vcpu.enter();
//!     let exit = vcpu.exit();
//!     vcpu.put();
//!     Ok(exit)
//! }
//! # fn physical(_: *const u8) -> Hpa { Hpa::new(0) }
//! match first_exit::<backends::svm::Svm>(physical, Hpa::new(0x20_0000)) {
//!     Ok(exit) => println!("{exit:?}"),
//!     Err(missing) => println!("this machine lacks {missing}"),
//! }
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod dump;
mod page;
pub mod svm;
mod translation;
mod unswitched;
pub mod vmx;

use addr::{Gpa, Hpa, PageSize};
use core::alloc::Layout;
use core::fmt;
use core::num::NonZeroU16;
use core::ops::Range;
use mmu::{AtomicU64, Caps, Format};

pub use vm::Start;
use walk::Features;
use x86::irq::{ALIGNMENT_CHECK_VECTOR, DEBUG_VECTOR, INVALID_OPCODE_VECTOR, MACHINE_CHECK_VECTOR};

/// The exceptions of every guest that exit, a bit for each vector. #UD: the other vendor's hypercall instruction raises it. #DB
/// and #AC: their delivery can raise them again without end, which only an exit stops (CVE-2015-5307, CVE-2015-8104). #MC is the
/// host's.
const INTERCEPTED_EXCEPTIONS: u32 =
    1 << DEBUG_VECTOR | 1 << INVALID_OPCODE_VECTOR | 1 << ALIGNMENT_CHECK_VECTOR | 1 << MACHINE_CHECK_VECTOR;

/// The host's TSC.
fn tsc() -> u64 {
    // SAFETY: reading it has no effect.
    unsafe { x86::time::rdtsc() }
}

/// How the hypervisor finds the physical address of what it allocates.
pub type Physical = fn(*const u8) -> Hpa;

/// What a machine needs and does not have, in the manual's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for Missing {}

/// A page that a backend needs in the guest's memory: outside of its RAM, for the processor to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedPage {
    /// Where its first byte is.
    pub at: Gpa,
    /// What it holds.
    pub content: [u8; 4096],
}

/// One vendor's virtualization, enabled on this CPU. Its `Display` names it and the features that this processor has.
pub trait Backend: Sized + fmt::Display {
    /// Its virtual CPU with nested paging.
    type Vcpu: vm::Vcpu;

    /// Its virtual CPU with shadow paging.
    type ShadowVcpu: vm::Vcpu;

    /// The format of the nested tables.
    type Tables: Format<Input = Gpa, Table = [AtomicU64; 512]>;

    /// What one vCPU allocates, of either kind, when it is made. It is all that it ever does.
    const VCPU_ALLOCATIONS: &'static [Layout];

    /// Checks that this CPU has all that is needed, and switches it on.
    ///
    /// # Safety
    /// Once for each CPU, at ring 0, with interrupts off.
    ///
    /// # Errors
    /// The first thing missing; nothing was switched on then.
    unsafe fn enable(physical: Physical) -> Result<Self, Missing>;

    /// What this processor can do with such tables, with leaves of at most `largest`.
    fn caps(&self, largest: PageSize) -> Caps;

    /// Whether it can walk them.
    ///
    /// # Errors
    /// It can't: a VM has to do with shadow tables.
    fn nested(&self) -> Result<(), Missing>;

    /// What it can do with shadow tables, with leaves of at most `largest`.
    fn shadow_caps(&self, largest: PageSize) -> Caps;

    /// Which of the machine's `online` CPUs may run guests; at least one.
    fn guest_cpus(&self, online: usize) -> Range<usize> {
        0..online
    }

    /// The page that has to be in the guest's memory before its vCPUs run; None if none has.
    fn fixed_page(&self) -> Option<FixedPage> {
        None
    }

    /// A new virtual CPU of this CPU, which is to run on no other; it is the loaded one ([`vm::Vcpu::load`]). It starts at
    /// `start`, with its memory behind the nested tables at `root`. Its guest may set the bits `offered_cr4` of CR4. `tag` tells its
    /// translations from those of this CPU's other vCPUs.
    fn vcpu(&self, root: Hpa, offered_cr4: u64, tag: NonZeroU16, start: Start) -> Self::Vcpu;

    /// As [`vcpu`](Self::vcpu), without nested paging: the processor walks the shadow at `root`, below 4 GiB. `features` are what
    /// the guest is told of paging.
    fn shadow_vcpu(
        &self,
        root: Hpa,
        features: Features,
        offered_cr4: u64,
        tag: NonZeroU16,
        start: Start,
    ) -> Self::ShadowVcpu;
}
