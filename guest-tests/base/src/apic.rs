//! A processor's local APIC, by memory (xAPIC) or by MSRs (x2APIC): one interface for both.
//!
//! Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller"; AMD64 APM volume 2, chapter 16.

use core::ptr;
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Relaxed, SeqCst},
    fence,
};

use abi::mmio;
use addr::Gva;
use arch::apic::{COMMAND_ALL, COMMAND_ASSERT, COMMAND_LOGICAL, COMMAND_OTHERS, COMMAND_SELF, delivery, register};

pub use arch::apic::{
    BASE_BSP, BASE_ENABLED, BASE_X2APIC, DIVIDE_BY_1, ERROR_RECEIVE_ILLEGAL_VECTOR, ERROR_SEND_ILLEGAL_VECTOR,
    LVT_MASKED, LVT_PERIODIC, LVT_TSC_DEADLINE, SOFTWARE_ENABLED,
};

use crate::cpuid::cpuid;
use crate::interrupts;
use crate::msr::{self, APIC_BASE, TSC_DEADLINE};
use crate::raw_gva::RawGva;
use crate::smp::{Cpu, PerCpu};

/// Registers, by their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Register {
    /// The APIC ID: in bits 24 to 31 in memory, all of the MSR.
    Id = register::ID,
    /// Version and number of LVT entries.
    Version = register::VERSION,
    /// Task priority.
    TaskPriority = register::TASK_PRIORITY,
    /// Processor priority.
    ProcessorPriority = register::PROCESSOR_PRIORITY,
    /// End of interrupt.
    EndOfInterrupt = register::END_OF_INTERRUPT,
    /// Logical destination.
    LogicalDestination = register::LOGICAL_DESTINATION,
    /// Destination format; not in x2APIC mode.
    DestinationFormat = register::DESTINATION_FORMAT,
    /// Spurious interrupt vector.
    Spurious = register::SPURIOUS,
    /// Vectors in service, the first 32 of eight.
    InService = register::IN_SERVICE,
    /// Vectors that are level-triggered, the first 32 of eight.
    TriggerMode = register::TRIGGER_MODE,
    /// Vectors requested, the first 32 of eight.
    Requested = register::INTERRUPT_REQUEST,
    /// Errors.
    ErrorStatus = register::ERROR_STATUS,
    /// Interrupt command, in memory its low half.
    Command = register::COMMAND_LOW,
    /// Interrupt command's destination; not in x2APIC mode.
    CommandHigh = register::COMMAND_HIGH,
    /// Timer's vector and mode.
    LvtTimer = register::LVT_TIMER,
    /// Thermal sensor's vector.
    LvtThermal = register::LVT_THERMAL,
    /// Performance counters' vector.
    LvtPerformance = register::LVT_PERFORMANCE,
    /// What the pin LINT0 is for.
    LvtLint0 = register::LVT_LINT0,
    /// What the pin LINT1 is for.
    LvtLint1 = register::LVT_LINT1,
    /// Errors' vector.
    LvtError = register::LVT_ERROR,
    /// The count that the timer starts from.
    InitialCount = register::INITIAL_COUNT,
    /// The count where the timer is.
    CurrentCount = register::CURRENT_COUNT,
    /// The timer's divisor.
    Divide = register::DIVIDE,
    /// A self-IPI; in x2APIC mode only.
    SelfIpi = register::SELF_IPI,
}

impl Register {
    /// The offset in memory.
    pub const fn offset(self) -> u16 {
        (self as u16) << register::OFFSET_SHIFT
    }

    /// The register's number among the x2APIC's MSRs.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// LVT LINT0 and LINT1: the vector is the 8259's.
pub const LVT_EXT_INT: u32 = delivery::EXT_INT << delivery::SHIFT;

/// The vector of spurious interrupts, unless a test chooses another.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// What an IPI does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// An interrupt with this vector.
    Fixed(u8),
    /// An interrupt with this vector, for one of the destinations.
    LowestPriority(u8),
    /// NMI.
    Nmi,
    /// INIT.
    Init,
    /// SIPI: real mode, at the start of the page of this number.
    StartUp(u8),
}

impl Delivery {
    fn bits(self) -> u32 {
        let (mode, vector) = match self {
            Self::Fixed(vector) => (delivery::FIXED, vector),
            Self::LowestPriority(vector) => (delivery::LOWEST_PRIORITY, vector),
            Self::Nmi => (delivery::NMI, 0),
            Self::Init => (delivery::INIT, 0),
            Self::StartUp(page) => (delivery::STARTUP, page),
        };
        COMMAND_ASSERT | mode << delivery::SHIFT | u32::from(vector)
    }
}

/// The destination of an IPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The APIC with this ID.
    Physical(u32),
    /// The APICs whose logical destination registers match this.
    Logical(u32),
    /// The sender.
    Myself,
    /// All.
    All,
    /// All but the sender.
    AllButMyself,
}

impl From<Cpu> for Destination {
    fn from(cpu: Cpu) -> Self {
        Self::Physical(cpu.apic_id())
    }
}

