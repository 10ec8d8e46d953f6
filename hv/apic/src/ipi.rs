//! Interprocessor interrupts (IPIs) between the vCPUs of a VM, and messages of its I/O APIC to them.

use crate::posted::Posted;
use crate::rules::Rule;
use arch::apic::{COMMAND_ASSERT, COMMAND_LEVEL, COMMAND_LOGICAL, FIRST_VECTOR, SHORTHAND_SHIFT, delivery};
use model::kept;

/// The delivery mode of an IPI, with its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An interrupt to each destination.
    Fixed(u8),
    /// An interrupt to one of the destinations: the vCPU with the lowest number.
    LowestPriority(u8),
    /// An NMI.
    Nmi,
    /// INIT.
    Init,
    /// Start-up (SIPI), at a page below 1 MiB.
    Startup(u8),
    /// The destinations acknowledge an interrupt of the 8259s. Only an I/O APIC sends this.
    ExtInt,
}

/// What makes an I/O APIC send a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// An edge. IPIs count as such.
    Edge,
    /// A level: the I/O APIC waits for the EOI of the vector ([`Effect::BroadcastEoi`](crate::Effect::BroadcastEoi)).
    Level,
}

/// Where an IPI goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Physical(u32),
    Logical(u32),
    This,
    All,
    Others,
}

/// An IPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    pub(crate) message: Message,
    pub(crate) destination: Destination,
    /// The destination that means all vCPUs: 0xff, or 0xffff_ffff in x2APIC mode.
    pub(crate) broadcast: u32,
    trigger: Trigger,
}

impl Ipi {
    /// Decodes the interrupt command register (Intel SDM vol. 3, figure 11-12). None: nothing is sent.
    pub(crate) fn new(command: u32, destination: u32, x2apic: bool) -> Option<Self> {
        let vector = command as u8;
        let message = match command >> delivery::SHIFT & delivery::MASK {
            delivery::FIXED => Message::Fixed(vector),
            delivery::LOWEST_PRIORITY => Message::LowestPriority(vector),
            delivery::NMI => Message::Nmi,
            // INIT level de-assert has no effect since the Pentium 4.
            delivery::INIT if command & (COMMAND_ASSERT | COMMAND_LEVEL) == COMMAND_LEVEL => return None,
            delivery::INIT => Message::Init,
            delivery::STARTUP => Message::Startup(vector),
            // SMI is not supported; the others are reserved.
            _ => return None,
        };
        let destination = match command >> SHORTHAND_SHIFT & 3 {
            0 if command & COMMAND_LOGICAL != 0 => Destination::Logical(destination),
            0 => Destination::Physical(destination),
            1 => Destination::This,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Some(Self { message, destination, broadcast: if x2apic { u32::MAX } else { 0xff }, trigger: Trigger::Edge })
    }

    /// A message of an I/O APIC, to a physical or a logical destination of 8 bits.
    pub fn from_io_apic(message: Message, destination: u8, is_logical: bool, trigger: Trigger) -> Self {
        let destination = u32::from(destination);
        let destination =
            if is_logical { Destination::Logical(destination) } else { Destination::Physical(destination) };
        Self { message, destination, broadcast: 0xff, trigger }
    }

    fn is_for(&self, index: usize, from: usize, posted: &Posted) -> bool {
        match self.destination {
            Destination::This => index == from,
            Destination::All => true,
            Destination::Others => index != from,
            Destination::Physical(id) => id == self.broadcast || id == posted.id,
            Destination::Logical(id) => id == self.broadcast || posted.is_logical(id),
        }
    }

    /// Posts the IPI; whether the APIC accepted it. No APIC accepts a vector below 16, which only an I/O APIC can send; the error
    /// that a processor would record is not. An APIC that software has disabled accepts no vectors; an APIC that
    /// IA32_APIC_BASE disables accepts nothing (SDM sections 11.4.3 and 11.4.7.2).
    fn post(&self, posted: &Posted) -> bool {
        if !posted.is_on() {
            return false;
        }
        match self.message {
            Message::Fixed(vector) | Message::LowestPriority(vector) => {
                let accepted = posted.accepts_vectors() && vector >= FIRST_VECTOR;
                match self.trigger {
                    Trigger::Edge if accepted => posted.post_vector(vector),
                    Trigger::Level if accepted => posted.post_level_vector(vector),
                    _ => {}
                }
                return accepted;
            }
            Message::Nmi => posted.post_nmi(),
            Message::Init => posted.post_init(),
            Message::Startup(page) => posted.post_startup(page),
            Message::ExtInt => posted.post_ext_int(),
        }
        true
    }
}

/// Posts `ipi`, sent by vCPU `from`, to its destinations among `vcpus`. Calls `notify` with the number of each vCPU that
/// accepted it, which has to look at its [`Posted`] then.
pub fn deliver<'p>(ipi: Ipi, from: usize, vcpus: impl IntoIterator<Item = &'p Posted>, mut notify: impl FnMut(usize)) {
    for (index, posted) in vcpus.into_iter().enumerate() {
        if !ipi.is_for(index, from, posted) {
            continue;
        }
        if !kept(Rule::RaiseLast) {
            notify(index);
        }
        if ipi.post(posted) {
            if kept(Rule::RaiseLast) {
                notify(index);
            }
            if matches!(ipi.message, Message::LowestPriority(_)) {
                return;
            }
        }
    }
}
