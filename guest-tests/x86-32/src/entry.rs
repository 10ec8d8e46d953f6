//! From the loader's protected mode to Rust, without paging.

use core::arch::global_asm;
use core::mem::{offset_of, size_of};

use base::boot::{self, EntryState};
use base::console;
use base::smp::Cpu;

use crate::descriptors::{self, GDT};
use crate::interrupts;

const STACK_SIZE: usize = 64 << 10;

global_asm!(
    base::multiboot_entry!(),
    r#"
    lgdt [gdt_pointer]
    push {code}
    lea eax, [flat]
    push eax
    retf
flat:
    mov eax, {data}
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    xor ebp, ebp
    and esp, -16
    sub esp, 12
    lea eax, [entry_state]
    push eax
    call {start}
    ud2

.section .rodata.entry, "a"
.balign 8
    .word 0
gdt_pointer:
    .word {gdt_limit}
    .long {gdt}

.section .bss.entry, "aw", @nobits
.balign 4096
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
    code = const descriptors::CODE,
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
