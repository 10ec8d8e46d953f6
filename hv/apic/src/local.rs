//! The APIC of one vCPU, as its owner has it.

use crate::Clock;
use crate::ipi::Ipi;
use crate::posted::{Posted, highest};
use crate::register::{Lvt, Register};
use crate::timer::{Due, Mode, Timer};

/// What a write leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing more than that another interrupt may be deliverable now.
    None,
    /// Something is to be sent: [`deliver`](crate::deliver).
    Send(Ipi),
    /// The timer is due at another time: [`LocalApic::due`].
    Timer,
}

/// One vCPU's local APIC.
pub struct LocalApic {
    pub(crate) index: u32,
    pub(crate) base: u64,
    task_priority: u32,
    spurious: u32,
    logical: u32,
    format: u32,
    in_service: [u32; 8],
    /// What is shown, and what has come since that was written.
    error_status: u32,
    errors: u32,
    pub(crate) command: u64,
    local: [u32; Lvt::COUNT],
    timer: Timer,
}

const VERSION: u32 = (Lvt::COUNT as u32 - 1) << 16 | 0x14;
const SOFTWARE_ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;
const EXT_INT: u32 = 7 << 8;
/// The command's shorthand for the sender itself.
const SELF: u32 = 1 << 18;
/// The command's bits that can be written: not the delivery status.
pub(crate) const COMMAND: u32 = 0x000c_cfff;
const FIRST_VECTOR: u8 = 16;

/// IA32_APIC_BASE after reset: its address, and that it is on.
const BASE: u64 = 0xfee0_0000 | BASE_ON;
const BASE_ON: u64 = 1 << 11;
const BASE_BOOT: u64 = 1 << 8;

impl LocalApic {
    /// That of vCPU `index`, after reset. The first is the boot vCPU's.
    pub fn new(index: u32, posted: &Posted) -> Self {
        let mut apic = Self {
            index,
            base: BASE | if index == 0 { BASE_BOOT } else { 0 },
            task_priority: 0,
            spurious: 0xff,
            logical: 0,
            format: u32::MAX,
            in_service: [0; 8],
            error_status: 0,
            errors: 0,
            command: 0,
            local: [MASKED; Lvt::COUNT],
            timer: Timer::new(),
        };
        apic.reset(posted);
        apic
    }

    /// What INIT does: all but the ID and IA32_APIC_BASE as after reset (SDM section 11.4.7.3).
    ///
    /// As with KVM, the boot vCPU's LINT0 lets the 8259s through from the start: what firmware leaves.
    pub fn reset(&mut self, posted: &Posted) {
        let Self { index, base, .. } = *self;
        *self = Self {
            index,
            base,
            task_priority: 0,
            spurious: 0xff,
            logical: 0,
            format: u32::MAX,
            in_service: [0; 8],
            error_status: 0,
            errors: 0,
            command: 0,
            local: [MASKED; Lvt::COUNT],
            timer: Timer::new(),
        };
        if index == 0 {
            self.local[Lvt::Lint0 as usize] = EXT_INT;
        }
        // First nothing more is taken, then what was is forgotten.
        self.publish(posted);
        posted.clear_irr();
    }

    /// Tells the others what they have to know.
    pub(crate) fn publish(&self, posted: &Posted) {
        posted.set_mode(self.is_on(), self.spurious & SOFTWARE_ENABLED != 0, self.is_x2apic());
        posted.set_logical(self.logical, self.format);
    }

    /// Whether the registers' page is the one around this guest-physical address. In x2APIC mode they are not in memory.
    #[inline]
    pub fn is_at(&self, address: u64) -> bool {
        self.base & !BASE_BOOT == address & !0xfff | BASE_ON
    }

