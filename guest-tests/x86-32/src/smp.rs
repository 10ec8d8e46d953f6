//! The other processors.
//!
//! They are started by INIT and SIPI, one after the other, through a page below 1 MiB (Intel SDM volume 3, "MP
//! Initialization Protocol Algorithm for MP Systems"), and come up without paging.

use core::arch::global_asm;
use core::ptr;
use core::slice;
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

pub use base::smp::{Barrier, Cpu, PerCpu, count, cpus, run_on_all};
use base::{clock, fw_cfg, smp};

use crate::{descriptors, processor};

/// The local APIC, where firmware leaves it. There is no paging when it is used.
const APIC: usize = 0xfee0_0000;
const SPURIOUS: usize = 0xf0;
const COMMAND_LOW: usize = 0x300;
const COMMAND_HIGH: usize = 0x310;
const ENABLED: u32 = 1 << 8 | 0xff;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;

/// Where they start in real mode: a page that no loader uses.
const TRAMPOLINE: u32 = 0x8000;

/// How long a processor may take to come up. An emulator's may be kept waiting by the machine it runs on.
const START_SECONDS: u64 = 20;

static IS_UP: PerCpu<AtomicBool> = PerCpu::new([const { AtomicBool::new(false) }; Cpu::MOST]);

/// The top of the starting processor's stack, and its number. One starts at a time.
static STACK_TOP: AtomicU32 = AtomicU32::new(0);
static INDEX: AtomicU32 = AtomicU32::new(0);

#[repr(C, align(16))]
struct Stack([AtomicU32; 8192]);

/// The stacks; the first processor has the entry code's.
static STACKS: PerCpu<Stack> = PerCpu::new([const { Stack([const { AtomicU32::new(0) }; 8192]) }; Cpu::MOST]);

/// Starts all processors that the machine says it has; panics if one does not come up. To be called without paging. Returns how
/// many run now.
pub fn start_all() -> usize {
    const HAS_APIC: u32 = 1 << 9;
    if processor::cpuid(1, 0)[3] & HAS_APIC == 0 {
        return 1;
    }
    write(SPURIOUS, ENABLED);
    copy_trampoline();
    let wanted = fw_cfg::cpus().map_or(1, |cpus| usize::from(cpus).clamp(1, Cpu::MOST));
    for cpu in (1..wanted).map(Cpu::new) {
        assert!(start(cpu), "processor {} does not start", cpu.index());
        smp::set_count(cpu.index() + 1);
    }
    wanted
}

/// Whether it came up.
fn start(cpu: Cpu) -> bool {
    STACK_TOP.store(STACKS.of(cpu).0.as_ptr_range().end as u32, Relaxed);
    INDEX.store(cpu.index() as u32, SeqCst);
    send(cpu, INIT);
    clock::wait(clock::microseconds(10_000));
    let is_up = || IS_UP.of(cpu).load(Acquire);
    for _ in 0..2 {
        send(cpu, START_UP | TRAMPOLINE >> 12);
        if clock::wait_for(clock::microseconds(200), is_up) {
            return true;
        }
    }
    clock::wait_for(clock::seconds(START_SECONDS), is_up)
}

fn send(cpu: Cpu, command: u32) {
    write(COMMAND_HIGH, cpu.apic_id() << 24);
    write(COMMAND_LOW, command);
}

fn write(register: usize, value: u32) {
    // SAFETY: the APIC's registers, which only interrupt.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(APIC + register).write_volatile(value) };
}

fn copy_trampoline() {
    unsafe extern "C" {
        safe static ap_trampoline: u8;
        safe static ap_trampoline_end: u8;
    }
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: the code between the two labels, in the image's read-only data.
    let code = unsafe { slice::from_raw_parts(start, end as usize - start as usize) };
    for (at, &byte) in (TRAMPOLINE as usize..).zip(code) {
        // SAFETY: no Rust object is below the image.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(byte) };
    }
}

global_asm!(
    r#"
.section .rodata.trampoline, "a"
// Real mode, CS = page << 8, IP = 0. To protected mode by the image's GDT.
.code16
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_trampoline_gdt - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl ${code}, $ap_protected
.balign 8
ap_trampoline_gdt:
    .word {gdt_size} - 1
    .long {gdt}
ap_trampoline_end:

.text
.code32
ap_protected:
    movl ${data}, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movl {stack_top}, %esp
    xorl %ebp, %ebp
    subl $12, %esp
    pushl {index}
    call {start}
    ud2
"#,
    code = const descriptors::CODE,
    data = const descriptors::DATA,
    gdt_size = const size_of::<descriptors::Gdt>(),
    gdt = sym descriptors::GDT,
    stack_top = sym STACK_TOP,
    index = sym INDEX,
    start = sym run,
    options(att_syntax)
);

/// What a started processor does.
extern "C" fn run(index: u32) -> ! {
    let cpu = Cpu::new(index as usize);
    descriptors::init(cpu);
    descriptors::load_idt();
    write(SPURIOUS, ENABLED);
    IS_UP.of(cpu).store(true, Release);
    smp::serve(cpu)
}
