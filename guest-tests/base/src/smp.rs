//! Several processors: their numbers, and the work that they are given. Code for 32 or for 64 bits starts them, and
//! has them [`serve`].

use core::arch::asm;
use core::hint;
use core::ptr;
use core::slice;
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use crate::ktap::{NotPassed, Outcome};

/// Selector of the first processor's TSS, and the distance to the next one's.
pub const FIRST_TSS: u16 = 0x30;
/// A descriptor of long mode is as long.
pub const TSS_STEP: u16 = 16;

/// A processor by its number, which is also its APIC ID: the numbering of QEMU for processors without threads, and of this
/// hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu(usize);

impl Cpu {
    /// As many as a guest can use.
    pub const MOST: usize = 16;
    /// The one that booted.
    pub const BOOT: Self = Self(0);

    /// The one of this number.
    pub const fn new(index: usize) -> Self {
        assert!(index < Self::MOST);
        Self(index)
    }

    /// The one that runs this, by its TSS; the first one before it has any.
    pub fn current() -> Self {
        let selector: u16;
        // SAFETY: it reads the task register.
        unsafe { asm!("str {0:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
        Self(usize::from(selector).saturating_sub(usize::from(FIRST_TSS)) / usize::from(TSS_STEP))
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

/// From now on so many processors run.
pub fn set_count(count: usize) {
    RUNNING.store(count, Relaxed);
}

/// How many processors run.
pub fn count() -> usize {
    RUNNING.load(Relaxed)
}

/// The processors that run.
pub fn cpus() -> impl DoubleEndedIterator<Item = Cpu> + Clone {
    (0..count()).map(Cpu)
}

/// What runs on a processor, told to it by the address.
pub struct Task<'a>(pub &'a (dyn Fn(Cpu) + Sync));

/// What each processor is to run; null when it has done so.
static RUNNING_TASK: PerCpu<AtomicPtr<()>> = PerCpu::new([const { AtomicPtr::new(ptr::null_mut()) }; Cpu::MOST]);

/// Runs `body` on all processors at once, with interrupts off, and waits until all are done. Fails, or skips, if one did.
pub fn run_on_all(body: impl Fn(Cpu) -> Outcome + Sync) -> Outcome {
    let (failed, skipped) = (AtomicBool::new(false), AtomicBool::new(false));
    run_each(&|cpu| match body(cpu) {
        Ok(()) => {}
        Err(NotPassed::Failed) => failed.store(true, Relaxed),
        Err(NotPassed::Skipped(_)) => skipped.store(true, Relaxed),
    });
    if failed.load(Relaxed) {
        Err(NotPassed::Failed)
    } else if skipped.load(Relaxed) {
        Err(NotPassed::Skipped("a processor says that it does not apply"))
    } else {
        Ok(())
    }
}

/// Has `cpu` run `task`, and does not wait for it.
pub fn assign(cpu: Cpu, task: &'static Task<'static>) {
    RUNNING_TASK.of(cpu).store(ptr::from_ref(task).cast_mut().cast(), Release);
}

/// Forgets what `cpu` was to run: it is started anew.
pub fn forget_task(cpu: Cpu) {
    RUNNING_TASK.of(cpu).store(ptr::null_mut(), Relaxed);
}

/// Runs what [`run_on_all`] gives `cpu`, for ever.
pub fn serve(cpu: Cpu) -> ! {
    loop {
        // On some hosts the host's own interrupts do not reach a processor whose guest has interrupts off.
        // SAFETY: the handlers preserve all that they interrupt.
        unsafe { asm!("sti", options(nostack)) };
        while RUNNING_TASK.of(cpu).load(Relaxed).is_null() {
            hint::spin_loop();
        }
        // SAFETY: it keeps handlers from running, no more.
        unsafe { asm!("cli", options(nostack)) };
        let task: *const Task<'_> = RUNNING_TASK.of(cpu).load(Acquire).cast();
        // SAFETY: if not null, it is the task in a frame of `run_each`, which waits until it is null again.
        if let Some(task) = unsafe { task.as_ref() } {
            (task.0)(cpu);
            RUNNING_TASK.of(cpu).store(ptr::null_mut(), Release);
        }
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
    /// No processor waits.
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
