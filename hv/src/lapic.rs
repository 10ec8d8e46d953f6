//! This CPU's local APIC: interrupts for other CPUs, the timer, the end of interrupts (Intel SDM vol. 3, chapter 11; AMD APM
//! vol. 2, chapter 16).

use crate::cpus::{self, CPUS};
use crate::paging;
use abi::ports::PICS;
use addr::Hpa;
use arch::apic::{
    BASE_ENABLED, BASE_X2APIC, DELIVERY_STATUS, DIVIDE_BY_1, LVT_MASKED, LVT_TSC_DEADLINE, SOFTWARE_ENABLED,
    X2APIC_MSRS, command, delivery, register,
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use raw_cpuid::{CpuId, CpuIdReaderNative};
use x86::io::outb;
use x86::msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, rdmsr, wrmsr};

/// A kick, which has no handler of its own: a CPU in guest mode exits, one asleep wakes, and then it looks at its requests.
pub(crate) const KICK: u8 = 0xf1;
/// The timer's interrupt.
pub(crate) const TIMER: u8 = 0xf2;
/// An error of the APIC itself.
pub(crate) const ERROR: u8 = 0xf3;
/// What is delivered when an interrupt goes away while it is acknowledged. Software sends no end of interrupt for it.
pub(crate) const SPURIOUS: u8 = 0xff;

/// Registers, by their number.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Register {
    Id = register::ID,
    TaskPriority = register::TASK_PRIORITY,
    EndOfInterrupt = register::END_OF_INTERRUPT,
    Spurious = register::SPURIOUS,
    ErrorStatus = register::ERROR_STATUS,
    CommandLow = register::COMMAND_LOW,
    CommandHigh = register::COMMAND_HIGH,
    Timer = register::LVT_TIMER,
    Lint0 = register::LVT_LINT0,
    Lint1 = register::LVT_LINT1,
    Error = register::LVT_ERROR,
    InitialCount = register::INITIAL_COUNT,
    CurrentCount = register::CURRENT_COUNT,
    Divide = register::DIVIDE,
}

impl Register {
    /// The offset in the page of xAPIC mode.
    const fn offset(self) -> u64 {
        (self as u64) << register::OFFSET_SHIFT
    }

    /// The MSR of x2APIC mode.
    const fn msr(self) -> u32 {
        X2APIC_MSRS.start + self as u32
    }
}

/// LINT1's.
const NMI: u32 = delivery::NMI << delivery::SHIFT;

/// Where the xAPIC's registers are; 0 in x2APIC mode.
static PAGE: AtomicU64 = AtomicU64::new(0);
/// Whether timers take a TSC value.
static HAS_DEADLINE: AtomicBool = AtomicBool::new(false);

/// Finds out what the CPUs' APICs can do, and masks the 8259s. `page` is where the firmware says that the APICs' registers are.
///
/// # Safety
/// Once, on the boot CPU, before [`init`].
pub(crate) unsafe fn find(page: Option<Hpa>) {
    // Before LINT0 is masked: QEMU does not take the request of theirs back that it has handed to the CPU by then, and raises #GP
    // when the CPU asks for the vector.
    for port in PICS.map(|command| command + 1) {
        // SAFETY: the interrupt controllers are the hypervisor's.
        unsafe { outb(port, 0xff) };
    }
    let features = CpuId::with_cpuid_reader(CpuIdReaderNative).get_feature_info();
    HAS_DEADLINE.store(features.as_ref().is_some_and(|features| features.has_tsc_deadline()), Ordering::Relaxed);
    if !features.is_some_and(|features| features.has_x2apic()) {
        const USUAL: Hpa = Hpa::new(abi::mmio::LOCAL_APIC as u64);
        let page = page.unwrap_or(USUAL);
        PAGE.store(page.raw(), Ordering::Relaxed);
    }
}

/// Whether an interrupt can be sent to the APIC `id`.
pub(crate) fn can_reach(id: u32) -> bool {
    command::reaches(id, PAGE.load(Ordering::Relaxed) == 0)
}

/// Switches this CPU's APIC on.
///
/// # Safety
/// On each CPU, with interrupts off, after [`find`].
pub(crate) unsafe fn init() {
    // SAFETY: every processor that has long mode has the register.
    let base = unsafe { rdmsr(IA32_APIC_BASE) };
    let mode = if PAGE.load(Ordering::Relaxed) == 0 { BASE_ENABLED | BASE_X2APIC } else { BASE_ENABLED };
    // SAFETY: from off or xAPIC to the mode that CPUID offers.
    unsafe { wrmsr(IA32_APIC_BASE, base | mode) };
    write(Register::TaskPriority, 0);
    // First: while an APIC is off, the masks of its local interrupts can't be cleared (SDM 11.4.7.2).
    write(Register::Spurious, SOFTWARE_ENABLED | u32::from(SPURIOUS));
    write(Register::Lint0, LVT_MASKED);
    write(Register::Lint1, NMI);
    write(Register::Error, u32::from(ERROR));
    write(Register::Divide, DIVIDE_BY_1);
    disarm();
}

