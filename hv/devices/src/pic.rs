//! Two 8259A interrupt controllers, cascaded as in a PC (Intel, 8259A data sheet, 231468), with the edge/level control
//! registers of the EISA and PCI chip sets in place of ICW1's LTIM bit.
//!
//! As in KVM and QEMU, an edge stays pending until it is acknowledged, even if the line falls before.

use abi::ports::ELCRS_WRITABLE;

/// Operation command word 2: bits 7 to 5.
mod ocw2 {
    pub(super) const ROTATE: u8 = 1 << 7;
    pub(super) const SPECIFIC: u8 = 1 << 6;
    pub(super) const END_OF_INTERRUPT: u8 = 1 << 5;
}

/// Operation command word 3.
mod ocw3 {
    pub(super) const SPECIAL_MASK_WRITTEN: u8 = 1 << 6;
    pub(super) const SPECIAL_MASK: u8 = 1 << 5;
    pub(super) const POLL: u8 = 1 << 2;
    pub(super) const SELECT_WRITTEN: u8 = 1 << 1;
    pub(super) const SELECT_IN_SERVICE: u8 = 1 << 0;
}

/// Bit 4 of the first port makes it ICW1, bit 3 OCW3.
const ICW1: u8 = 1 << 4;
const OCW3: u8 = 1 << 3;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW1_WITH_ICW4: u8 = 1 << 0;
const ICW4_FULLY_NESTED: u8 = 1 << 4;
const ICW4_AUTO_EOI: u8 = 1 << 1;

/// The master's input to which the slave's output is wired.
const CASCADE: u8 = 2;
/// "If the IR input is not there any more the 8259A will issue an interrupt level 7."
const SPURIOUS: u8 = 7;

/// What the next write to the second port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Mask,
    Icw2 { single: bool, icw4: bool },
    Icw3 { icw4: bool },
    Icw4,
}

/// One controller.
#[derive(Debug)]
struct Chip {
    /// The input lines.
    lines: u8,
    /// Rising edges not acknowledged.
    edges: u8,
    /// Inputs that are sensitive to level (ELCR).
    level: u8,
    mask: u8,
    in_service: u8,
    vector_base: u8,
    /// The input of highest priority.
    highest: u8,
    expects: Expects,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    /// Special fully nested mode, for the master: an interrupt in service of the slave does not block others of the slave.
    fully_nested: bool,
    read_in_service: bool,
    poll: bool,
}

