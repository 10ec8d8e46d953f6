//! The local APIC of one vCPU, used by this vCPU alone.

use crate::Clock;
use crate::ipi::Ipi;
use crate::posted::{self, Posted, highest};
use crate::register::{Lvt, Register};
use crate::timer::{Due, Mode, Timer};
use arch::apic::{
    self as bits, BASE_BSP, BASE_ENABLED, COMMAND_SELF, ERROR_ILLEGAL_REGISTER, ERROR_RECEIVE_ILLEGAL_VECTOR,
    ERROR_SEND_ILLEGAL_VECTOR, FIRST_VECTOR, LVT_MASKED, SOFTWARE_ENABLED, delivery,
};

/// What the caller has to do after a register write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing, but another interrupt may be deliverable now.
    None,
    /// Send an IPI, by [`deliver`](crate::deliver).
    Send(Ipi),
    /// Tell the I/O APICs that this level-triggered interrupt has ended.
    BroadcastEoi(u8),
    /// Program the timer again: [`LocalApic::due`] has changed.
    Timer,
    /// Tell the processor, if it keeps CR8 itself: [`LocalApic::cr8`] may have changed.
    TaskPriority,
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
    /// The highest vector in service, so that it is not looked for at each delivery (KVM's `highest_isr_cache`). 0: none is.
    served: u8,
    /// The error status register (ESR), as it is read.
    error_status: u32,
    /// Errors since the last write of the ESR, which copies them there.
    errors: u32,
    pub(crate) command: u64,
    local: [u32; Lvt::COUNT],
    timer: Timer,
}

const VERSION: u32 = (Lvt::COUNT as u32 - 1) << 16 | bits::VERSION as u32;
const EXT_INT: u32 = delivery::EXT_INT << delivery::SHIFT;
/// Writable bits of the ICR's lower half: not the delivery status.
pub(crate) const COMMAND: u32 = 0x000c_cfff;

/// IA32_APIC_BASE after reset: the default address, enabled.
const BASE: u64 = abi::mmio::LOCAL_APIC as u64 | BASE_ENABLED;

impl LocalApic {
    /// The APIC of vCPU `index`, as after reset. vCPU 0 is the boot vCPU.
    pub fn new(index: u32, posted: &Posted) -> Self {
        let mut apic = Self {
            index,
            base: BASE | if index == 0 { BASE_BSP } else { 0 },
            task_priority: 0,
            spurious: 0xff,
            logical: 0,
            format: u32::MAX,
            in_service: [0; 8],
            served: 0,
            error_status: 0,
            errors: 0,
            command: 0,
            local: [LVT_MASKED; Lvt::COUNT],
            timer: Timer::new(),
        };
        apic.reset(posted);
        apic
    }

