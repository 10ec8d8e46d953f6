//! Bits of the control registers, of EFER and of EFLAGS as a 32-bit guest has them (Intel SDM vol. 3, section 2.5).
//!
//! The guests' own, and not the hypervisor's: a wrong bit there is to fail a test here.

/// Protection enable.
pub const CR0_PE: u32 = 1 << 0;
/// Write protect: applies to the supervisor, too.
pub const CR0_WP: u32 = 1 << 16;
/// Not write-through.
pub const CR0_NW: u32 = 1 << 29;
/// Cache disable.
pub const CR0_CD: u32 = 1 << 30;
/// Paging.
pub const CR0_PG: u32 = 1 << 31;
/// Virtual-8086 mode extensions.
pub const CR4_VME: u32 = 1 << 0;
/// Page size extensions: 4 MiB pages.
pub const CR4_PSE: u32 = 1 << 4;
/// Physical address extension.
pub const CR4_PAE: u32 = 1 << 5;
/// Global pages.
pub const CR4_PGE: u32 = 1 << 7;
/// Supervisor-mode execution prevention.
pub const CR4_SMEP: u32 = 1 << 20;
/// The MSR EFER.
pub const EFER: u32 = 0xc000_0080;
/// SYSCALL enable.
pub const EFER_SCE: u32 = 1 << 0;
/// Long mode enable.
pub const EFER_LME: u32 = 1 << 8;
/// No-execute enable.
pub const EFER_NXE: u32 = 1 << 11;
/// The bit of EFLAGS that is always set.
pub const EFLAGS_FIXED: u32 = 1 << 1;
/// Interrupt enable.
pub const EFLAGS_IF: u32 = 1 << 9;
/// I/O privilege level.
pub const EFLAGS_IOPL: u32 = 3 << 12;
/// Virtual-8086 mode.
pub const EFLAGS_VM: u32 = 1 << 17;
