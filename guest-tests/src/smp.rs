//! The other processors.
//!
//! They are started by INIT and SIPI, one after the other, through a page below 1 MiB (Intel SDM volume 3, "MP
//! Initialization Protocol Algorithm for MP Systems"). Then each waits, spinning, for what [`run_on_all`] gives it.

use core::arch::global_asm;
use core::hint;
use core::mem::offset_of;
use core::ptr;
use core::slice;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use crate::apic::{self, Apic, Delivery, Destination};
use crate::boot::Boot;
use crate::ktap::{Outcome, Stop};
use crate::msr::{EFER_LMA, Msr};
use crate::ram::{self, Frame, HIGH_MEMORY};
use crate::{clock, descriptors, fw_cfg, interrupts, processor};

/// A processor by its number, which is also its APIC ID: the numbering of QEMU for processors without threads, and of this
/// hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu(usize);

impl Cpu {
    /// As many as a guest can use.
    pub const MOST: usize = 16;
    /// The one that booted.
    pub const BOOT: Self = Self(0);

    /// The one that runs this.
    pub fn current() -> Self {
        Self(descriptors::current_cpu())
    }

    /// The number.
    pub const fn index(self) -> usize {
        self.0
    }

    /// The APIC ID.
    pub const fn apic_id(self) -> u32 {
        self.0 as u32
    }

    /// Whether it is the one that booted.
    pub const fn is_boot(self) -> bool {
        self.0 == 0
    }

    /// As the destination of an IPI.
    pub const fn destination(self) -> Destination {
        Destination::Physical(self.apic_id())
    }
}

/// One `T` for each processor.
pub struct PerCpu<T>([T; Cpu::MOST]);

impl<T> PerCpu<T> {
    /// These, in the processors' order.
    pub const fn new(all: [T; Cpu::MOST]) -> Self {
        Self(all)
    }

    /// `cpu`'s.
    pub const fn of(&self, cpu: Cpu) -> &T {
        &self.0[cpu.0]
    }

    /// That of the processor that runs this.
    pub fn here(&self) -> &T {
        self.of(Cpu::current())
    }

    /// All of them, of processors that run or not.
    pub fn iter(&self) -> slice::Iter<'_, T> {
        self.0.iter()
    }
}

/// How many run.
static RUNNING: AtomicUsize = AtomicUsize::new(1);

/// How many processors run.
pub fn count() -> usize {
    RUNNING.load(Relaxed)
}

/// The processors that run.
pub fn cpus() -> impl DoubleEndedIterator<Item = Cpu> + Clone {
    (0..count()).map(Cpu)
}

/// Starts all processors that the machine says it has; panics if one does not come up. Returns how many run now.
pub fn start_all(boot: &Boot) -> usize {
    if !Apic::exists() {
        return 1;
    }
    Apic::start();
    let wanted = fw_cfg::cpus().map_or(1, |cpus| usize::from(cpus).clamp(1, Cpu::MOST));
    for cpu in (1..wanted).map(Cpu) {
        assert!(start(boot, cpu), "processor {} does not start", cpu.index());
        RUNNING.store(cpu.index() + 1, Relaxed);
    }
    wanted
}

/// Starts `cpu`, or starts it anew: whatever it was doing is lost. Whether it came up.
pub fn start(boot: &Boot, cpu: Cpu) -> bool {
    assert!(!cpu.is_boot());
    let page = trampoline_frame(boot);
    page.write_bytes(0, trampoline_bytes());
    hand_over(cpu);
    RUNNING_TASK.of(cpu).store(ptr::null_mut(), Relaxed);
    IS_UP.of(cpu).store(false, SeqCst);
    let apic = Apic::here();
    apic.send(Delivery::Init, cpu.destination());
    clock::wait(clock::microseconds(10_000));
    for _ in 0..2 {
        apic.send(Delivery::StartUp(page_number(page)), cpu.destination());
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

/// What runs on a processor, told to it by the address.
struct Task<'a>(&'a (dyn Fn(Cpu) + Sync));

/// What each processor is to run; null when it has done so.
static RUNNING_TASK: PerCpu<AtomicPtr<()>> = PerCpu::new([const { AtomicPtr::new(ptr::null_mut()) }; Cpu::MOST]);

/// Runs `body` on all processors at once, with interrupts off, and waits until all are done. Fails, or skips, if one did.
pub fn run_on_all(body: impl Fn(Cpu) -> Outcome + Sync) -> Outcome {
    let (failed, skipped) = (AtomicBool::new(false), AtomicBool::new(false));
    run_each(&|cpu| match body(cpu) {
        Ok(()) => {}
        Err(Stop::Failed) => failed.store(true, Relaxed),
        Err(Stop::Skipped(_)) => skipped.store(true, Relaxed),
    });
    if failed.load(Relaxed) {
        Err(Stop::Failed)
    } else if skipped.load(Relaxed) {
        Err(Stop::Skipped("a processor says that it does not apply"))
    } else {
        Ok(())
    }
}

fn run_each(body: &(dyn Fn(Cpu) + Sync)) {
    assert!(Cpu::current().is_boot(), "only the processor that booted gives work");
    let task = Task(body);
    let others = cpus().skip(1);
    for cpu in others.clone() {
        RUNNING_TASK.of(cpu).store((&raw const task).cast_mut().cast(), Release);
    }
    body(Cpu::BOOT);
    for cpu in others {
        while !RUNNING_TASK.of(cpu).load(Acquire).is_null() {
            hint::spin_loop();
        }
    }
}

/// Where processors wait for each other. For as many as [`count`] says.
pub struct Barrier {
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Barrier {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) }
    }

    /// Waits until all are here.
    pub fn wait(&self) {
        let round = self.round.load(Acquire);
        if self.arrived.fetch_add(1, SeqCst) + 1 == count() {
            self.arrived.store(0, Relaxed);
            self.round.store(round + 1, Release);
        }
        while self.round.load(Acquire) == round {
            hint::spin_loop();
        }
    }
}

impl Default for Barrier {
    fn default() -> Self {
        Self::new()
    }
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
    let cpu = Cpu(index as usize);
    descriptors::init(cpu);
    descriptors::load_idt();
    apic::note_reset_state();
    let id = Apic::start().id();
    assert_eq!(id, cpu.apic_id(), "the APIC ID of processor {index}");
    IS_UP.of(cpu).store(true, Release);
    loop {
        // Not with interrupts off: there are hosts whose own don't come through to a processor in such a state.
        interrupts::enable();
        while RUNNING_TASK.of(cpu).load(Relaxed).is_null() {
            hint::spin_loop();
        }
        interrupts::disable();
        let task: *const Task<'_> = RUNNING_TASK.of(cpu).load(Acquire).cast();
        // SAFETY: if not null, it is the task in a frame of `run_each`, which waits until it is null again.
        if let Some(task) = unsafe { task.as_ref() } {
            (task.0)(cpu);
            RUNNING_TASK.of(cpu).store(ptr::null_mut(), Release);
        }
    }
}
