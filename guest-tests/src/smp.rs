//! The other processors.
//!
//! They are started by INIT and SIPI, one after the other, through a page below 1 MiB (Intel SDM volume 3, "MP
//! Initialization Protocol Algorithm for MP Systems"). Then each waits, spinning, for what [`run_on_all`] gives it.

use core::arch::global_asm;
use core::mem::offset_of;
use core::slice;
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use base::smp;
pub use base::smp::{Barrier, Cpu, PerCpu, count, cpus, run_on_all};

use crate::apic::{self, Apic, Delivery, Destination};
use crate::boot::Boot;
use crate::msr::{EFER_LMA, Msr};
use crate::ram::{self, Frame, HIGH_MEMORY};
use crate::{clock, descriptors, fw_cfg, processor};

/// Starts all processors that the machine says it has; panics if one does not come up. Returns how many run now.
pub fn start_all(boot: &Boot) -> usize {
    if !Apic::exists() {
        return 1;
    }
    Apic::start();
    let wanted = fw_cfg::cpus().map_or(1, |cpus| usize::from(cpus).clamp(1, Cpu::MOST));
    for cpu in (1..wanted).map(Cpu::new) {
        assert!(start(boot, cpu), "processor {} does not start", cpu.index());
        smp::set_count(cpu.index() + 1);
    }
    wanted
}

impl From<Cpu> for Destination {
    fn from(cpu: Cpu) -> Self {
        Self::Physical(cpu.apic_id())
    }
}

/// Starts `cpu`, or starts it anew: whatever it was doing is lost. Whether it came up.
pub fn start(boot: &Boot, cpu: Cpu) -> bool {
    assert!(!cpu.is_boot());
    let page = trampoline_frame(boot);
    page.write_bytes(0, trampoline_bytes());
    hand_over(cpu);
    smp::forget_task(cpu);
    IS_UP.of(cpu).store(false, SeqCst);
    let apic = Apic::here();
    apic.send(Delivery::Init, cpu.into());
    clock::wait(clock::microseconds(10_000));
    for _ in 0..2 {
        apic.send(Delivery::StartUp(page_number(page)), cpu.into());
        if clock::wait_for(clock::microseconds(200), || is_up(cpu)) {
            return true;
        }
    }
    clock::wait_for(clock::seconds(START_SECONDS), || is_up(cpu))
}

/// How long a processor may take to come up. An emulator's may be kept waiting by the machine it runs on.
const START_SECONDS: u64 = 20;

/// Whether `cpu` has come up since it was last started.
pub fn is_up(cpu: Cpu) -> bool {
    IS_UP.of(cpu).load(Acquire)
}

static IS_UP: PerCpu<AtomicBool> = PerCpu::new([const { AtomicBool::new(false) }; Cpu::MOST]);

/// Where it starts in real mode: a free frame below 1 MiB.
pub fn trampoline_frame(boot: &Boot) -> Frame {
    let frame = ram::free(boot).next().filter(|frame| frame.gpa() < HIGH_MEMORY);
    frame.expect("a free frame is below 1 MiB")
}

/// The page's number, as a SIPI names it.
pub fn page_number(frame: Frame) -> u8 {
    frame.gpa().frame().raw() as u8
}

/// What a starting processor takes over from the one that starts it. One starts at a time.
#[repr(C)]
struct Handover {
    cr0: AtomicU32,
    cr3: AtomicU32,
    cr4: AtomicU32,
    efer: AtomicU32,
    stack_top: AtomicU32,
    index: AtomicU32,
}

static HANDOVER: Handover = Handover {
    cr0: AtomicU32::new(0),
    cr3: AtomicU32::new(0),
    cr4: AtomicU32::new(0),
    efer: AtomicU32::new(0),
    stack_top: AtomicU32::new(0),
    index: AtomicU32::new(0),
};

#[repr(C, align(16))]
struct Stack([AtomicU32; 8192]);

/// The stacks; the first processor has the entry code's.
static STACKS: PerCpu<Stack> = PerCpu::new([const { Stack([const { AtomicU32::new(0) }; 8192]) }; Cpu::MOST]);

fn hand_over(cpu: Cpu) {
    let stack = STACKS.of(cpu).0.as_ptr_range();
    HANDOVER.cr0.store(processor::cr0() as u32, Relaxed);
    HANDOVER.cr3.store(processor::cr3() as u32, Relaxed);
    HANDOVER.cr4.store(processor::cr4() as u32, Relaxed);
    HANDOVER.efer.store((Msr::Efer.read() & !EFER_LMA) as u32, Relaxed);
    HANDOVER.stack_top.store(stack.end as usize as u32, Relaxed);
    HANDOVER.index.store(cpu.apic_id(), Relaxed);
}

fn trampoline_bytes() -> &'static [u8] {
    unsafe extern "C" {
        safe static ap_trampoline: u8;
        safe static ap_trampoline_end: u8;
    }
    let (start, end) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: the code between the two labels, in the image's read-only data.
    unsafe { slice::from_raw_parts(start, end as usize - start as usize) }
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
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl {handover} + {cr4}, %eax
    movl %eax, %cr4
    movl {handover} + {cr3}, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl {handover} + {efer}, %eax
    xorl %edx, %edx
    wrmsr
    movl {handover} + {cr0}, %eax
    movl %eax, %cr0
    ljmpl ${code64}, $ap_long
.code64
ap_long:
    movl {handover} + {stack_top}, %esp
    xorl %ebp, %ebp
    movl {handover} + {index}, %edi
    call {start}
    ud2
"#,
    code32 = const descriptors::CODE32,
    code64 = const descriptors::CODE64,
    data = const descriptors::DATA,
    gdt_size = const size_of::<descriptors::Gdt>(),
    gdt = sym descriptors::GDT,
    handover = sym HANDOVER,
    cr0 = const offset_of!(Handover, cr0),
    cr3 = const offset_of!(Handover, cr3),
    cr4 = const offset_of!(Handover, cr4),
    efer = const offset_of!(Handover, efer),
    stack_top = const offset_of!(Handover, stack_top),
    index = const offset_of!(Handover, index),
    start = sym run,
    options(att_syntax)
);

/// What a started processor does.
extern "C" fn run(index: u32) -> ! {
    let cpu = Cpu::new(index as usize);
    descriptors::init(cpu);
    descriptors::load_idt();
    apic::note_reset_state();
    let id = Apic::start().id();
    assert_eq!(id, cpu.apic_id(), "the APIC ID of processor {index}");
    IS_UP.of(cpu).store(true, Release);
    smp::serve(cpu)
}
