//! Interrupts between vCPUs.

use crate::posted::Posted;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An interrupt for each vCPU that is meant.
    Fixed(u8),
    /// An interrupt for one of them: the one with the lowest number.
    LowestPriority(u8),
    /// An NMI.
    Nmi,
    /// INIT.
    Init,
    /// Start-up, at a page below 1 MiB.
    Startup(u8),
}

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Physical(u32),
    Logical(u32),
    This,
    All,
    Others,
}

/// A message and whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    pub(crate) message: Message,
    pub(crate) destination: Destination,
    /// What means everybody: 8 bits of ones, or 32 in x2APIC mode.
    pub(crate) broadcast: u32,
}

impl Ipi {
    /// What the interrupt command says (Intel SDM vol. 3, figure 11-12). None: nothing is sent.
    pub(crate) fn new(command: u32, destination: u32, x2apic: bool) -> Option<Self> {
        const LOGICAL: u32 = 1 << 11;
        const ASSERT: u32 = 1 << 14;
        const LEVEL: u32 = 1 << 15;
        let vector = command as u8;
        let message = match command >> 8 & 7 {
            0 => Message::Fixed(vector),
            1 => Message::LowestPriority(vector),
            4 => Message::Nmi,
            // The end of an INIT level: of no effect since the Pentium 4.
            5 if command & (ASSERT | LEVEL) == LEVEL => return None,
            5 => Message::Init,
            6 => Message::Startup(vector),
            // SMI, and what is reserved.
            _ => return None,
        };
        let destination = match command >> 18 & 3 {
            0 if command & LOGICAL != 0 => Destination::Logical(destination),
            0 => Destination::Physical(destination),
            1 => Destination::This,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Some(Self { message, destination, broadcast: if x2apic { u32::MAX } else { 0xff } })
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

    /// Puts it into `posted`; whether it was taken. An APIC that software has disabled takes no vectors, one that is off
    /// altogether nothing (SDM sections 11.4.3 and 11.4.7.2).
    fn post(&self, posted: &Posted) -> bool {
        if !posted.is_on() {
            return false;
        }
        match self.message {
            Message::Fixed(vector) | Message::LowestPriority(vector) => {
                let taken = posted.takes_vectors();
                if taken {
                    posted.post_vector(vector);
                }
                return taken;
            }
            Message::Nmi => posted.post_nmi(),
            Message::Init => posted.post_init(),
            Message::Startup(page) => posted.post_startup(page),
        }
        true
    }
}

/// Puts `ipi`, sent by vCPU `from`, into the posted that it is for, and calls `hit` with the number of each, who then has to
/// look.
pub fn deliver<'m>(ipi: Ipi, from: usize, posted: impl IntoIterator<Item = &'m Posted>, mut hit: impl FnMut(usize)) {
    for (index, posted) in posted.into_iter().enumerate() {
        if ipi.is_for(index, from, posted) && ipi.post(posted) {
            hit(index);
            if matches!(ipi.message, Message::LowestPriority(_)) {
                return;
            }
        }
    }
}