impl Destination {
    /// The destination field and the bits beside it.
    fn bits(self) -> (u32, u32) {
        match self {
            Self::Physical(id) => (id, 0),
            Self::Logical(mask) => (mask, COMMAND_LOGICAL),
            Self::Myself => (0, COMMAND_SELF),
            Self::All => (0, COMMAND_ALL),
            Self::AllButMyself => (0, COMMAND_OTHERS),
        }
    }
}

/// How software reaches the APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By memory.
    Xapic,
    /// By MSRs.
    X2apic,
}

/// The processors in x2APIC mode: reading the mode by RDMSR would cost an exit each time.
static X2APIC: PerCpu<AtomicBool> = PerCpu::new([const { AtomicBool::new(false) }; Cpu::MOST]);

/// Registers whose values after INIT are known, with these values (SDM, "Local APIC State After It Has Been Reset by INIT").
pub const AFTER_INIT: [(Register, u32); 12] = [
    (Register::TaskPriority, 0),
    (Register::LogicalDestination, 0),
    (Register::DestinationFormat, u32::MAX),
    (Register::Spurious, 0xff),
    (Register::ErrorStatus, 0),
    (Register::LvtTimer, LVT_MASKED),
    (Register::LvtLint0, LVT_MASKED),
    (Register::LvtLint1, LVT_MASKED),
    (Register::LvtError, LVT_MASKED),
    (Register::InitialCount, 0),
    (Register::CurrentCount, 0),
    (Register::Divide, 0),
];

/// What they held when the processor was started last.
static RESET_STATE: PerCpu<[AtomicU32; AFTER_INIT.len()]> =
    PerCpu::new([const { [const { AtomicU32::new(0) }; AFTER_INIT.len()] }; Cpu::MOST]);

/// Takes down what a processor that was just started finds. In x2APIC mode some of it is not there.
pub fn note_reset_state() {
    if msr::read(APIC_BASE) & BASE_X2APIC == 0 {
        for ((register, _), seen) in AFTER_INIT.iter().zip(RESET_STATE.here()) {
            seen.store(Apic(Mode::Xapic).read(*register), Relaxed);
        }
    }
}

/// What the registers of [`AFTER_INIT`] held when `cpu` was started last.
pub fn reset_state(cpu: Cpu) -> [u32; AFTER_INIT.len()] {
    RESET_STATE.of(cpu).each_ref().map(|seen| seen.load(Relaxed))
}

/// This processor's APIC.
#[derive(Clone, Copy, Debug)]
pub struct Apic(Mode);

impl Apic {
    /// In the mode that it was last seen or put in.
    pub fn here() -> Self {
        Self(if X2APIC.here().load(Relaxed) { Mode::X2apic } else { Mode::Xapic })
    }

    /// Whether there is an APIC.
    pub fn exists() -> bool {
        cpuid(1, 0).edx & 1 << 9 != 0
    }

    /// Whether there is x2APIC mode.
    pub fn has_x2apic() -> bool {
        cpuid(1, 0).ecx & 1 << 21 != 0
    }

    /// Whether the timer has the TSC-deadline mode.
    pub fn has_tsc_deadline() -> bool {
        cpuid(1, 0).ecx & 1 << 24 != 0
    }

    /// Notes the mode that it is in, and lets interrupts in: what a processor does first.
    pub fn start() -> Self {
        X2APIC.here().store(msr::read(APIC_BASE) & BASE_X2APIC != 0, Relaxed);
        let apic = Self::here();
        apic.write(Register::Spurious, SOFTWARE_ENABLED | u32::from(SPURIOUS_VECTOR));
        apic
    }

    /// Puts it in `mode`. From x2APIC mode it goes by way of being disabled, which resets it.
    pub fn switch(mode: Mode) -> Self {
        let base = msr::read(APIC_BASE);
        match mode {
            Mode::X2apic => set_base(base | BASE_ENABLED | BASE_X2APIC),
            Mode::Xapic if base & BASE_X2APIC != 0 => {
                set_base(base & !(BASE_ENABLED | BASE_X2APIC));
                set_base(base & !BASE_X2APIC | BASE_ENABLED);
            }
            Mode::Xapic => {}
        }
        Self::start()
    }

    /// The mode.
    pub fn mode(self) -> Mode {
        self.0
    }

    /// Reads 32 bits.
    pub fn read(self, register: Register) -> u32 {
        self.read_nth(register, 0)
    }

    /// Reads the `index`th of the eight registers that begin with this one.
    pub fn read_nth(self, register: Register, index: u8) -> u32 {
        assert!(index < 8);
        match self.0 {
            // SAFETY: `address`'s promise.
            Mode::Xapic => unsafe { ptr::read_volatile(address(register, index)) },
            Mode::X2apic => msr::read_x2apic(register, index) as u32,
        }
    }

    /// Writes 32 bits.
    pub fn write(self, register: Register, value: u32) {
        match self.0 {
            // SAFETY: `address`'s promise.
            Mode::Xapic => unsafe { ptr::write_volatile(address(register, 0), value) },
            Mode::X2apic => msr::write_x2apic(register, value.into()),
        }
    }

