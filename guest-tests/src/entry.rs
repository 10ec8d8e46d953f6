//! From the loader's 32-bit protected mode to Rust in long mode.
//!
//! Multiboot specification 0.6.96, sections 3.1 (header) and 3.2 (machine state).

use core::arch::global_asm;
use core::mem::{offset_of, size_of};

use crate::boot::EntryState;
use crate::descriptors::{self, GDT};
use crate::smp::Cpu;
use crate::{boot, console, interrupts};

const STACK_SIZE: usize = 64 << 10;

global_asm!(
    base::multiboot_entry!(),
    r#"
    // The first 4 GiB by 2 MiB pages, present and writable: pml4[0] -> pdpt[0..4] -> pd[0..2048].
    lea eax, [boot_pdpt]
    or eax, 3
    mov [boot_pml4], eax
    xor ecx, ecx
    lea eax, [boot_pd]
    or eax, 3
2:  mov [boot_pdpt + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jb 2b
    xor ecx, ecx
    mov eax, 0x83
2:  mov [boot_pd + ecx * 8], eax
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 2b

    // CR4.PAE; CR3; EFER.LME; CR0.PG, WP and PE.
    mov eax, 0x20
    mov cr4, eax
    lea eax, [boot_pml4]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80010001
    mov cr0, eax
    lgdt [gdt_pointer]
    push {code}
    lea eax, [long_mode]
    push eax
    retf

.code64
long_mode:
    mov eax, {data}
    mov ss, eax
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    lea rsp, [rip + stack_top]
    xor ebp, ebp
    lea rdi, [rip + entry_state]
    call {start}
    ud2

.section .rodata.entry, "a"
.balign 8
    .word 0, 0, 0
gdt_pointer:
    .word {gdt_limit}
    .long {gdt}

.section .bss.entry, "aw", @nobits
.balign 4096
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
    .skip {stack_size}
stack_top:
entry_state:
    .skip {state_size}
.text
"#,
    magic = const boot::HEADER_MAGIC,
    flags = const boot::OUR_FLAGS,
    in_magic = const offset_of!(EntryState, magic),
    in_info = const offset_of!(EntryState, info),
    in_eflags = const offset_of!(EntryState, eflags),
    in_cr0 = const offset_of!(EntryState, cr0),
    in_cr4 = const offset_of!(EntryState, cr4),
    in_selectors = const offset_of!(EntryState, selectors),
    in_through = const offset_of!(EntryState, through),
    code = const descriptors::CODE64,
    data = const descriptors::DATA,
    gdt = sym GDT,
    gdt_limit = const size_of::<descriptors::Gdt>() - 1,
    start = sym start,
    stack_size = const STACK_SIZE,
    state_size = const size_of::<EntryState>(),
);

/// The first Rust code: brings up what the panic handler needs, then the rest, then the guest.
extern "C" fn start(entry: &'static EntryState) -> ! {
    console::init();
    descriptors::init(Cpu::BOOT);
    interrupts::init();
    base::start::run(entry)
}
