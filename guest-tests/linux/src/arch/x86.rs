//! x86, 32 bits.

use core::arch::{asm, global_asm};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov eax, esp",
    "and esp, -16",
    "sub esp, 12",
    "push eax",
    "call {start}",
    "ud2",
    "",
    "# ECX has the address and EDX the fault, for the handler.",
    ".globl probe_load, probe_load_access",
    "probe_load:",
    "mov ecx, [esp + 4]",
    "mov edx, [esp + 8]",
    "probe_load_access:",
    "mov eax, [ecx]",
    "ret",
    "",
    ".globl probe_store, probe_store_access, probe_landing",
    "probe_store:",
    "mov ecx, [esp + 4]",
    "mov edx, [esp + 8]",
    "mov eax, [esp + 12]",
    "probe_store_access:",
    "mov [ecx], eax",
    "probe_landing:",
    "ret",
    "",
    "# What it jumps to returns to the caller, and so does the landing.",
    ".globl probe_execute",
    "probe_execute:",
    "mov ecx, [esp + 4]",
    "mov edx, [esp + 8]",
    "jmp ecx",
    "",
    "# On the stack: flags, stack, alive, entry, argument.",
    ".globl clone_thread",
    "clone_thread:",
    "push ebx",
    "push esi",
    "push edi",
    "mov ebx, [esp + 16]",
    "mov ecx, [esp + 20]",
    "mov edi, [esp + 24]",
    "and ecx, -16",
    "sub ecx, 16",
    "mov eax, [esp + 28]",
    "mov [ecx], eax",
    "mov eax, [esp + 32]",
    "mov [ecx + 4], eax",
    "xor edx, edx",
    "xor esi, esi",
    "mov eax, {clone}",
    "int 0x80",
    "test eax, eax",
    "jz 2f",
    "pop edi",
    "pop esi",
    "pop ebx",
    "ret",
    "2:",
    "xor ebp, ebp",
    "pop eax",
    "pop ecx",
    "# With the argument pushed, ESP is to be a multiple of 16 at the call.",
    "and esp, -16",
    "sub esp, 12",
    "push ecx",
    "call eax",
    "ud2",
    "",
    ".globl restore_from_signal",
    "restore_from_signal:",
    "mov eax, {sigreturn}",
    "int 0x80",
    "ud2",
    start = sym crate::start::start,
    clone = const linux_raw_sys::general::__NR_clone,
    sigreturn = const linux_raw_sys::general::__NR_rt_sigreturn,
);

/// The system call for `mmap`, and in what its offset in a file is counted.
pub(crate) const MMAP: (u32, usize) = (linux_raw_sys::general::__NR_mmap2, 4096);

/// Makes a system call; the result is negative for an error.
///
/// # Safety
/// What the call does must not touch memory that Rust has objects in, other than by its arguments.
pub(crate) unsafe fn system_call(number: u32, arguments: [usize; 6]) -> isize {
    // EBX, ESI and EBP, which the kernel takes arguments in, are LLVM's own: they are loaded and restored here.
    let registers = [number as usize, arguments[0], arguments[3], arguments[5]];
    let result;
    // SAFETY: the kernel keeps all registers but EAX; what is pushed is popped.
    unsafe {
        asm!(
            "push ebx", "push esi", "push ebp",
            "mov ebx, [eax + 4]", "mov esi, [eax + 8]", "mov ebp, [eax + 12]", "mov eax, [eax]",
            "int 0x80",
            "pop ebp", "pop esi", "pop ebx",
            inout("eax") registers.as_ptr() => result, in("ecx") arguments[1], in("edx") arguments[2],
            in("edi") arguments[4],
        );
    }
    result
}

/// The part of `struct ucontext` that a fault's handler needs (arch/x86/include/uapi/asm/sigcontext.h).
#[repr(C)]
pub(crate) struct SignalContext {
    flags_link_and_stack: [usize; 5],
    segments: [usize; 4],
    edi_to_ebx: [usize; 5],
    edx: usize,
    ecx_and_eax: [usize; 2],
    vector: usize,
    /// The page fault's error code.
    pub(crate) error_code: usize,
    eip: usize,
    cs: usize,
    eflags: usize,
    stack: [usize; 2],
    fpu: usize,
    old_mask: usize,
    /// The address that faulted.
    pub(crate) cr2: usize,
}

impl SignalContext {
    /// The instruction that faulted.
    pub(crate) fn instruction(&self) -> usize {
        self.eip
    }

    /// A probe's second argument.
    pub(crate) fn second_argument(&self) -> usize {
        self.edx
    }

    /// Has the interrupted code go on elsewhere.
    pub(crate) fn go_on_at(&mut self, address: usize) {
        self.eip = address;
    }
}