    /// Whether `vector` is set in one of the 256-bit registers.
    pub fn has(self, register: Register, vector: u8) -> bool {
        self.read_nth(register, vector / 32) & 1 << (vector % 32) != 0
    }

    /// The APIC ID.
    pub fn id(self) -> u32 {
        match self.0 {
            Mode::Xapic => self.read(Register::Id) >> 24,
            Mode::X2apic => self.read(Register::Id),
        }
    }

    /// The end of the interrupt in service.
    pub fn end_of_interrupt(self) {
        self.write(Register::EndOfInterrupt, 0);
    }

    /// Holds back vectors of this priority class (their high four bits) and below.
    pub fn set_task_priority(self, class: u8) {
        self.write(Register::TaskPriority, u32::from(class) << 4);
    }

    /// Sends an IPI. Delivery is not waited for: the interrupt command register is free again at once on all that came
    /// after the Pentium 4.
    pub fn send(self, delivery: Delivery, to: Destination) {
        let (destination, beside) = to.bits();
        let command = delivery.bits() | beside;
        match self.0 {
            // A handler that sends in between would change the destination.
            Mode::Xapic => interrupts::held_off(|| {
                self.write(Register::CommandHigh, destination << 24);
                self.write(Register::Command, command);
            }),
            Mode::X2apic => {
                msr::write_x2apic(Register::Command, u64::from(destination) << 32 | u64::from(command));
            }
        }
    }

    /// Lets logical destination `1 << index` name this APIC, where the mode leaves the choice: the flat model. In x2APIC mode
    /// the register follows from the ID. Returns what names it.
    pub fn join_logical(self, index: u8) -> u32 {
        match self.0 {
            Mode::Xapic => {
                self.write(Register::DestinationFormat, u32::MAX);
                self.write(Register::LogicalDestination, 1 << (24 + index));
                1 << index
            }
            Mode::X2apic => self.read(Register::LogicalDestination),
        }
    }

    /// Starts the timer at `count`, one tick of the bus clock each.
    pub fn start_timer(self, vector: u8, periodic: bool, count: u32) {
        if periodic {
            // QEMU's starts the last count anew as soon as the mode is periodic.
            self.write(Register::InitialCount, 0);
        }
        self.write(Register::Divide, DIVIDE_BY_1);
        self.write(Register::LvtTimer, u32::from(vector) | if periodic { LVT_PERIODIC } else { 0 });
        self.write(Register::InitialCount, count);
    }

    /// Starts a periodic timer at `count` that interrupts nothing: its LVT entry is masked.
    pub fn start_masked_timer(self, count: u32) {
        self.write(Register::Divide, DIVIDE_BY_1);
        self.write(Register::LvtTimer, LVT_MASKED | LVT_PERIODIC);
        self.write(Register::InitialCount, count);
    }

    /// How many ticks of the timer's clock pass while `body` runs. The timer is off afterwards.
    pub fn ticks_during(self, body: impl FnOnce()) -> u32 {
        self.start_masked_timer(u32::MAX);
        body();
        let left = self.read(Register::CurrentCount);
        self.stop_timer();
        u32::MAX - left
    }

    /// Sets the timer to fire when the TSC reaches `deadline`.
    pub fn start_deadline(self, vector: u8, deadline: u64) {
        self.write(Register::LvtTimer, u32::from(vector) | LVT_TSC_DEADLINE);
        // In memory the LVT is written by a store, which WRMSR does not wait for (SDM, "TSC-Deadline Mode").
        fence(SeqCst);
        self.move_deadline(deadline);
    }

    /// Sets another deadline for a timer that has one, or none (0).
    pub fn move_deadline(self, deadline: u64) {
        // SAFETY: the timer interrupts, no more.
        unsafe { msr::write(TSC_DEADLINE, deadline) };
    }

    /// Stops the timer, whatever its mode. What it has requested already stays requested.
    pub fn stop_timer(self) {
        if self.read(Register::LvtTimer) & LVT_TSC_DEADLINE != 0 {
            self.move_deadline(0);
        }
        self.write(Register::InitialCount, 0);
        self.write(Register::LvtTimer, LVT_MASKED);
    }
}

fn set_base(value: u64) {
    // SAFETY: the callers change the mode alone, and so how the registers are reached.
    unsafe { msr::write(APIC_BASE, value) };
}

/// The registers' page as tests may touch it.
pub fn page() -> RawGva {
    RawGva::in_frame(Gva::new(mmio::LOCAL_APIC.into()))
}

/// Within the registers' page, which the one-to-one map maps and where no Rust object is: accesses to it, 32 bits wide and
/// aligned to 16 bytes as these are, do nothing to memory.
fn address(register: Register, index: u8) -> *mut u32 {
    ptr::with_exposed_provenance_mut((mmio::LOCAL_APIC + u32::from(register.offset()) + 16 * u32::from(index)) as usize)
}