impl Chip {
    /// A controller as a PC's firmware leaves it, except that all inputs are masked.
    const fn new(vector_base: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            level: 0,
            mask: 0xff,
            in_service: 0,
            vector_base,
            highest: 0,
            expects: Expects::Mask,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            fully_nested: false,
            read_in_service: false,
            poll: false,
        }
    }

    fn requests(&self) -> u8 {
        self.lines & self.level | self.edges & !self.level
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        if high {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// How far the first of `inputs` is from the highest priority; 8 if there is none.
    fn priority(&self, inputs: u8) -> u32 {
        inputs.rotate_right(self.highest.into()).trailing_zeros()
    }

    fn at_priority(&self, priority: u32) -> u8 {
        (self.highest + priority as u8) & 7
    }

    /// The input that interrupts now: it is not masked, and of higher priority than all in service.
    fn candidate(&self) -> Option<u8> {
        let wanted = self.requests() & !self.mask;
        if wanted == 0 {
            return None;
        }
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.fully_nested {
            blocking &= !(1 << CASCADE);
        }
        let priority = self.priority(wanted);
        (priority < self.priority(blocking)).then(|| self.at_priority(priority))
    }

    fn acknowledge(&mut self, input: u8) {
        self.edges &= !(1 << input);
        if !self.auto_eoi {
            self.in_service |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.highest = (input + 1) & 7;
        }
    }

    fn vector(&self, input: u8) -> u8 {
        self.vector_base | input
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            self.initialize(value);
        } else if value & OCW3 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// ICW1 resets the edge sense circuit, the mask, priorities, special mask mode, the selection of the register to read, and the
    /// functions of ICW4.
    fn initialize(&mut self, icw1: u8) {
        let kept = Self { lines: self.lines, level: self.level, mask: 0, ..Self::new(self.vector_base) };
        let expects = Expects::Icw2 { single: icw1 & ICW1_SINGLE != 0, icw4: icw1 & ICW1_WITH_ICW4 != 0 };
        *self = Self { expects, ..kept };
    }

    fn write_ocw2(&mut self, value: u8) {
        let rotate = value & ocw2::ROTATE != 0;
        let given = value & 7;
        let end = value & ocw2::END_OF_INTERRUPT != 0;
        match (value & ocw2::SPECIFIC != 0, end) {
            // Rotation in automatic EOI mode: set or clear.
            (false, false) => self.rotate_on_auto_eoi = rotate,
            (false, true) => {
                if self.in_service != 0 {
                    self.end_of_interrupt(self.at_priority(self.priority(self.in_service)), rotate);
                }
            }
            (true, true) => self.end_of_interrupt(given, rotate),
            // Set priority: the input given becomes the lowest. Without rotation it is no operation.
            (true, false) => {
                if rotate {
                    self.highest = (given + 1) & 7;
                }
            }
        }
    }

    fn end_of_interrupt(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.highest = (input + 1) & 7;
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & ocw3::SPECIAL_MASK_WRITTEN != 0 {
            self.special_mask = value & ocw3::SPECIAL_MASK != 0;
        }
        if value & ocw3::SELECT_WRITTEN != 0 {
            self.read_in_service = value & ocw3::SELECT_IN_SERVICE != 0;
        }
        self.poll = value & ocw3::POLL != 0;
    }

    fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Icw2 { single, icw4 } => {
                self.vector_base = value & 0xf8;
                match (single, icw4) {
                    (false, icw4) => Expects::Icw3 { icw4 },
                    (true, true) => Expects::Icw4,
                    (true, false) => Expects::Mask,
                }
            }
            // ICW3 tells the wiring, which is fixed here.
            Expects::Icw3 { icw4: true } => Expects::Icw4,
            Expects::Icw3 { icw4: false } => Expects::Mask,
            Expects::Icw4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.fully_nested = value & ICW4_FULLY_NESTED != 0;
                Expects::Mask
            }
        };
    }

    fn read(&mut self, data_port: bool) -> u8 {
        if core::mem::take(&mut self.poll) {
            return match self.candidate() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (data_port, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests(),
        }
    }
}

/// One of the two controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Master,
    Slave,
}

/// The two controllers.
#[derive(Debug)]
pub(crate) struct Pic {
    master: Chip,
    slave: Chip,
    /// The level of the master's output.
    output: bool,
}

impl Pic {
    pub(crate) const fn new() -> Self {
        Self { master: Chip::new(0x08), slave: Chip::new(0x70), output: false }
    }

    /// Whether there is an interrupt for the processor.
    pub(crate) fn pending(&self) -> bool {
        self.output
    }

