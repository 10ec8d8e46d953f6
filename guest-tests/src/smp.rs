//! The other processors.
//!
//! Once started ([`base::startup`]), each waits, spinning, for what [`run_on_all`] gives it.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

pub use base::smp::{Barrier, Cpu, PerCpu, count, cpus, run_on_all};
pub use base::startup::is_up;
use base::startup::{self, Signal};

use crate::apic::{self, Apic, Delivery};
use crate::boot::Boot;
use crate::msr::{EFER_LMA, Msr};
use crate::ram::{self, Frame, HIGH_MEMORY};
use crate::{descriptors, processor};

/// Starts all processors that the machine says it has; panics if one does not come up. Returns how many run now.
pub fn start_all(boot: &Boot) -> usize {
    if !Apic::exists() {
        return 1;
    }
    Apic::start();
    startup::start_each(|cpu| start(boot, cpu))
}

/// Starts `cpu`, or starts it anew: whatever it was doing is lost. Whether it came up.
pub fn start(boot: &Boot, cpu: Cpu) -> bool {
    let page = trampoline_frame(boot);
    page.write_bytes(0, startup::trampoline());
    hand_over(cpu);
    let apic = Apic::here();
    startup::start(cpu, |signal| {
        let delivery = match signal {
            Signal::Init => Delivery::Init,
            Signal::StartUp => Delivery::StartUp(page_number(page)),
        };
        apic.send(delivery, cpu.into());
    })
}

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

fn hand_over(cpu: Cpu) {
    HANDOVER.cr0.store(processor::cr0() as u32, Relaxed);
    HANDOVER.cr3.store(processor::cr3() as u32, Relaxed);
    HANDOVER.cr4.store(processor::cr4() as u32, Relaxed);
    HANDOVER.efer.store((Msr::Efer.read() & !EFER_LMA) as u32, Relaxed);
    HANDOVER.stack_top.store(startup::stack_top(cpu), Relaxed);
    HANDOVER.index.store(cpu.apic_id(), Relaxed);
}

global_asm!(
    base::ap_trampoline!(),
    r#"
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
    startup::serve(cpu)
}