fn page(register: Register) -> Option<*mut u32> {
    let page = PAGE.load(Ordering::Relaxed);
    (page != 0).then(|| paging::direct(Hpa::new(page + register.offset())).cast())
}

fn read(register: Register) -> u32 {
    match page(register) {
        // SAFETY: the APIC's page is mapped, uncached, in the direct map.
        Some(register) => unsafe { register.read_volatile() },
        // SAFETY: x2APIC mode is on, and the register is one that it has.
        None => unsafe { rdmsr(register.msr()) as u32 },
    }
}

fn write(register: Register, value: u32) {
    match page(register) {
        // SAFETY: as in `read`; what is written is this module's to say.
        Some(register) => unsafe { register.write_volatile(value) },
        // SAFETY: as above.
        None => unsafe { wrmsr(register.msr(), u64::from(value)) },
    }
}

/// This CPU's APIC ID.
pub(crate) fn id() -> u32 {
    let id = read(Register::Id);
    if PAGE.load(Ordering::Relaxed) == 0 { id } else { id >> 24 }
}

/// Sends what `command` says to the APIC `target`. Interrupts are off, so that nothing comes between the two halves.
fn send(target: u32, command: u32) {
    if PAGE.load(Ordering::Relaxed) == 0 {
        // SAFETY: x2APIC mode is on; the command is one of this module's.
        unsafe { wrmsr(Register::CommandLow.msr(), command::x2apic(target, command)) };
        return;
    }
    while read(Register::CommandLow) & DELIVERY_STATUS != 0 {
        core::hint::spin_loop();
    }
    write(Register::CommandHigh, command::xapic_high(target));
    write(Register::CommandLow, command);
}

/// Which CPU this is. By its APIC ID, so that it works where nothing else is known, as in a panic.
pub(crate) fn this_cpu() -> usize {
    if cpus::online() == 1 { 0 } else { CPUS.with_apic_id(id()) }
}

/// Interrupts CPU `cpu`, to have it look around.
pub(crate) fn kick(cpu: usize) {
    send(CPUS.apic_id(cpu), command::fixed(KICK));
}

/// INIT: the CPU waits for a start-up interrupt.
pub(crate) fn init_ipi(target: u32) {
    send(target, command::INIT);
}

/// Start-up: the CPU begins in real mode at the page at `entry`, below 1 MiB.
pub(crate) fn startup_ipi(target: u32, entry: Hpa) {
    send(target, command::startup(entry.frame().raw() as u8));
}

/// Interrupts this CPU, as soon as interrupts are on.
pub(crate) fn kick_self() {
    send(id(), command::fixed(KICK));
}

/// NMI for CPU `cpu`.
pub(crate) fn nmi(cpu: usize) {
    send(CPUS.apic_id(cpu), command::NMI);
}

/// The end of an interrupt's handler.
pub(crate) fn end_of_interrupt() {
    write(Register::EndOfInterrupt, 0);
}

/// What went wrong, as the error interrupt's handler asks.
pub(crate) fn error_status() -> u32 {
    write(Register::ErrorStatus, 0);
    read(Register::ErrorStatus)
}

/// Whether the timer takes a TSC value; else it counts down.
pub(crate) fn has_deadline() -> bool {
    HAS_DEADLINE.load(Ordering::Relaxed)
}

/// Has the timer interrupt at the TSC value `tsc`, or at once if that is past. Only where [`has_deadline`].
pub(crate) fn arm_deadline(tsc: u64) {
    write(Register::Timer, LVT_TSC_DEADLINE | u32::from(TIMER));
    // The mode has to be in effect before the deadline is written: in xAPIC mode only a fence orders the two (SDM 11.5.4.1).
    // SAFETY: a fence.
    unsafe { core::arch::x86_64::_mm_mfence() };
    // SAFETY: the processor has the register. 0 would disarm.
    unsafe { wrmsr(IA32_TSC_DEADLINE, tsc.max(1)) };
}

/// Has the timer interrupt after `count` of its periods.
pub(crate) fn arm_count(count: u32) {
    write(Register::Timer, u32::from(TIMER));
    write(Register::InitialCount, count.max(1));
}

/// No timer interrupt.
pub(crate) fn disarm() {
    write(Register::Timer, LVT_MASKED);
    write(Register::InitialCount, 0);
}

/// Lets the timer count down from its largest count, without an interrupt; what is left is [`count`].
pub(crate) fn count_freely() {
    write(Register::Timer, LVT_MASKED);
    write(Register::InitialCount, u32::MAX);
}

/// What the timer has still to count.
pub(crate) fn count() -> u32 {
    read(Register::CurrentCount)
}
