//! The I/O APIC: an Intel 82093AA (data sheet 290566) of version 0x20, which has the EOI register of the ICH9 (data sheet 316972,
//! section 13.5).
//!
//! It sends no message by itself: [`IoApic::take_message`] gives one after the other to the caller, who delivers them to the local
//! APICs. There is no arbitration, and a message always counts as accepted. SMIs are not supported.

/// How a message is to be delivered (82093AA, section 3.2.4, redirection table bits 10:8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to all destinations.
    Fixed,
    /// The vector, to that of the destinations which has the lowest priority.
    LowestPriority,
    /// An NMI.
    Nmi,
    /// INIT.
    Init,
    /// The destination acknowledges an interrupt of the 8259s, whose vector it takes.
    ExtInt,
}

/// How a message names its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationMode {
    /// By the ID of a local APIC; 0xff means all.
    Physical,
    /// By local APICs' logical destination registers.
    Logical,
}

/// What makes a pin request an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The change from inactive to active.
    Edge,
    /// The active level. The local APIC's EOI of the vector must be told to the I/O APIC: it sends the next message then.
    Level,
}

/// An interrupt on its way from the I/O APIC to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// The destination, as `destination_mode` tells.
    pub destination: u8,
    /// How the destination is named.
    pub destination_mode: DestinationMode,
    /// What is delivered.
    pub delivery_mode: DeliveryMode,
    /// The vector, for [`DeliveryMode::Fixed`] and [`DeliveryMode::LowestPriority`].
    pub vector: u8,
    /// The trigger. Only a vector is ever delivered as [`Trigger::Level`].
    pub trigger: Trigger,
}

/// How many interrupt inputs there are.
pub(crate) const PINS: u8 = 24;

/// Registers of the memory-mapped page, by their offset.
mod page {
    pub(super) const SELECT: u16 = 0x00;
    pub(super) const WINDOW: u16 = 0x10;
    pub(super) const EOI: u16 = 0x40;
}

/// Registers behind the window.
mod index {
    pub(super) const ID: u8 = 0x00;
    pub(super) const VERSION: u8 = 0x01;
    pub(super) const ARBITRATION: u8 = 0x02;
    pub(super) const TABLE: u8 = 0x10;
    pub(super) const TABLE_LAST: u8 = TABLE + 2 * super::PINS - 1;
}

const VERSION: u32 = (PINS as u32 - 1) << 16 | abi::mmio::IOAPIC_VERSION as u32;
const ID_SHIFT: u32 = 24;
const ID_MASK: u8 = 0x0f;

/// An entry of the redirection table.
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    const LOGICAL: u64 = 1 << 11;
    const ACTIVE_LOW: u64 = 1 << 13;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    const DESTINATION_SHIFT: u32 = 56;
    /// Neither the delivery status nor the remote IRR is writable; the other bits are reserved.
    const WRITABLE: u64 = 0xff << Self::DESTINATION_SHIFT | 0x1_afff;

    const fn new() -> Self {
        Self(Self::MASKED)
    }

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// None: no message is sent, as SMIs are not supported and two encodings are reserved.
    fn delivery_mode(self) -> Option<DeliveryMode> {
        match self.0 >> 8 & 7 {
            0 => Some(DeliveryMode::Fixed),
            1 => Some(DeliveryMode::LowestPriority),
            4 => Some(DeliveryMode::Nmi),
            5 => Some(DeliveryMode::Init),
            7 => Some(DeliveryMode::ExtInt),
            _ => None,
        }
    }

    /// An NMI or INIT "is always treated as an edge triggered interrupt", and SMI and ExtINT must be programmed as such: no local
    /// APIC would ever end them.
    fn trigger(self) -> Trigger {
        match self.delivery_mode() {
            Some(DeliveryMode::Fixed | DeliveryMode::LowestPriority) if self.has(Self::LEVEL) => Trigger::Level,
            _ => Trigger::Edge,
        }
    }

    fn message(self) -> Option<InterruptMessage> {
        Some(InterruptMessage {
            destination: (self.0 >> Self::DESTINATION_SHIFT) as u8,
            destination_mode: if self.has(Self::LOGICAL) {
                DestinationMode::Logical
            } else {
                DestinationMode::Physical
            },
            delivery_mode: self.delivery_mode()?,
            vector: self.0 as u8,
            trigger: self.trigger(),
        })
    }

    /// Software without an EOI register ends a level-triggered interrupt by making it edge-triggered for a moment.
    fn write(&mut self, value: u64) {
        let kept = if value & Self::LEVEL != 0 { self.0 & Self::REMOTE_IRR } else { 0 };
        self.0 = value & Self::WRITABLE | kept;
    }
}

