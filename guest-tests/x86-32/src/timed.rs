//! What single steps cost, as a guest sees it: RDTSC, the step, RDTSC.

use core::arch::naked_asm;

use crate::descriptors::{self, GateDpl};
use crate::interrupts::{self, PAGE_FAULT};

/// The span in TSC ticks around `$instruction`s, which have the arguments in ECX, EBX and EBP, and may change EAX and EDX.
macro_rules! timed {
    ($(#[$doc:meta])* $name:ident $(, $instruction:literal)*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        extern "C" fn $name(ecx: u32, ebx: u32, ebp: u32) -> u64 {
            naked_asm!(
                "push ebx",
                "push ebp",
                "push esi",
                "push edi",
                "mov ecx, [esp + 20]",
                "mov ebx, [esp + 24]",
                "mov ebp, [esp + 28]",
                "rdtsc",
                "mov esi, eax",
                "mov edi, edx",
                $($instruction,)*
                "rdtsc",
                "sub eax, esi",
                "sbb edx, edi",
                "pop edi",
                "pop esi",
                "pop ebp",
                "pop ebx",
                "ret",
            )
        }
    };
}

/// The span with nothing in it.
pub fn empty() -> u64 {
    timed!(code);
    code(0, 0, 0)
}

/// INVLPG.
pub fn invlpg(page: u32) -> u64 {
    timed!(code, "invlpg [ecx]");
    code(page, 0, 0)
}

/// A load of CR3, and of what is at `linear` in that space. Both spaces map the image one to one.
pub fn switch_and_touch(cr3: u32, linear: u32) -> u64 {
    timed!(code, "mov cr3, ecx", "mov eax, [ebx]");
    code(cr3, linear, 0)
}

/// A write of CR0, with paging as it is.
pub fn write_cr0(cr0: u32) -> u64 {
    timed!(code, "mov cr0, ecx");
    code(cr0, 0, 0)
}

/// An entry of four bytes written at `entry`, and a load of what it maps at `linear`.
pub fn install_and_touch(entry: u32, value: u32, linear: u32) -> u64 {
    timed!(code, "mov [ecx], ebp", "mov eax, [ebx]");
    code(entry, linear, value)
}

/// The same of eight bytes, of which the upper half is zero: as Linux does it, that half first.
pub fn install_halves_and_touch(entry: u32, value: u32, linear: u32) -> u64 {
    timed!(code, "mov dword ptr [ecx + 4], 0", "mov [ecx], ebp", "mov eax, [ebx]");
    code(entry, linear, value)
}

/// From a load of what is at `linear`, which faults, to the first instruction of the handler.
pub fn page_fault(linear: u32) -> u64 {
    // `timed_fault` ends the span, on the stack of the beginning.
    timed!(
        code,
        "mov ebp, esp",
        "mov eax, [ecx]",
        ".global timed_fault",
        "timed_fault:",
        "rdtsc",
        "mov esp, ebp",
        "sub eax, esi",
        "sbb edx, edi",
        "pop edi",
        "pop esi",
        "pop ebp",
        "pop ebx",
        "ret"
    );
    unsafe extern "C" {
        safe static timed_fault: u8;
    }
    descriptors::set_gate(PAGE_FAULT as usize, &raw const timed_fault as u32, GateDpl::Kernel);
    let span = code(linear, 0, 0);
    interrupts::restore_gate(PAGE_FAULT);
    span
}