    /// Reads a register.
    #[inline]
    pub fn read(&mut self, register: Register, posted: &Posted, clock: &impl Clock) -> u32 {
        match register {
            Register::Id if self.is_x2apic() => self.index,
            Register::Id => self.index << 24,
            Register::Version => VERSION,
            Register::TaskPriority => self.task_priority,
            Register::ProcessorPriority => self.processor_priority().into(),
            Register::LogicalDestination if self.is_x2apic() => self.index >> 4 << 16 | 1 << (self.index & 15),
            Register::LogicalDestination => self.logical,
            Register::DestinationFormat => self.format,
            Register::Spurious => self.spurious,
            Register::InService(word) => self.in_service[usize::from(word & 7)],
            Register::InterruptRequest(word) => posted.irr_word(word),
            Register::ErrorStatus => self.error_status,
            Register::CommandLow => self.command as u32,
            Register::CommandHigh => (self.command >> 32) as u32,
            Register::Local(lvt) => self.local[lvt as usize],
            Register::InitialCount => self.timer.initial,
            Register::CurrentCount => self.timer.current(self.timer_mode(), clock),
            Register::Divide => self.timer.divide,
            // No interrupt here is level-triggered; the others have no use, or are for writing.
            Register::TriggerMode(_)
            | Register::ArbitrationPriority
            | Register::RemoteRead
            | Register::EndOfInterrupt
            | Register::SelfIpi => 0,
        }
    }

    /// Writes a register. Those that can't be written stay as they are.
    #[inline]
    pub fn write(&mut self, register: Register, value: u32, posted: &Posted, clock: &impl Clock) -> Effect {
        match register {
            Register::TaskPriority => self.task_priority = value & 0xff,
            Register::EndOfInterrupt => self.end_of_interrupt(),
            Register::CommandLow => return self.command(value, posted),
            Register::CommandHigh => self.command = self.command & 0xffff_ffff | u64::from(value) << 32,
            _ => return self.write_rarely(register, value, posted, clock),
        }
        Effect::None
    }

    #[inline(never)]
    fn write_rarely(&mut self, register: Register, value: u32, posted: &Posted, clock: &impl Clock) -> Effect {
        match register {
            Register::LogicalDestination => self.logical = value & 0xff00_0000,
            Register::DestinationFormat => self.format = value | 0x0fff_ffff,
            Register::Spurious => self.set_spurious(value),
            Register::ErrorStatus => self.error_status = core::mem::take(&mut self.errors),
            Register::Local(lvt) => return self.set_local(lvt, value),
            Register::InitialCount => {
                self.timer.set_initial(value, self.timer_mode(), clock);
                return Effect::Timer;
            }
            Register::Divide => {
                self.timer.set_divide(value, self.timer_mode(), clock);
                return Effect::Timer;
            }
            // Not a part of the command that can be read.
            Register::SelfIpi if self.is_x2apic() => return self.send(SELF | value & 0xff, 0, posted),
            Register::SelfIpi => self.illegal_register(posted),
            _ => {}
        }
        self.publish(posted);
        Effect::None
    }

    /// An access to a place where no register is.
    pub fn illegal_register(&mut self, posted: &Posted) {
        self.error(ILLEGAL_REGISTER, posted);
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value & (SOFTWARE_ENABLED | 0xff);
        if value & SOFTWARE_ENABLED == 0 {
            self.local.iter_mut().for_each(|entry| *entry |= MASKED);
        }
    }

    fn set_local(&mut self, lvt: Lvt, value: u32) -> Effect {
        let forced = if self.spurious & SOFTWARE_ENABLED == 0 { MASKED } else { 0 };
        let old = core::mem::replace(&mut self.local[lvt as usize], value & lvt.writable() | forced);
        if lvt != Lvt::Timer {
            return Effect::None;
        }
        self.timer.change_mode(Mode::new(old), Mode::new(value));
        Effect::Timer
    }

    /// The interrupt command's lower half, whose write sends.
    #[inline(never)]
    fn command(&mut self, value: u32, posted: &Posted) -> Effect {
        self.command = self.command & !0xffff_ffff | u64::from(value & COMMAND);
        let high = (self.command >> 32) as u32;
        self.send(value, if self.is_x2apic() { high } else { high >> 24 }, posted)
    }