/// The I/O APIC.
#[derive(Debug)]
pub(crate) struct IoApic {
    select: u8,
    id: u8,
    table: [Entry; PINS as usize],
    /// The inputs that are high.
    lines: u32,
    /// Edges for which no message was taken yet.
    edges: u32,
    /// The inputs for which a message is to be taken.
    ready: u32,
}

impl IoApic {
    /// After reset, but for the ID, of which there are four bits: firmware has written it.
    pub(crate) const fn new(id: u8) -> Self {
        Self { select: 0, id: id & ID_MASK, table: [Entry::new(); PINS as usize], lines: 0, edges: 0, ready: 0 }
    }

    /// Sets the level of input `pin`. There is no input from [`PINS`] on.
    ///
    /// "Edge-sensitive interrupts signaled on a masked interrupt pin are ignored."
    pub(crate) fn set_pin(&mut self, pin: u8, high: bool) {
        let Some(&entry) = self.table.get(usize::from(pin)) else { return };
        let bit = 1 << pin;
        if high == (self.lines & bit != 0) {
            return;
        }
        self.lines ^= bit;
        if high != entry.has(Entry::ACTIVE_LOW) {
            self.edges |= bit;
        }
        self.update(pin);
    }

    /// Whether a message is to be taken.
    #[inline]
    pub(crate) fn has_message(&self) -> bool {
        self.ready != 0
    }

    /// The next message. It counts as accepted by a local APIC.
    pub(crate) fn take_message(&mut self) -> Option<InterruptMessage> {
        // Each round clears a bit of `ready`.
        while self.ready != 0 {
            let pin = self.ready.trailing_zeros() as u8;
            let entry = &mut self.table[usize::from(pin)];
            match entry.trigger() {
                Trigger::Edge => self.edges &= !(1 << pin),
                Trigger::Level => entry.0 |= Entry::REMOTE_IRR,
            }
            let message = entry.message();
            self.update(pin);
            if message.is_some() {
                return message;
            }
        }
        None
    }

