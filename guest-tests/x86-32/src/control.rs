//! Bits of the control registers, of EFER and of EFLAGS as a 32-bit guest has them (Intel SDM vol. 3, section 2.5).
//!
//! They are the hypervisor's bits as well. A wrong one fails where the guest runs alone.

/// Protection enable.
pub const CR0_PE: u32 = arch::CR0_PE as u32;
/// Write protect: applies to the supervisor, too.
pub const CR0_WP: u32 = arch::CR0_WP as u32;
/// Not write-through.
pub const CR0_NW: u32 = arch::CR0_NW as u32;
/// Cache disable.
pub const CR0_CD: u32 = arch::CR0_CD as u32;
/// Paging.
pub const CR0_PG: u32 = arch::CR0_PG as u32;
/// Virtual-8086 mode extensions.
pub const CR4_VME: u32 = arch::CR4_VME as u32;
/// Debugging extensions: breakpoints at ports.
pub const CR4_DE: u32 = arch::CR4_DE as u32;
/// Page size extensions: 4 MiB pages.
pub const CR4_PSE: u32 = arch::CR4_PSE as u32;
/// Physical address extension.
pub const CR4_PAE: u32 = arch::CR4_PAE as u32;
/// Global pages.
pub const CR4_PGE: u32 = arch::CR4_PGE as u32;
/// Supervisor-mode execution prevention.
pub const CR4_SMEP: u32 = arch::CR4_SMEP as u32;
/// The MSR EFER.
pub const EFER: u32 = x86::msr::IA32_EFER;
/// SYSCALL enable.
pub const EFER_SCE: u32 = arch::EFER_SCE as u32;
/// Long mode enable.
pub const EFER_LME: u32 = arch::EFER_LME as u32;
/// No-execute enable.
pub const EFER_NXE: u32 = arch::EFER_NXE as u32;
/// The bit of EFLAGS that is always set.
pub const EFLAGS_FIXED: u32 = arch::RFLAGS_FIXED as u32;
/// Interrupt enable.
pub const EFLAGS_IF: u32 = arch::RFLAGS_IF as u32;
/// I/O privilege level.
pub const EFLAGS_IOPL: u32 = arch::RFLAGS_IOPL as u32;
/// Virtual-8086 mode.
pub const EFLAGS_VM: u32 = arch::RFLAGS_VM as u32;
