//! x86-64.

use core::arch::{asm, global_asm};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    "",
    ".globl probe_load, probe_load_access",
    "probe_load:",
    "probe_load_access:",
    "mov eax, [rdi]",
    "ret",
    "",
    ".globl probe_store, probe_store_access, probe_landing",
    "probe_store:",
    "probe_store_access:",
    "mov [rdi], edx",
    "probe_landing:",
    "ret",
    "",
    "# What it jumps to returns to the caller, and so does the landing.",
    ".globl probe_execute",
    "probe_execute:",
    "jmp rdi",
    "",
    "# rdi: flags; rsi: stack; rdx: alive; rcx: entry; r8: argument.",
    ".globl clone_thread",
    "clone_thread:",
    "and rsi, -16",
    "sub rsi, 16",
    "mov [rsi], rcx",
    "mov [rsi + 8], r8",
    "mov r10, rdx",
    "xor edx, edx",
    "xor r8d, r8d",
    "mov eax, {clone}",
    "syscall",
    "test rax, rax",
    "jz 2f",
    "ret",
    "2:",
    "xor ebp, ebp",
    "pop rax",
    "pop rdi",
    "call rax",
    "ud2",
    "",
    ".globl restore_from_signal",
    "restore_from_signal:",
    "mov eax, {sigreturn}",
    "syscall",
    "ud2",
    start = sym crate::start::start,
    clone = const linux_raw_sys::general::__NR_clone,
    sigreturn = const linux_raw_sys::general::__NR_rt_sigreturn,
);

/// The system call for `mmap`, and in what its offset in a file is counted.
pub(crate) const MMAP: (u32, usize) = (linux_raw_sys::general::__NR_mmap, 1);

/// Makes a system call; the result is negative for an error.
///
/// # Safety
/// What the call does must not touch memory that Rust has objects in, other than by its arguments.
pub(crate) unsafe fn system_call(number: u32, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the kernel keeps all registers but RAX, RCX and R11.
    unsafe {
        asm!("syscall", inout("rax") number as usize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// The part of `struct ucontext` that a fault's handler needs (arch/x86/include/uapi/asm/sigcontext.h).
#[repr(C)]
pub(crate) struct SignalContext {
    flags_link_and_stack: [usize; 5],
    r8_to_rdi: [usize; 9],
    rsi: usize,
    rbp_to_rsp: [usize; 6],
    rip: usize,
    rflags: usize,
    selectors: usize,
    /// The page fault's error code.
    pub(crate) error_code: usize,
    vector: usize,
    old_mask: usize,
    /// The address that faulted.
    pub(crate) cr2: usize,
}

impl SignalContext {
    /// The instruction that faulted.
    pub(crate) fn instruction(&self) -> usize {
        self.rip
    }

    /// A probe's second argument.
    pub(crate) fn second_argument(&self) -> usize {
        self.rsi
    }

    /// Has the interrupted code go on elsewhere.
    pub(crate) fn go_on_at(&mut self, address: usize) {
        self.rip = address;
    }
}