    /// A local APIC has ended the level-triggered interrupt `vector`. Inputs of this vector that are still active request again.
    pub(crate) fn eoi(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.table[usize::from(pin)];
            if entry.0 as u8 == vector && entry.has(Entry::REMOTE_IRR) {
                entry.0 &= !Entry::REMOTE_IRR;
                self.update(pin);
            }
        }
    }

    /// Whether an edge on `pin` that makes the input active would send a message.
    pub(crate) fn accepts_edge(&self, pin: u8) -> bool {
        self.table.get(usize::from(pin)).is_some_and(|entry| !entry.has(Entry::MASKED))
    }

    /// Reads the register at `offset` of the page.
    pub(crate) fn read(&self, offset: u16) -> u32 {
        match offset {
            page::SELECT => self.select.into(),
            page::WINDOW => self.read_window(),
            // The EOI register is write-only.
            _ => 0,
        }
    }

    fn read_window(&self) -> u32 {
        match self.select {
            // The arbitration ID is loaded with the ID, and no arbitration changes it.
            index::ID | index::ARBITRATION => u32::from(self.id) << ID_SHIFT,
            index::VERSION => VERSION,
            index::TABLE..=index::TABLE_LAST => {
                let (pin, shift) = self.selected();
                (self.table[usize::from(pin)].0 >> shift) as u32
            }
            _ => 0,
        }
    }

    /// Writes the register at `offset` of the page.
    pub(crate) fn write(&mut self, offset: u16, value: u32) {
        match offset {
            page::SELECT => self.select = value as u8,
            page::WINDOW => self.write_window(value),
            page::EOI => self.eoi(value as u8),
            _ => {}
        }
    }

    fn write_window(&mut self, value: u32) {
        match self.select {
            index::ID => self.id = (value >> ID_SHIFT) as u8 & ID_MASK,
            index::TABLE..=index::TABLE_LAST => {
                let (pin, shift) = self.selected();
                let entry = &mut self.table[usize::from(pin)];
                entry.write(entry.0 & !(0xffff_ffff << shift) | u64::from(value) << shift);
                self.update(pin);
            }
            _ => {}
        }
    }

    /// The input whose entry is selected, and which half of it: a shift of 0 or 32.
    fn selected(&self) -> (u8, u32) {
        let register = self.select - index::TABLE;
        (register >> 1, u32::from(register & 1) * 32)
    }

    /// Finds out whether input `pin` has a message. What is masked has none, and an edge is forgotten then.
    fn update(&mut self, pin: u8) {
        let (entry, bit) = (self.table[usize::from(pin)], 1 << pin);
        if entry.has(Entry::MASKED) || entry.trigger() == Trigger::Level {
            self.edges &= !bit;
        }
        let active = (self.lines & bit != 0) != entry.has(Entry::ACTIVE_LOW);
        let requests = match entry.trigger() {
            Trigger::Edge => self.edges & bit != 0,
            Trigger::Level => active && !entry.has(Entry::REMOTE_IRR),
        };
        if requests && !entry.has(Entry::MASKED) {
            self.ready |= bit;
        } else {
            self.ready &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const LEVEL: u32 = 1 << 15;
    const ACTIVE_LOW: u32 = 1 << 13;
    const MASKED: u32 = 1 << 16;
    const REMOTE_IRR: u32 = 1 << 14;

    fn write(ioapic: &mut IoApic, register: u8, value: u32) {
        ioapic.write(0x00, register.into());
        ioapic.write(0x10, value);
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(0x00, register.into());
        ioapic.read(0x10)
    }

    /// Writes the lower half of an entry.
    fn program(ioapic: &mut IoApic, pin: u8, low: u32) {
        write(ioapic, 0x10 + 2 * pin, low);
    }

    fn entry(ioapic: &mut IoApic, pin: u8) -> u32 {
        read(ioapic, 0x10 + 2 * pin)
    }

    /// The vectors of the messages; one too many if there is no end of them.
    fn vectors(ioapic: &mut IoApic) -> Vec<u8> {
        let messages = core::iter::from_fn(|| ioapic.take_message());
        messages.map(|message| message.vector).take(usize::from(PINS) + 1).collect()
    }

    fn pulse(ioapic: &mut IoApic, pin: u8) {
        ioapic.set_pin(pin, true);
        ioapic.set_pin(pin, false);
    }

    #[test]
    fn after_reset_all_is_masked_and_the_version_tells_24_pins() {
        let mut ioapic = IoApic::new(0);
        assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
        for pin in 0..24 {
            assert_eq!([entry(&mut ioapic, pin), read(&mut ioapic, 0x11 + 2 * pin)], [MASKED, 0]);
            pulse(&mut ioapic, pin);
        }
        assert_eq!(ioapic.take_message(), None);
    }

    #[test]
    fn the_id_has_four_bits_and_arbitration_has_the_same() {
        let mut ioapic = IoApic::new(0x34);
        assert_eq!(read(&mut ioapic, 0), 0x0400_0000);
        write(&mut ioapic, 0, 0xffff_ffff);
        write(&mut ioapic, 1, 0xffff_ffff);
        write(&mut ioapic, 2, 0);
        assert_eq!([0, 1, 2].map(|register| read(&mut ioapic, register)), [0x0f00_0000, 0x0017_0020, 0x0f00_0000]);
        assert_eq!(ioapic.read(0), 2);
    }

    #[test]
    fn entries_keep_their_writable_bits() {
        let mut ioapic = IoApic::new(0);
        write(&mut ioapic, 0x3e, 0xffff_ffff);
        write(&mut ioapic, 0x3f, 0xffff_ffff);
        assert_eq!([read(&mut ioapic, 0x3e), read(&mut ioapic, 0x3f)], [0x0001_afff, 0xff00_0000]);
        write(&mut ioapic, 0x40, 0);
        assert_eq!(read(&mut ioapic, 0x40), 0, "there is no 25th entry");
    }

    #[test]
    fn a_message_has_what_its_entry_says() {
        let mut ioapic = IoApic::new(0);
        write(&mut ioapic, 0x11 + 2 * 9, 0x8100_0000);
        for (low, delivery_mode, trigger) in [
            (0x0831, DeliveryMode::Fixed, Trigger::Edge),
            (0x0931, DeliveryMode::LowestPriority, Trigger::Edge),
            (0x8931, DeliveryMode::LowestPriority, Trigger::Level),
            (0x8c31, DeliveryMode::Nmi, Trigger::Edge),
            (0x8d31, DeliveryMode::Init, Trigger::Edge),
            (0x0f31, DeliveryMode::ExtInt, Trigger::Edge),
        ] {
            program(&mut ioapic, 9, low);
            ioapic.set_pin(9, true);
            let wanted = InterruptMessage {
                destination: 0x81,
                destination_mode: DestinationMode::Logical,
                delivery_mode,
                vector: 0x31,
                trigger,
            };
            assert_eq!(ioapic.take_message(), Some(wanted));
            assert_eq!(ioapic.take_message(), None);
            ioapic.set_pin(9, false);
        }
        program(&mut ioapic, 9, 0x31);
        pulse(&mut ioapic, 9);
        assert_eq!(ioapic.take_message().unwrap().destination_mode, DestinationMode::Physical);
    }

    #[test]
    fn smi_and_reserved_modes_send_nothing() {
        for mode in [2, 3, 6] {
            let mut ioapic = IoApic::new(0);
            program(&mut ioapic, 5, mode << 8 | 0x31);
            program(&mut ioapic, 6, 0x32);
            pulse(&mut ioapic, 5);
            pulse(&mut ioapic, 6);
            assert_eq!(vectors(&mut ioapic), [0x32]);
        }
    }

    #[test]
    fn an_edge_on_a_masked_pin_is_ignored_and_a_level_is_not() {
        let mut ioapic = IoApic::new(0);
        pulse(&mut ioapic, 14);
        ioapic.set_pin(15, true);
        program(&mut ioapic, 14, 0x81);
        program(&mut ioapic, 15, LEVEL | 0x82);
        assert_eq!(vectors(&mut ioapic), [0x82]);
        pulse(&mut ioapic, 14);
        assert_eq!(vectors(&mut ioapic), [0x81]);
    }

    #[test]
    fn polarity_chooses_the_active_level_and_the_edge() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 10, ACTIVE_LOW | 0x41);
        ioapic.set_pin(10, true);
        assert_eq!(vectors(&mut ioapic), []);
        ioapic.set_pin(10, false);
        assert_eq!(vectors(&mut ioapic), [0x41], "the falling edge");

        ioapic.set_pin(11, true);
        program(&mut ioapic, 11, ACTIVE_LOW | LEVEL | 0x42);
        assert_eq!(vectors(&mut ioapic), []);
        ioapic.set_pin(11, false);
        assert_eq!(vectors(&mut ioapic), [0x42]);
    }

    #[test]
    fn remote_irr_is_set_with_the_message_and_cleared_with_the_eoi() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 16, LEVEL | 0x51);
        ioapic.set_pin(16, true);
        assert_eq!(entry(&mut ioapic, 16), LEVEL | 0x51);
        assert_eq!(vectors(&mut ioapic), [0x51]);
        assert_eq!(entry(&mut ioapic, 16), REMOTE_IRR | LEVEL | 0x51);
        program(&mut ioapic, 16, LEVEL | 0x51);
        assert_eq!(entry(&mut ioapic, 16), REMOTE_IRR | LEVEL | 0x51, "it is read-only");
        ioapic.eoi(0x52);
        assert_eq!(vectors(&mut ioapic), [], "another vector");
        ioapic.set_pin(16, false);
        ioapic.eoi(0x51);
        assert_eq!(entry(&mut ioapic, 16), LEVEL | 0x51);
        assert_eq!(vectors(&mut ioapic), []);
    }

    #[test]
    fn the_eoi_register_ends_all_pins_of_a_vector() {
        let mut ioapic = IoApic::new(0);
        for pin in [3, 20] {
            program(&mut ioapic, pin, LEVEL | 0x61);
            ioapic.set_pin(pin, true);
        }
        assert_eq!(vectors(&mut ioapic), [0x61, 0x61]);
        ioapic.write(0x40, 0x61);
        assert_eq!(vectors(&mut ioapic), [0x61, 0x61]);
    }

    #[test]
    fn a_change_to_edge_and_back_ends_a_level_interrupt() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 9, LEVEL | 0x71);
        ioapic.set_pin(9, true);
        assert_eq!(vectors(&mut ioapic), [0x71]);
        program(&mut ioapic, 9, MASKED | 0x71);
        program(&mut ioapic, 9, LEVEL | 0x71);
        assert_eq!(vectors(&mut ioapic), [0x71]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Line(bool),
        Take,
        Eoi,
        Mask(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(Step::Line),
            Just(Step::Take),
            Just(Step::Eoi),
            any::<bool>().prop_map(Step::Mask),
        ]
    }

    proptest! {
        /// No message comes between another and its EOI, none while the line is inactive or masked, and one in every other case.
        #[test]
        fn an_active_level_sends_a_message_after_each_eoi_and_never_before(
            steps in prop::collection::vec(step(), 0..60),
            low in any::<bool>(),
        ) {
            let mut ioapic = IoApic::new(0);
            let programmed = LEVEL | if low { ACTIVE_LOW } else { 0 } | 0x33;
            program(&mut ioapic, 17, programmed);
            let (mut active, mut served, mut masked) = (low, false, false);
            for step in steps {
                match step {
                    Step::Line(high) => {
                        ioapic.set_pin(17, high);
                        active = high != low;
                    }
                    Step::Eoi => {
                        ioapic.eoi(0x33);
                        served = false;
                    }
                    Step::Mask(on) => {
                        program(&mut ioapic, 17, programmed | if on { MASKED } else { 0 });
                        masked = on;
                    }
                    Step::Take => {
                        let wanted = active && !served && !masked;
                        prop_assert_eq!(vectors(&mut ioapic).len(), usize::from(wanted));
                        served |= wanted;
                    }
                }
            }
        }

        /// As long as messages are taken as they come, each edge on a pin that is not masked sends one.
        #[test]
        fn no_edge_is_lost_or_doubled(steps in prop::collection::vec(step(), 0..60), low in any::<bool>()) {
            let mut ioapic = IoApic::new(0);
            let programmed = if low { ACTIVE_LOW } else { 0 } | 0x33;
            program(&mut ioapic, 17, programmed);
            let (mut line, mut masked, mut edges, mut taken) = (false, false, 0, 0);
            for step in steps {
                match step {
                    Step::Line(high) => {
                        ioapic.set_pin(17, high);
                        edges += usize::from(high != line && high != low && !masked);
                        line = high;
                    }
                    Step::Mask(on) => {
                        program(&mut ioapic, 17, programmed | if on { MASKED } else { 0 });
                        masked = on;
                    }
                    Step::Eoi => ioapic.eoi(0x33),
                    Step::Take => {}
                }
                taken += vectors(&mut ioapic).len();
                prop_assert_eq!(taken, edges);
            }
        }
    }
}
