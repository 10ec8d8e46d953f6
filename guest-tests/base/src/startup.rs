//! Starting the other processors, by INIT and SIPI, one after the other, through a page below 1 MiB (Intel SDM volume 3, "MP
//! Initialization Protocol Algorithm for MP Systems").
//!
//! A library brings what its mode needs: how an IPI is sent, where the page is, and the code from [`ap_trampoline!`] on, which
//! ends in [`serve`].
//!
//! [`ap_trampoline!`]: crate::ap_trampoline

use core::slice;
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Acquire, Release, SeqCst},
};

use crate::smp::{self, Cpu, PerCpu};
use crate::{clock, fw_cfg};

/// What a processor is sent to start it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// INIT.
    Init,
    /// The start-up IPI, with the trampoline's page.
    StartUp,
}

/// How long a processor may take to come up. An emulator's may be kept waiting by the machine it runs on.
const START_SECONDS: u64 = 20;

static IS_UP: PerCpu<AtomicBool> = PerCpu::new([const { AtomicBool::new(false) }; Cpu::MOST]);

#[repr(C, align(16))]
struct Stack([AtomicU32; 8192]);

/// The stacks; the first processor has the entry code's.
static STACKS: PerCpu<Stack> = PerCpu::new([const { Stack([const { AtomicU32::new(0) }; 8192]) }; Cpu::MOST]);

/// Has `start` start each processor that the machine says it has; panics if one does not come up. Returns how many run now.
pub fn start_each(start: impl Fn(Cpu) -> bool) -> usize {
    let wanted = fw_cfg::cpus().map_or(1, |cpus| usize::from(cpus).clamp(1, Cpu::MOST));
    for cpu in (1..wanted).map(Cpu::new) {
        assert!(start(cpu), "processor {} does not start", cpu.index());
        smp::set_count(cpu.index() + 1);
    }
    wanted
}

/// Starts `cpu`, or starts it anew, by what `send` sends it: whatever it was doing is lost. Whether it came up.
pub fn start(cpu: Cpu, send: impl Fn(Signal)) -> bool {
    start_within(cpu, clock::seconds(START_SECONDS), send)
}

/// The same, for a processor that has `patience` ticks of the TSC to come up.
pub fn start_within(cpu: Cpu, patience: u64, send: impl Fn(Signal)) -> bool {
    assert!(!cpu.is_boot());
    smp::forget_task(cpu);
    IS_UP.of(cpu).store(false, SeqCst);
    send(Signal::Init);
    clock::wait(clock::microseconds(10_000));
    for _ in 0..2 {
        send(Signal::StartUp);
        if clock::wait_for(clock::microseconds(200), || is_up(cpu)) {
            return true;
        }
    }
    clock::wait_for(patience, || is_up(cpu))
}

/// Whether `cpu` has come up since it was last started.
pub fn is_up(cpu: Cpu) -> bool {
    IS_UP.of(cpu).load(Acquire)
}

/// The top of the stack that `cpu` is to start with.
pub fn stack_top(cpu: Cpu) -> u32 {
    STACKS.of(cpu).0.as_ptr_range().end as usize as u32
}

/// The end of a started processor's way: it is up, and runs what it is given.
pub fn serve(cpu: Cpu) -> ! {
    IS_UP.of(cpu).store(true, Release);
    smp::serve(cpu)
}

/// The code of [`ap_trampoline!`](crate::ap_trampoline), to be copied to the page.
pub fn trampoline() -> &'static [u8] {
    unsafe extern "C" {
        safe static ap_trampoline: u8;
        safe static ap_trampoline_end: u8;
    }
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: the code between the two labels, in the image's read-only data.
    unsafe { slice::from_raw_parts(start, end as usize - start as usize) }
}

/// Where a processor starts, in real mode, on the way to `ap_protected` in the 32-bit code segment `code32` of the GDT `gdt` of
/// `gdt_size` bytes; the code that goes on there follows, with `data` in DS, ES and SS. AT&T syntax.
#[macro_export]
macro_rules! ap_trampoline {
    () => {
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
    ljmpl ${code32}, $ap_protected
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
"#
    };
}