    /// The processor acknowledges an interrupt (INTA): returns its vector, or that of a spurious interrupt if none is pending.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.candidate() {
            Some(CASCADE) => {
                self.master.acknowledge(CASCADE);
                let slave = &mut self.slave;
                match slave.candidate() {
                    Some(input) => {
                        slave.acknowledge(input);
                        slave.vector(input)
                    }
                    None => slave.vector(SPURIOUS),
                }
            }
            Some(input) => {
                self.master.acknowledge(input);
                self.master.vector(input)
            }
            None => self.master.vector(SPURIOUS),
        };
        self.update();
        vector
    }

    /// Sets the level of interrupt line `irq`, 0 to 15. Line 2 is the cascade's, and can't be set.
    pub(crate) fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => return,
            0..=7 => self.master.set_line(irq, high),
            _ => self.slave.set_line(irq & 7, high),
        }
        self.update();
    }

    /// The level of the master's line `irq`, 0 to 7.
    pub(crate) fn line(&self, irq: u8) -> bool {
        self.master.lines >> irq & 1 != 0
    }

    /// Whether an edge on line `irq`, 0 to 15, could interrupt: it is not masked, and no edge is pending there.
    pub(crate) fn accepts_edge(&self, irq: u8) -> bool {
        let chip = if irq < 8 { &self.master } else { &self.slave };
        irq != CASCADE && (chip.mask | chip.edges) >> (irq & 7) & 1 == 0
    }

    pub(crate) fn read(&mut self, which: Which, data_port: bool) -> u8 {
        let value = self.chip(which).read(data_port);
        // A poll acknowledges.
        self.update();
        value
    }

    pub(crate) fn write(&mut self, which: Which, data_port: bool, value: u8) {
        let chip = self.chip(which);
        if data_port {
            chip.write_data(value);
        } else {
            chip.write_command(value);
        }
        self.update();
    }

    /// Edge/level control registers: a set bit makes the input sensitive to level.
    #[inline]
    pub(crate) fn read_elcr(&self, which: Which) -> u8 {
        match which {
            Which::Master => self.master.level,
            Which::Slave => self.slave.level,
        }
    }

    /// The inputs of timer, keyboard, cascade, clock and coprocessor are always edge-triggered.
    #[inline]
    pub(crate) fn write_elcr(&mut self, which: Which, value: u8) {
        let level = match which {
            Which::Master => value & ELCRS_WRITABLE[0],
            Which::Slave => value & ELCRS_WRITABLE[1],
        };
        let chip = self.chip(which);
        if chip.level != level {
            chip.level = level;
            self.update();
        }
    }

    fn chip(&mut self, which: Which) -> &mut Chip {
        match which {
            Which::Master => &mut self.master,
            Which::Slave => &mut self.slave,
        }
    }

    /// Propagates the slave's output to the master's input, and the master's to the processor.
    ///
    /// With every acknowledge the slave's output falls for a moment (data sheet, "Cascade mode"), so that its next request is an
    /// edge for the master. If the slave's request is withdrawn, the edge stays, and ends as a spurious interrupt 15.
    #[inline(never)]
    fn update(&mut self) {
        if self.slave.candidate().is_some() {
            self.master.edges |= 1 << CASCADE;
        }
        self.output = self.master.candidate().is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Which::{Master, Slave};
    use proptest::prelude::*;
    use std::vec::Vec;

    /// As Linux sets the pair up: vectors 0x20 and 0x28, all unmasked.
    fn pic() -> Pic {
        let mut pic = Pic::new();
        initialize(&mut pic, 0x01);
        pic
    }

    fn initialize(pic: &mut Pic, icw4: u8) {
        for (which, words) in [(Master, [0x20, 0x04]), (Slave, [0x28, 0x02])] {
            pic.write(which, false, 0x11);
            words.into_iter().chain([icw4, 0x00]).for_each(|word| pic.write(which, true, word));
        }
    }

    fn pulse(pic: &mut Pic, irq: u8) {
        pic.set_line(irq, true);
        pic.set_line(irq, false);
    }

    fn acknowledge_all(pic: &mut Pic) -> Vec<u8> {
        core::iter::from_fn(|| pic.pending().then(|| pic.acknowledge())).collect()
    }

    #[test]
    fn everything_is_masked_before_initialization() {
        let mut pic = Pic::new();
        (0..16).for_each(|irq| pulse(&mut pic, irq));
        assert!(!pic.pending());
        assert_eq!([pic.read(Master, true), pic.read(Slave, true)], [0xff, 0xff]);
    }

    #[test]
    fn vectors_are_the_base_and_the_input() {
        for irq in (0..16).filter(|&irq| irq != CASCADE) {
            let mut pic = pic();
            pulse(&mut pic, irq);
            assert!(pic.pending());
            assert_eq!(pic.acknowledge(), 0x20 + irq);
            assert!(!pic.pending());
        }
    }

    #[test]
    fn lower_inputs_come_first_and_hold_back_higher_ones_until_end_of_interrupt() {
        let mut pic = pic();
        for irq in [3, 14, 9, 1] {
            pulse(&mut pic, irq);
        }
        assert_eq!(acknowledge_all(&mut pic), [0x21]);
        pulse(&mut pic, 0);
        assert_eq!(acknowledge_all(&mut pic), [0x20], "a higher priority interrupts");
        pic.write(Master, false, 0x20);
        assert!(!pic.pending(), "1 is still in service");
        pic.write(Master, false, 0x20);
        assert_eq!(acknowledge_all(&mut pic), [0x29], "the slave's inputs have the priority of input 2");
        pic.write(Slave, false, 0x20);
        pic.write(Master, false, 0x20);
        assert_eq!(acknowledge_all(&mut pic), [0x2e]);
        pic.write(Slave, false, 0x20);
        pic.write(Master, false, 0x20);
        assert_eq!(acknowledge_all(&mut pic), [0x23]);
    }

    #[test]
    fn a_specific_end_of_interrupt_ends_the_one_named() {
        let mut pic = pic();
        pulse(&mut pic, 5);
        pic.acknowledge();
        pulse(&mut pic, 4);
        pic.acknowledge();
        pic.write(Master, false, 0x0b);
        assert_eq!(pic.read(Master, false), 0x30);
        pic.write(Master, false, 0x65);
        assert_eq!(pic.read(Master, false), 0x10);
    }

    #[test]
    fn an_edge_counts_once_and_a_level_as_long_as_it_is_there() {
        let mut pic = pic();
        pic.set_line(5, true);
        assert_eq!(acknowledge_all(&mut pic), [0x25]);
        pic.write(Master, false, 0x20);
        assert!(!pic.pending(), "no new edge");
        pic.set_line(5, false);

        pic.write_elcr(Master, 0xff);
        assert_eq!(pic.read_elcr(Master), 0xf8, "inputs 0 to 2 are edges for ever");
        pic.set_line(5, true);
        assert_eq!(acknowledge_all(&mut pic), [0x25]);
        pic.write(Master, false, 0x20);
        assert!(pic.pending(), "the line is still high");
        pic.set_line(5, false);
        assert!(!pic.pending());
        pic.write_elcr(Slave, 0xff);
        assert_eq!(pic.read_elcr(Slave), 0xde, "8 and 13 are edges for ever");
    }

    #[test]
    fn a_request_that_went_away_is_a_spurious_interrupt() {
        let mut pic = pic();
        assert_eq!(pic.acknowledge(), 0x27);
        pulse(&mut pic, 12);
        pic.write(Slave, true, 0xff);
        assert!(pic.pending(), "the master has seen the slave");
        assert_eq!(pic.acknowledge(), 0x2f);
        for which in [Master, Slave] {
            pic.write(which, false, 0x0b);
        }
        assert_eq!([pic.read(Master, false), pic.read(Slave, false)], [0x04, 0x00], "only the master serves it");
    }

    #[test]
    fn a_masked_request_waits() {
        let mut pic = pic();
        pic.write(Master, true, 1 << 3);
        pulse(&mut pic, 3);
        assert!(!pic.pending());
        pic.write(Master, false, 0x0a);
        assert_eq!(pic.read(Master, false), 1 << 3);
        pic.write(Master, true, 0);
        assert_eq!(acknowledge_all(&mut pic), [0x23]);
    }

    #[test]
    fn automatic_end_of_interrupt_leaves_nothing_in_service() {
        let mut pic = pic();
        initialize(&mut pic, 0x03);
        for irq in [4, 8, 9, 6] {
            pulse(&mut pic, irq);
        }
        assert_eq!(acknowledge_all(&mut pic), [0x28, 0x29, 0x24, 0x26]);
        pic.write(Master, false, 0x0b);
        assert_eq!(pic.read(Master, false), 0);
    }

    #[test]
    fn rotation_makes_the_served_input_the_lowest() {
        let mut pic = pic();
        pulse(&mut pic, 4);
        pic.acknowledge();
        pic.write(Master, false, 0xa0);
        for irq in [4, 3, 5] {
            pulse(&mut pic, irq);
        }
        assert_eq!(pic.acknowledge(), 0x25);
        pic.write(Master, false, 0xe5);
        assert_eq!(pic.acknowledge(), 0x23);
        pic.write(Master, false, 0x63);
        pic.write(Master, false, 0xc3);
        assert_eq!(pic.acknowledge(), 0x24, "priority set by command");
    }

    #[test]
    fn rotation_in_automatic_mode() {
        let mut pic = pic();
        initialize(&mut pic, 0x03);
        pic.write(Master, false, 0x80);
        pulse(&mut pic, 3);
        pic.acknowledge();
        pulse(&mut pic, 3);
        pulse(&mut pic, 7);
        assert_eq!(acknowledge_all(&mut pic), [0x27, 0x23]);
    }

    #[test]
    fn special_mask_mode_lets_lower_ones_through() {
        let mut pic = pic();
        pulse(&mut pic, 3);
        pic.acknowledge();
        pulse(&mut pic, 6);
        assert!(!pic.pending());
        pic.write(Master, true, 1 << 3);
        pic.write(Master, false, 0x68);
        assert_eq!(acknowledge_all(&mut pic), [0x26]);
    }

    #[test]
    fn a_poll_acknowledges() {
        let mut pic = pic();
        pulse(&mut pic, 6);
        pic.write(Master, false, 0x0c);
        assert_eq!(pic.read(Master, false), 0x86);
        assert!(!pic.pending());
        pic.write(Master, false, 0x0c);
        assert_eq!(pic.read(Master, false), 0x00);
    }

    #[test]
    fn initialization_without_icw4_and_icw3() {
        let mut pic = pic();
        initialize(&mut pic, 0x03);
        pic.write(Master, false, 0x12);
        pic.write(Master, true, 0x47);
        pic.write(Master, true, 0x0f);
        assert_eq!(pic.read(Master, true), 0x0f, "the third word is a mask already");
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x44, "the vector's low bits are the input's");
        pic.write(Master, false, 0x0b);
        assert_eq!(pic.read(Master, false), 0x10, "no automatic end of interrupt");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Line(u8, bool),
        Write(bool, bool, u8),
        Read(bool, bool),
        Elcr(bool, u8),
        Acknowledge,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..16, any::<bool>()).prop_map(|(irq, high)| Step::Line(irq, high)),
            (any::<bool>(), any::<bool>(), any::<u8>())
                .prop_map(|(slave, data, value)| Step::Write(slave, data, value)),
            (any::<bool>(), any::<bool>()).prop_map(|(slave, data)| Step::Read(slave, data)),
            (any::<bool>(), any::<u8>()).prop_map(|(slave, value)| Step::Elcr(slave, value)),
            Just(Step::Acknowledge),
        ]
    }

    proptest! {
        #[test]
        fn an_acknowledged_vector_was_wanted(steps in prop::collection::vec(step(), 0..200)) {
            let which = |slave| if slave { Slave } else { Master };
            let mut pic = pic();
            for step in steps {
                match step {
                    Step::Line(irq, high) => pic.set_line(irq, high),
                    Step::Write(slave, data, value) => pic.write(which(slave), data, value),
                    Step::Read(slave, data) => drop(pic.read(which(slave), data)),
                    Step::Elcr(slave, value) => pic.write_elcr(which(slave), value),
                    Step::Acknowledge => {
                        let wanted = [&pic.master, &pic.slave].map(|chip| chip.requests() & !chip.mask);
                        let bases = [pic.master.vector_base, pic.slave.vector_base];
                        let pending = pic.pending();
                        let vector = pic.acknowledge();
                        let input = vector & 7;
                        let by = |n: usize| vector & 0xf8 == bases[n] && wanted[n] >> input & 1 == 1;
                        prop_assert!(by(0) || by(1) || input == SPURIOUS);
                        prop_assert!(pending || vector == bases[0] | SPURIOUS);
                    }
                }
                prop_assert_eq!(pic.pending(), pic.master.candidate().is_some());
                prop_assert!(pic.slave.candidate().is_none() || pic.master.requests() >> CASCADE & 1 == 1);
            }
        }

        #[test]
        fn interrupts_end(lines in any::<u16>(), auto in any::<bool>()) {
            let mut pic = pic();
            initialize(&mut pic, if auto { 0x03 } else { 0x01 });
            let set: Vec<u8> = (0..16).filter(|&irq| irq != CASCADE && lines >> irq & 1 == 1).collect();
            set.iter().for_each(|&irq| pulse(&mut pic, irq));
            let mut taken = Vec::new();
            while pic.pending() {
                let vector = pic.acknowledge();
                taken.push(vector - 0x20);
                if vector >= 0x28 {
                    pic.write(Slave, false, 0x20);
                }
                pic.write(Master, false, 0x20);
                prop_assert!(taken.len() <= set.len());
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, set);
        }
    }
}