    fn send(&mut self, command: u32, destination: u32, posted: &Posted) -> Effect {
        let has_vector = command >> 8 & 7 <= 1;
        if has_vector && (command as u8) < FIRST_VECTOR {
            self.error(SEND_ILLEGAL_VECTOR, posted);
            return Effect::None;
        }
        Ipi::new(command, destination, self.is_x2apic()).map_or(Effect::None, Effect::Send)
    }

    /// Each kind of error interrupts once, until a write of the error status arms it again (SDM section 11.5.3).
    #[cold]
    fn error(&mut self, error: u32, posted: &Posted) {
        let is_new = self.errors & error == 0;
        self.errors |= error;
        if is_new {
            self.deliver_local(Lvt::Error, posted);
        }
    }

    /// Requests what the local vector table has for `lvt`.
    fn deliver_local(&mut self, lvt: Lvt, posted: &Posted) {
        let entry = self.local[lvt as usize];
        if entry & MASKED != 0 {
            return;
        }
        if entry as u8 >= FIRST_VECTOR {
            posted.post_vector(entry as u8);
        } else {
            // If it is the error entry's own vector, this comes back once, and finds the error known.
            self.error(RECEIVE_ILLEGAL_VECTOR, posted);
        }
    }

    #[inline]
    fn timer_mode(&self) -> Mode {
        Mode::new(self.local[Lvt::Timer as usize])
    }

    /// When [`expire`](Self::expire) has something to do.
    #[inline]
    pub fn due(&self) -> Option<Due> {
        self.timer.due(self.timer_mode())
    }

    /// Does what time has brought, to a guest whose TSC is `tsc`.
    pub fn expire(&mut self, posted: &Posted, clock: &impl Clock, tsc: u64) {
        if self.timer.expires(self.timer_mode(), clock, tsc) {
            self.deliver_local(Lvt::Timer, posted);
        }
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == Mode::Deadline { self.timer.deadline } else { 0 }
    }

    /// Arms the timer, if it is in that mode; 0 disarms it.
    pub fn set_tsc_deadline(&mut self, tsc: u64) {
        if self.timer_mode() == Mode::Deadline {
            self.timer.deadline = tsc;
        }
    }

    /// CR8: the upper half of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4)
    }

    /// Sets CR8.
    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = (value as u32 & 0xf) << 4;
    }

    /// Whether the vCPU takes interrupts of the 8259s: the APIC is off, or LINT0 lets them through.
    pub fn accepts_ext_int(&self) -> bool {
        const MODE: u32 = 7 << 8;
        !self.is_on() || self.local[Lvt::Lint0 as usize] & (MODE | MASKED) == EXT_INT
    }

    #[inline]
    fn in_service(&self) -> Option<u8> {
        highest(|word| self.in_service[usize::from(word & 7)])
    }

    /// The higher of the task priority and the class of what is being served (SDM section 11.8.3.1).
    #[inline]
    fn processor_priority(&self) -> u8 {
        let served = self.in_service().unwrap_or(0) & 0xf0;
        let task = self.task_priority as u8;
        if task >> 4 >= served >> 4 { task } else { served }
    }

    /// The interrupt that the vCPU is to take next, if its class is above the processor's priority.
    #[inline]
    pub fn next(&self, posted: &Posted) -> Option<u8> {
        let vector = posted.highest()?;
        (vector >> 4 > self.processor_priority() >> 4 && self.is_on()).then_some(vector)
    }

    /// The vCPU takes that interrupt.
    pub fn acknowledge(&mut self, posted: &Posted) -> Option<u8> {
        let vector = self.next(posted)?;
        posted.take_vector(vector);
        self.in_service[usize::from(vector >> 5)] |= 1 << (vector & 31);
        Some(vector)
    }

    fn end_of_interrupt(&mut self) {
        if let Some(vector) = self.in_service() {
            self.in_service[usize::from(vector >> 5)] &= !(1 << (vector & 31));
        }
    }
}