    /// INIT: resets all registers except the ID and IA32_APIC_BASE (SDM section 11.4.7.3).
    ///
    /// As in KVM, the boot vCPU's LINT0 is in ExtINT mode then, as firmware leaves it: interrupts of the 8259s pass.
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
            served: 0,
            error_status: 0,
            errors: 0,
            command: 0,
            local: [LVT_MASKED; Lvt::COUNT],
            timer: Timer::new(),
        };
        if index == 0 {
            self.local[Lvt::Lint0 as usize] = EXT_INT;
        }
        // Other vCPUs must see the APIC disabled before the IRR is cleared, or a vector that arrives in between would stay.
        self.publish(posted);
        posted.clear_irr();
    }

    /// Shows mode and logical destination to the vCPUs that send interrupts.
    pub(crate) fn publish(&self, posted: &Posted) {
        posted.set_mode(posted::Mode {
            hardware: self.is_on(),
            software: self.spurious & SOFTWARE_ENABLED != 0,
            x2apic: self.is_x2apic(),
            accepts_ext_int: self.accepts_ext_int(),
        });
        posted.set_logical(self.logical, self.format);
    }

    /// Whether guest-physical address `address` is in the APIC's register page. In x2APIC mode there is none.
    #[inline]
    pub fn is_at(&self, address: u64) -> bool {
        self.base & !BASE_BSP == address & !0xfff | BASE_ENABLED
    }

    /// The guest-physical address of its register page. In x2APIC mode, or if IA32_APIC_BASE disables it, there is none.
    pub fn page(&self) -> Option<u64> {
        let page = self.base & !0xfff;
        self.is_at(page).then_some(page)
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
            Register::TriggerMode(word) => posted.trigger_mode_word(word),
            // These are obsolete or write-only.
            Register::ArbitrationPriority | Register::RemoteRead | Register::EndOfInterrupt | Register::SelfIpi => 0,
        }
    }

    /// Writes a register. Writes of read-only registers are ignored.
    #[inline]
    pub fn write(&mut self, register: Register, value: u32, posted: &Posted, clock: &impl Clock) -> Effect {
        match register {
            Register::TaskPriority => {
                self.task_priority = value & 0xff;
                return Effect::TaskPriority;
            }
            Register::EndOfInterrupt => return self.end_of_interrupt(posted),
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
            Register::Local(Lvt::Timer) => return self.set_timer(value),
            Register::Local(lvt) => drop(self.set_local(lvt, value)),
            Register::InitialCount => {
                self.timer.set_initial(value, self.timer_mode(), clock);
                return Effect::Timer;
            }
            Register::Divide => {
                self.timer.set_divide(value, self.timer_mode(), clock);
                return Effect::Timer;
            }
            // A self-IPI does not change the ICR.
            Register::SelfIpi if self.is_x2apic() => return self.send(COMMAND_SELF | value & 0xff, 0, posted),
            Register::SelfIpi => self.illegal_register(posted),
            _ => {}
        }
        self.publish(posted);
        Effect::None
    }

    /// Records an access to an offset without a register as an error.
    pub fn illegal_register(&mut self, posted: &Posted) {
        self.error(ERROR_ILLEGAL_REGISTER, posted);
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value & (SOFTWARE_ENABLED | 0xff);
        if value & SOFTWARE_ENABLED == 0 {
            self.local.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
        }
    }

    /// Writes an LVT entry; what it was.
    fn set_local(&mut self, lvt: Lvt, value: u32) -> u32 {
        let forced = if self.spurious & SOFTWARE_ENABLED == 0 { LVT_MASKED } else { 0 };
        core::mem::replace(&mut self.local[lvt as usize], value & lvt.writable() | forced)
    }

    fn set_timer(&mut self, value: u32) -> Effect {
        let old = self.set_local(Lvt::Timer, value);
        self.timer.change_mode(Mode::new(old), Mode::new(value));
        Effect::Timer
    }

    /// Writes the lower half of the ICR, which sends the IPI.
    #[inline(never)]
    fn command(&mut self, value: u32, posted: &Posted) -> Effect {
        self.command = self.command & !0xffff_ffff | u64::from(value & COMMAND);
        let high = (self.command >> 32) as u32;
        self.send(value, if self.is_x2apic() { high } else { high >> 24 }, posted)
    }

    fn send(&mut self, command: u32, destination: u32, posted: &Posted) -> Effect {
        let has_vector = command >> delivery::SHIFT & delivery::MASK <= delivery::LOWEST_PRIORITY;
        if has_vector && (command as u8) < FIRST_VECTOR {
            self.error(ERROR_SEND_ILLEGAL_VECTOR, posted);
            return Effect::None;
        }
        Ipi::new(command, destination, self.is_x2apic()).map_or(Effect::None, Effect::Send)
    }

    /// Records an error. Each kind interrupts once, until a write of the ESR arms it again (SDM section 11.5.3).
    #[cold]
    fn error(&mut self, error: u32, posted: &Posted) {
        let is_new = self.errors & error == 0;
        self.errors |= error;
        if is_new {
            self.deliver_local(Lvt::Error, posted);
        }
    }

    /// Delivers a local interrupt as its LVT entry says.
    fn deliver_local(&mut self, lvt: Lvt, posted: &Posted) {
        let entry = self.local[lvt as usize];
        if entry & LVT_MASKED != 0 {
            return;
        }
        if entry as u8 >= FIRST_VECTOR {
            posted.post_vector(entry as u8);
        } else {
            // If the error entry's own vector is illegal, `error` calls this function once more, and finds the error recorded.
            self.error(ERROR_RECEIVE_ILLEGAL_VECTOR, posted);
        }
    }

    #[inline]
    fn timer_mode(&self) -> Mode {
        Mode::new(self.local[Lvt::Timer as usize])
    }

    /// When the timer expires next, and [`expire`](Self::expire) has to be called. None: it is disarmed.
    #[inline]
    pub fn due(&self) -> Option<Due> {
        self.timer.due(self.timer_mode())
    }

    /// Delivers the timer's interrupt if it is due. `tsc` is the guest's TSC.
    pub fn expire(&mut self, posted: &Posted, clock: &impl Clock, tsc: u64) {
        if self.timer.expires(self.timer_mode(), clock, tsc) {
            self.deliver_local(Lvt::Timer, posted);
        }
    }

    /// Reads IA32_TSC_DEADLINE: 0 outside of TSC-deadline mode, in which none is set.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.deadline
    }

    /// Writes IA32_TSC_DEADLINE: 0 disarms the timer. Ignored outside of TSC-deadline mode.
    pub fn set_tsc_deadline(&mut self, tsc: u64) {
        if self.timer_mode() == Mode::Deadline {
            self.timer.deadline = tsc;
        }
    }

    /// Reads CR8: bits 7:4 of the task priority.
    #[inline]
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4)
    }

    /// Writes CR8.
    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = (value as u32 & 0xf) << 4;
    }

    /// A processor that keeps CR8 itself has `value` there. Bits 3:0 of the task priority, which hold nothing back, stay unless it is
    /// another value: a MOV of the same one is not seen.
    #[inline]
    pub fn update_cr8(&mut self, value: u64) {
        if value != self.cr8() {
            self.set_cr8(value);
        }
    }

    /// The class (bits 7:4) of the highest pending interrupt, if the task priority alone holds it back: it can be taken as soon as CR8
    /// is below.
    #[inline]
    pub fn held_back(&self, posted: &Posted) -> Option<u8> {
        let class = posted.highest()? >> 4;
        (self.is_on() && self.served >> 4 < class && class <= self.task_priority as u8 >> 4).then_some(class)
    }

    /// Whether the vCPU accepts interrupts of the 8259s: the APIC is disabled, or LINT0 is in ExtINT mode and not masked.
    pub fn accepts_ext_int(&self) -> bool {
        const MODE: u32 = delivery::MASK << delivery::SHIFT;
        !self.is_on() || self.local[Lvt::Lint0 as usize] & (MODE | LVT_MASKED) == EXT_INT
    }

    /// The processor priority: the higher of the task priority and the class of the interrupt in service (SDM section 11.8.3.1).
    #[inline]
    fn processor_priority(&self) -> u8 {
        let (served, task) = (self.served & 0xf0, self.task_priority as u8);
        if task >> 4 >= served >> 4 { task } else { served }
    }

    /// The highest pending interrupt, if its class is above the processor priority.
    #[inline]
    pub fn next(&self, posted: &Posted) -> Option<u8> {
        let vector = posted.highest()?;
        (vector >> 4 > self.processor_priority() >> 4 && self.is_on()).then_some(vector)
    }

    /// The vCPU takes the interrupt that [`next`](Self::next) gives: it moves from the IRR to the ISR.
    pub fn acknowledge(&mut self, posted: &Posted) -> Option<u8> {
        let vector = self.next(posted)?;
        posted.take_vector(vector);
        self.in_service[usize::from(vector >> 5)] |= 1 << (vector & 31);
        self.served = vector;
        Some(vector)
    }

    /// The EOI of a level-triggered interrupt goes to the I/O APICs, too (SDM section 11.8.5).
    fn end_of_interrupt(&mut self, posted: &Posted) -> Effect {
        // Without an interrupt in service this is vector 0, which no register has.
        let vector = self.served;
        self.in_service[usize::from(vector >> 5)] &= !(1 << (vector & 31));
        self.served = highest(|word| self.in_service[usize::from(word & 7)]).unwrap_or(0);
        if posted.is_level(vector) { Effect::BroadcastEoi(vector) } else { Effect::None }
    }
}
