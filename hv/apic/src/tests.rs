//! Rules of the manuals for local APICs.

use crate::register::Lvt;
use crate::*;
use core::cell::Cell;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

#[derive(Default)]
struct TestClock {
    nanoseconds: Cell<u64>,
}

impl Clock for TestClock {
    fn nanoseconds(&self) -> u64 {
        self.nanoseconds.get()
    }
}

struct Cpus<const N: usize> {
    posted: [Posted; N],
    apics: [LocalApic; N],
    clock: TestClock,
}

impl<const N: usize> Cpus<N> {
    fn new() -> Self {
        let posted: [Posted; N] = core::array::from_fn(|index| Posted::new(index as u32));
        let apics = core::array::from_fn(|index| LocalApic::new(index as u32, &posted[index]));
        let mut cpus = Self { posted, apics, clock: TestClock::default() };
        for cpu in 0..N {
            assert_eq!(cpus.write(cpu, Register::Spurious, 0x1ff), Effect::None);
        }
        cpus
    }

    fn write(&mut self, cpu: usize, register: Register, value: u32) -> Effect {
        self.apics[cpu].write(register, value, &self.posted[cpu], &self.clock)
    }

    fn read(&mut self, cpu: usize, register: Register) -> u32 {
        self.apics[cpu].read(register, &self.posted[cpu], &self.clock)
    }

    /// Sends an IPI, and returns the vCPUs that accepted it.
    fn send(&mut self, from: usize, destination: u32, command: u32) -> Vec<usize> {
        assert_eq!(self.write(from, Register::CommandHigh, destination), Effect::None);
        let mut hits = Vec::new();
        if let Effect::Send(ipi) = self.write(from, Register::CommandLow, command) {
            deliver(ipi, from, &self.posted, |hit| hits.push(hit));
        }
        hits
    }

    fn acknowledge(&mut self, cpu: usize) -> Option<u8> {
        self.apics[cpu].acknowledge(&self.posted[cpu])
    }
}

#[test]
fn registers_after_reset() {
    let posted = [Posted::new(0), Posted::new(1)];
    let mut apic = LocalApic::new(1, &posted[1]);
    let clock = TestClock::default();
    let mut read = |register| apic.read(register, &posted[1], &clock);
    assert_eq!(read(Register::Id), 1 << 24);
    assert_eq!(read(Register::Version), 0x5_0014);
    assert_eq!(read(Register::Spurious), 0xff);
    assert_eq!(read(Register::DestinationFormat), u32::MAX);
    assert_eq!(read(Register::LogicalDestination), 0);
    assert_eq!(read(Register::Local(Lvt::Timer)), 1 << 16);
    assert_eq!(read(Register::Local(Lvt::Lint0)), 1 << 16);
    assert_eq!(read(Register::CurrentCount), 0);
    assert!(apic.is_at(0xfee0_0300) && !apic.is_at(0xfee0_1000));
    assert_eq!(apic.base(), 0xfee0_0800);
    assert!(!apic.accepts_ext_int());
    let boot = LocalApic::new(0, &posted[0]);
    assert_eq!(boot.base(), 0xfee0_0900);
    assert!(boot.accepts_ext_int());
    assert!(boot.is_at(0xfee0_0300) && !boot.is_at(0xfee0_1000));
}

#[test]
fn only_the_spurious_vectors_defined_bits_are_kept() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(cpus.write(0, Register::Spurious, u32::MAX), Effect::None);
    assert_eq!(cpus.read(0, Register::Spurious), 0x1ff);
}

#[test]
fn an_ipi_reaches_its_destinations_alone() {
    let mut cpus = Cpus::<4>::new();
    for (cpu, logical) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
        assert_eq!(cpus.write(cpu, Register::LogicalDestination, logical << 24), Effect::None);
    }
    assert_eq!(cpus.send(0, 2 << 24, 0x40), [2]);
    assert_eq!(cpus.send(0, 0xff << 24, 0x41), [0, 1, 2, 3]);
    assert_eq!(cpus.send(1, 0, 0x42 | 1 << 18), [1]);
    assert_eq!(cpus.send(1, 0, 0x43 | 2 << 18), [0, 1, 2, 3]);
    assert_eq!(cpus.send(1, 0, 0x44 | 3 << 18), [0, 2, 3]);
    assert_eq!(cpus.write(0, Register::SelfIpi, 0x50), Effect::None, "only in x2APIC mode");
    assert_eq!(cpus.send(0, 0xa << 24, 0x45 | 1 << 11), [1, 3]);
    // Lowest priority goes to one of them.
    assert_eq!(cpus.send(0, 0xa << 24, 0x146 | 1 << 11), [1]);
    // The cluster model, with clusters of four.
    for cpu in 0..4 {
        assert_eq!(cpus.write(cpu, Register::DestinationFormat, 0x0fff_ffff), Effect::None);
        let logical = ((cpu as u32 / 2) << 4 | 1 << (cpu % 2)) << 24;
        assert_eq!(cpus.write(cpu, Register::LogicalDestination, logical), Effect::None);
    }
    assert_eq!(cpus.send(0, 0x13 << 24, 0x47 | 1 << 11), [2, 3]);
    assert_eq!(cpus.send(0, 0x02 << 24, 0x48 | 1 << 11), [1]);
}

#[test]
fn a_logical_destination_is_eight_bits_or_a_cluster() {
    let mut cpus = Cpus::<3>::new();
    assert_eq!(cpus.send(0, 0xff << 24, 0x40 | 1 << 11), [0, 1, 2], "those without a logical ID, too");
    for (cpu, logical) in [(0, 0x10), (1, 0x20), (2, 0x42)] {
        assert_eq!(cpus.write(cpu, Register::LogicalDestination, logical << 24), Effect::None);
    }
    assert_eq!(cpus.send(0, 0x30 << 24, 0x41 | 1 << 11), [0, 1], "the flat model");
    for (cpu, logical) in [(0, 0x11), (1, 0x21), (2, 0x42)] {
        assert_eq!(cpus.write(cpu, Register::DestinationFormat, 0x0fff_ffff), Effect::None);
        assert_eq!(cpus.write(cpu, Register::LogicalDestination, logical << 24), Effect::None);
    }
    assert_eq!(cpus.send(0, 0xf1 << 24, 0x42 | 1 << 11), [0, 1], "the first of each cluster");
}

#[test]
fn in_x2apic_mode_a_destination_is_32_bits() {
    let mut cpus = Cpus::<18>::new();
    let Cpus { posted, apics, clock } = &mut cpus;
    for (apic, posted) in apics.iter_mut().zip(&*posted) {
        assert_eq!(apic.set_base(apic.base() | 0x400, 40, posted), Ok(()));
    }
    assert_eq!(apics[17].read_msr(0x80d, &posted[17], &*clock), Ok(1 << 16 | 1 << 1), "the logical ID");
    let mut send = |command: u64| {
        let sent = apics[0].write_msr(0x830, command, &posted[0], &*clock);
        let Ok(Effect::Send(ipi)) = sent else { panic!("{command:#x}: {sent:?}") };
        let mut hits = Vec::new();
        deliver(ipi, 0, &*posted, |hit| hits.push(hit));
        hits
    };
    assert_eq!(send(2 << 32 | 0x40), [2]);
    assert_eq!(send(0xff << 32 | 0x41), [0usize; 0], "an ID that no vCPU has");
    assert_eq!(send(0xffff_ffff << 32 | 0x42), (0..18).collect::<Vec<_>>());
    assert_eq!(send(0x1_0003 << 32 | 0x43 | 1 << 11), [16, 17]);
    assert_eq!(send(0x1_0002 << 32 | 0x44 | 1 << 11), [17]);
    assert_eq!(send(0x0_0006 << 32 | 0x45 | 1 << 11), [1, 2]);
}

#[test]
fn signals_are_taken_once_and_the_first_startup_counts() {
    let mut cpus = Cpus::<2>::new();
    assert_eq!(cpus.send(0, 1 << 24, 0x400), [1]);
    assert_eq!(cpus.send(0, 1 << 24, 0x4500), [1]);
    assert_eq!(cpus.send(0, 1 << 24, 0x8500), [0usize; 0], "INIT level de-assert");
    assert_eq!(cpus.send(0, 1 << 24, 0x4608), [1]);
    assert_eq!(cpus.send(0, 1 << 24, 0x4609), [1]);
    // INIT came after the NMI.
    assert_eq!(cpus.posted[1].take_signals(), Signals { nmis: 0, init: true, startup: Some(8), ..Signals::default() });
    assert_eq!(cpus.posted[1].take_signals(), Signals::default());
}

#[test]
fn an_apic_that_software_disables_accepts_no_vectors() {
    let mut cpus = Cpus::<2>::new();
    assert_eq!(cpus.write(1, Register::Spurious, 0xff), Effect::None);
    assert_eq!(cpus.send(0, 1 << 24, 0x40), [0usize; 0]);
    assert_eq!(cpus.send(0, 1 << 24, 0x400), [1], "an NMI is accepted");
    assert_eq!(cpus.write(1, Register::Local(Lvt::Timer), 0x30), Effect::Timer);
    assert_eq!(cpus.read(1, Register::Local(Lvt::Timer)), 0x1_0030, "LVT entries stay masked");
}

#[test]
fn a_vector_that_was_refused_does_not_come_later() {
    let mut cpus = Cpus::<2>::new();
    assert_eq!(cpus.write(1, Register::Spurious, 0xff), Effect::None);
    for trigger in [Trigger::Edge, Trigger::Level] {
        let message = Ipi::from_io_apic(Message::Fixed(0x45), 1, false, trigger);
        deliver(message, 0, &cpus.posted, |_| panic!("software has disabled it"));
    }
    assert!(cpus.posted[1].is_empty());
}

#[test]
fn the_lowest_vector_is_16() {
    let mut cpus = Cpus::<1>::new();
    let mut hits = 0;
    deliver(Ipi::from_io_apic(Message::Fixed(16), 0, false, Trigger::Edge), 0, &cpus.posted, |_| hits += 1);
    assert_eq!((hits, cpus.acknowledge(0)), (1, Some(16)));
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(timer_of_one_count(&mut cpus, 16), Some(16));
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!((cpus.send(0, 0, 16), cpus.acknowledge(0)), (vec![0], Some(16)));
}

#[test]
fn a_masked_timer_does_not_interrupt() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(timer_of_one_count(&mut cpus, 1 << 16 | 0x60), None);
    assert!(cpus.posted[0].is_empty());
}

/// Both vectors are in one word of the ISR.
#[test]
fn an_interrupt_that_another_has_interrupted_stays_in_service() {
    let mut cpus = Cpus::<1>::new();
    for vector in [0x41, 0x52] {
        assert_eq!((cpus.send(0, 0, vector), cpus.acknowledge(0)), (vec![0], Some(vector as u8)));
    }
    cpus.send(0, 0, 0x43);
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(cpus.acknowledge(0), None, "0x41 of the same class is in service");
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(cpus.acknowledge(0), Some(0x43));
}

/// The interrupt of a timer whose LVT entry is `entry` and that has expired.
fn timer_of_one_count(cpus: &mut Cpus<1>, entry: u32) -> Option<u8> {
    assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), entry), Effect::Timer);
    assert_eq!(cpus.write(0, Register::InitialCount, 1), Effect::Timer);
    cpus.clock.nanoseconds.set(cpus.clock.nanoseconds.get() + 2);
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 0);
    cpus.acknowledge(0)
}

#[test]
fn an_interrupt_waits_while_its_class_is_not_above_the_priority() {
    let mut cpus = Cpus::<1>::new();
    for vector in [0x31u8, 0x52, 0x58] {
        cpus.posted[0].post_vector(vector);
    }
    assert_eq!(cpus.write(0, Register::TaskPriority, 0x50), Effect::TaskPriority);
    assert_eq!(cpus.acknowledge(0), None);
    assert_eq!(cpus.write(0, Register::TaskPriority, 0x4f), Effect::TaskPriority);
    assert_eq!(cpus.acknowledge(0), Some(0x58));
    assert_eq!(cpus.acknowledge(0), None, "0x52 is of the same class");
    assert_eq!(cpus.read(0, Register::ProcessorPriority), 0x50);
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(cpus.acknowledge(0), Some(0x52));
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(cpus.acknowledge(0), None);
    cpus.apics[0].set_cr8(2);
    assert_eq!((cpus.read(0, Register::TaskPriority), cpus.apics[0].cr8()), (0x20, 2));
    assert_eq!(cpus.acknowledge(0), Some(0x31));
}

#[test]
fn an_illegal_vector_is_an_error_and_a_write_of_the_esr_shows_it() {
    let mut cpus = Cpus::<2>::new();
    assert_eq!(cpus.write(0, Register::Local(Lvt::Error), 0x77), Effect::None);
    assert_eq!(cpus.send(0, 1 << 24, 0x0f), [0usize; 0]);
    assert_eq!(cpus.read(0, Register::ErrorStatus), 0);
    assert_eq!(cpus.acknowledge(0), Some(0x77));
    assert_eq!(cpus.write(0, Register::ErrorStatus, 0), Effect::None);
    assert_eq!(cpus.read(0, Register::ErrorStatus), 1 << 5);
    assert_eq!(cpus.write(0, Register::ErrorStatus, 0), Effect::None);
    assert_eq!(cpus.read(0, Register::ErrorStatus), 0);
}

#[test]
fn an_error_interrupts_once_until_the_status_is_written() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(cpus.write(0, Register::Local(Lvt::Error), 0x77), Effect::None);
    let interrupts = |cpus: &mut Cpus<1>, command| {
        assert_eq!(cpus.write(0, Register::CommandLow, command), Effect::None);
        let vector = cpus.acknowledge(0);
        assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
        vector
    };
    assert_eq!(interrupts(&mut cpus, 1 << 18), Some(0x77));
    assert_eq!(interrupts(&mut cpus, 1 << 18), None);
    cpus.apics[0].illegal_register(&cpus.posted[0]);
    assert_eq!(cpus.acknowledge(0), Some(0x77), "an error of another kind");
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    assert_eq!(cpus.write(0, Register::ErrorStatus, 0), Effect::None);
    assert_eq!(cpus.read(0, Register::ErrorStatus), 1 << 5 | 1 << 7);
    assert_eq!(interrupts(&mut cpus, 1 << 18), Some(0x77));
}

#[test]
fn a_local_interrupt_without_a_vector_is_an_error() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(cpus.write(0, Register::Local(Lvt::Error), 0x77), Effect::None);
    assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), 0x0f), Effect::Timer);
    assert_eq!(cpus.write(0, Register::InitialCount, 1), Effect::Timer);
    cpus.clock.nanoseconds.set(2);
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 0);
    assert_eq!(cpus.acknowledge(0), Some(0x77));
    assert_eq!(cpus.write(0, Register::ErrorStatus, 0), Effect::None);
    assert_eq!(cpus.read(0, Register::ErrorStatus), 1 << 6);
    // The error entry's own vector is illegal: no interrupt can report that, but both errors are recorded.
    assert_eq!(cpus.write(0, Register::Local(Lvt::Error), 0x0f), Effect::None);
    assert_eq!(cpus.write(0, Register::CommandLow, 1 << 18), Effect::None);
    assert_eq!(cpus.write(0, Register::ErrorStatus, 0), Effect::None);
    assert_eq!(cpus.read(0, Register::ErrorStatus), 1 << 5 | 1 << 6);
}

#[test]
fn the_timer_counts_once_or_periodically() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(cpus.write(0, Register::Divide, 0xb), Effect::Timer);
    assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), 0x60), Effect::Timer);
    cpus.clock.nanoseconds.set(1000);
    assert_eq!(cpus.write(0, Register::InitialCount, 500), Effect::Timer);
    assert_eq!(cpus.apics[0].due(), Some(Due::Nanoseconds(1500)));
    cpus.clock.nanoseconds.set(1499);
    assert_eq!(cpus.read(0, Register::CurrentCount), 1);
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 0);
    assert_eq!(cpus.acknowledge(0), None, "not early");
    cpus.clock.nanoseconds.set(1500);
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 0);
    assert_eq!(cpus.acknowledge(0), Some(0x60));
    assert_eq!((cpus.read(0, Register::CurrentCount), cpus.apics[0].due()), (0, None));
    assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    // Periodic, divided by 4: periods that were missed count as one.
    assert_eq!(cpus.write(0, Register::Divide, 1), Effect::Timer);
    assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), 1 << 17 | 0x61), Effect::Timer);
    assert_eq!(cpus.write(0, Register::InitialCount, 100), Effect::Timer);
    cpus.clock.nanoseconds.set(1500 + 950);
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 0);
    assert_eq!(cpus.acknowledge(0), Some(0x61));
    assert_eq!(cpus.apics[0].due(), Some(Due::Nanoseconds(1500 + 1200)));
    assert_eq!(cpus.read(0, Register::CurrentCount), 63);
}

#[test]
fn a_deadline_is_armed_in_its_mode_only() {
    let mut cpus = Cpus::<1>::new();
    cpus.apics[0].set_tsc_deadline(100);
    assert_eq!((cpus.apics[0].tsc_deadline(), cpus.apics[0].due()), (0, None));
    assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), 2 << 17 | 0x62), Effect::Timer);
    assert_eq!(cpus.write(0, Register::InitialCount, 7), Effect::Timer);
    assert_eq!(cpus.read(0, Register::InitialCount), 0);
    cpus.apics[0].set_tsc_deadline(100);
    assert_eq!((cpus.apics[0].tsc_deadline(), cpus.apics[0].due()), (100, Some(Due::Tsc(100))));
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 99);
    assert_eq!(cpus.acknowledge(0), None);
    cpus.apics[0].expire(&cpus.posted[0], &cpus.clock, 100);
    assert_eq!((cpus.acknowledge(0), cpus.apics[0].tsc_deadline()), (Some(0x62), 0));
    cpus.apics[0].set_tsc_deadline(200);
    assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), 0x62), Effect::Timer);
    assert_eq!(cpus.apics[0].due(), None, "another mode disarms it");
}

#[test]
fn only_a_change_to_or_from_deadlines_disarms_the_timer() {
    let mut cpus = Cpus::<1>::new();
    let set = |cpus: &mut Cpus<1>, entry| {
        assert_eq!(cpus.write(0, Register::Local(Lvt::Timer), entry), Effect::Timer);
    };
    assert_eq!(cpus.write(0, Register::InitialCount, 500), Effect::Timer);
    set(&mut cpus, 1 << 17 | 0x60);
    assert_eq!(cpus.apics[0].due(), Some(Due::Nanoseconds(1000)), "one shot to periodic");
    set(&mut cpus, 2 << 17 | 0x60);
    assert_eq!((cpus.apics[0].due(), cpus.read(0, Register::InitialCount)), (None, 0));
    cpus.apics[0].set_tsc_deadline(100);
    set(&mut cpus, 2 << 17 | 0x61);
    assert_eq!(cpus.apics[0].due(), Some(Due::Tsc(100)), "another vector in the same mode");
    set(&mut cpus, 0x61);
    assert_eq!(cpus.apics[0].due(), None);
    set(&mut cpus, 2 << 17 | 0x61);
    assert_eq!(cpus.apics[0].tsc_deadline(), 0);
}

#[test]
fn another_divisor_keeps_the_count_and_an_initial_count_of_0_stops_it() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(cpus.write(0, Register::Divide, 0xb), Effect::Timer);
    cpus.clock.nanoseconds.set(1000);
    assert_eq!(cpus.write(0, Register::InitialCount, 500), Effect::Timer);
    cpus.clock.nanoseconds.set(1100);
    assert_eq!(cpus.write(0, Register::Divide, 0), Effect::Timer);
    assert_eq!(cpus.read(0, Register::CurrentCount), 400);
    assert_eq!(cpus.apics[0].due(), Some(Due::Nanoseconds(1100 + 2 * 400)));
    assert_eq!(cpus.write(0, Register::InitialCount, 0), Effect::Timer);
    assert_eq!(cpus.apics[0].due(), None);
}

#[test]
fn a_write_of_the_base_changes_the_mode_alone() {
    let mut cpus = Cpus::<2>::new();
    let Cpus { posted, apics, .. } = &mut cpus;
    let (apic, posted) = (&mut apics[1], &posted[1]);
    assert_eq!(apic.set_base(0xfee0_0900, 40, posted), Ok(()));
    assert_eq!(apic.base(), 0xfee0_0800, "it does not become the boot vCPU");
    for _ in 0..2 {
        assert_eq!(apic.set_base(0xfee0_0c00, 40, posted), Ok(()));
    }
    assert_eq!(apic.set_base(0xfee0_0000, 40, posted), Ok(()));
    apic.set_cr8(3);
    assert_eq!(apic.set_base(0xfee0_0000, 40, posted), Ok(()));
    assert_eq!(apic.cr8(), 3, "it was disabled already, and is not reset again");
}

#[test]
fn x2apic_mode_is_entered_and_left_as_the_manual_says() {
    let mut cpus = Cpus::<4>::new();
    let Cpus { posted: all, apics, clock } = &mut cpus;
    let (apic, posted) = (&mut apics[3], &all[3]);
    assert_eq!(apic.read_msr(0x802, posted, clock), Err(InvalidMsrAccess));
    assert_eq!(apic.set_base(0xfee0_0400, 40, posted), Err(InvalidMsrAccess));
    assert_eq!(apic.set_base(1 << 40 | 0xfee0_0800, 40, posted), Err(InvalidMsrAccess));
    assert_eq!(apic.set_base(0xfee0_0c00, 40, posted), Ok(()));
    assert!(!apic.is_at(0xfee0_0300));
    assert_eq!(apic.read_msr(0x802, posted, clock), Ok(3));
    assert_eq!(apic.read_msr(0x80d, posted, clock), Ok(8));
    for refused in [0x80b, 0x83f, 0x80e, 0x831, 0x8ff] {
        assert_eq!(apic.read_msr(refused, posted, clock), Err(InvalidMsrAccess), "{refused:#x}");
    }
    for (msr, value) in [
        (0x80b, 1),
        (0x802, 0),
        (0x808, 0x100),
        (0x80f, 1 << 12),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x832, 1 << 13),
        (0x837, 1 << 17),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(apic.write_msr(msr, value, posted, clock), Err(InvalidMsrAccess), "{msr:#x}");
    }
    assert_eq!(
        apic.write_msr(0x830, 7 << 32 | 0x1000, posted, clock),
        Ok(Effect::None),
        "a write of the delivery status is ignored"
    );
    assert_eq!(apic.write_msr(0x835, 0x1_5700, posted, clock), Ok(Effect::None), "and so are LINT0's read-only bits");
    assert_eq!(apic.read_msr(0x835, posted, clock), Ok(0x1_0700));
    let Ok(Effect::Send(ipi)) = apic.write_msr(0x83f, 0x55, posted, clock) else { panic!("a self-IPI") };
    deliver(ipi, 3, all.iter(), |hit| assert_eq!(hit, 3));
    assert_eq!(apic.acknowledge(posted), Some(0x55));
    assert_eq!(apic.read_msr(0x830, posted, clock), Ok(7 << 32), "a self-IPI does not change the ICR");
    assert_eq!(
        apic.set_base(0xfee0_0800, 40, posted),
        Err(InvalidMsrAccess),
        "x2APIC mode is left by disabling the APIC alone"
    );
    assert_eq!(apic.set_base(0xfee0_0000, 40, posted), Ok(()));
    assert!(apic.accepts_ext_int());
    assert_eq!(apic.set_base(0xfee0_0c00, 40, posted), Err(InvalidMsrAccess));
    assert_eq!(apic.set_base(0xfee0_0800, 40, posted), Ok(()));
    assert!(apic.is_at(0xfee0_0300) && !apic.is_at(0xfee0_1000));
}

#[test]
fn what_the_task_priority_alone_holds_back_waits_for_cr8_to_fall() {
    let mut cpus = Cpus::<1>::new();
    let held_back = |cpus: &Cpus<1>| cpus.apics[0].held_back(&cpus.posted[0]);
    assert_eq!(held_back(&cpus), None, "nothing is pending");
    cpus.posted[0].post_vector(0x52);
    for (cr8, class) in [(4, None), (5, Some(5)), (15, Some(5))] {
        cpus.apics[0].set_cr8(cr8);
        assert_eq!(held_back(&cpus), class, "CR8 = {cr8}");
    }
    cpus.posted[0].post_vector(0x41);
    assert_eq!(held_back(&cpus), Some(5), "the highest one comes first");
    cpus.apics[0].set_cr8(0);
    assert_eq!(cpus.acknowledge(0), Some(0x52));
    cpus.apics[0].set_cr8(6);
    assert_eq!(held_back(&cpus), None, "the handler of 52h holds 41h back as well");
    cpus.posted[0].post_vector(0x58);
    assert_eq!(held_back(&cpus), None, "and an interrupt of its own class");
}

#[test]
fn a_disabled_apic_holds_nothing_back_until_cr8_falls() {
    let mut cpus = Cpus::<1>::new();
    let [posted] = &cpus.posted;
    cpus.apics[0].set_base(0xfee0_0000, 40, posted).unwrap();
    // By a sender that has seen it enabled.
    posted.post_vector(0x52);
    cpus.apics[0].set_cr8(15);
    assert_eq!(cpus.apics[0].held_back(posted), None);
}

#[test]
fn a_vcpu_may_have_vectors_from_the_first_post_to_the_last_acknowledgment() {
    let mut cpus = Cpus::<1>::new();
    assert!(!cpus.posted[0].may_have_vectors());
    [0x41, 0x42, 0x83].into_iter().for_each(|vector| cpus.posted[0].post_vector(vector));
    for vector in [0x83, 0x42, 0x41] {
        assert!(cpus.posted[0].may_have_vectors());
        assert_eq!(cpus.acknowledge(0), Some(vector));
        assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
    }
    assert!(!cpus.posted[0].may_have_vectors());
}

#[test]
fn the_task_prioritys_low_bits_stay_while_cr8_does() {
    let mut cpus = Cpus::<1>::new();
    assert_eq!(cpus.write(0, Register::TaskPriority, 0x53), Effect::TaskPriority);
    for (cr8, register) in [(5, 0x53), (6, 0x60), (5, 0x50)] {
        cpus.apics[0].update_cr8(cr8);
        assert_eq!(cpus.read(0, Register::TaskPriority), register);
    }
}

#[test]
fn init_keeps_only_the_id_and_the_base() {
    let mut cpus = Cpus::<2>::new();
    cpus.posted[1].post_vector(0x40);
    assert_eq!(cpus.write(1, Register::TaskPriority, 0x20), Effect::TaskPriority);
    let (apic, posted) = (&mut cpus.apics[1], &cpus.posted[1]);
    apic.reset(posted);
    assert_eq!((apic.next(posted), apic.base(), apic.cr8()), (None, 0xfee0_0800, 0));
    assert!(posted.is_empty() && !posted.accepts_vectors());
}

#[test]
fn a_vcpu_is_told_of_a_message_after_it_was_posted() {
    let messages =
        [Message::Fixed(0x45), Message::LowestPriority(0x45), Message::Nmi, Message::Init, Message::Startup(8)];
    for message in messages {
        let cpus = Cpus::<2>::new();
        let mut told = 0;
        deliver(Ipi::from_io_apic(message, 1, false, Trigger::Edge), 0, &cpus.posted, |hit| {
            assert!(!cpus.posted[hit].is_empty(), "{message:?} is not there yet");
            told += 1;
        });
        assert_eq!(told, 1, "{message:?}");
    }
}

#[test]
fn only_the_eoi_of_a_level_triggered_vector_is_broadcast() {
    let mut cpus = Cpus::<2>::new();
    let message = |trigger| Ipi::from_io_apic(Message::Fixed(0x45), 1, false, trigger);
    let triggers = [(Trigger::Level, Effect::BroadcastEoi(0x45), 1 << 5), (Trigger::Edge, Effect::None, 0)];
    for (trigger, effect, trigger_mode) in [triggers, triggers].concat() {
        let mut hits = Vec::new();
        deliver(message(trigger), 0, &cpus.posted, |hit| hits.push(hit));
        assert_eq!(hits, [1]);
        assert_eq!(cpus.read(1, Register::TriggerMode(2)), trigger_mode);
        assert_eq!(cpus.acknowledge(1), Some(0x45));
        assert_eq!(cpus.write(1, Register::EndOfInterrupt, 0), effect);
        assert_eq!(cpus.write(1, Register::EndOfInterrupt, 0), Effect::None, "nothing is in service");
    }
}

#[test]
fn an_ipi_of_a_vector_that_was_level_triggered_is_an_edge() {
    let mut cpus = Cpus::<2>::new();
    cpus.posted[1].post_level_vector(0x45);
    assert_eq!(cpus.send(0, 1 << 24, 0x4045), [1]);
    assert_eq!(cpus.acknowledge(1), Some(0x45));
    assert_eq!(cpus.write(1, Register::EndOfInterrupt, 0), Effect::None);
}

#[test]
fn an_io_apics_destinations_have_eight_bits() {
    let mut cpus = Cpus::<3>::new();
    for cpu in 0..3 {
        assert_eq!(cpus.write(cpu, Register::LogicalDestination, 1 << (24 + cpu)), Effect::None);
    }
    let cases = [(2, false, &[2][..]), (0xff, false, &[0, 1, 2]), (0b110, true, &[1, 2]), (7, false, &[])];
    for (destination, is_logical, wanted) in cases {
        let mut hits = Vec::new();
        let message = Ipi::from_io_apic(Message::Fixed(0x31), destination, is_logical, Trigger::Edge);
        deliver(message, 0, &cpus.posted, |hit| hits.push(hit));
        assert_eq!(hits, wanted, "{destination:#x}");
    }
    let illegal = Ipi::from_io_apic(Message::Fixed(0x0f), 0xff, false, Trigger::Level);
    deliver(illegal, 0, &cpus.posted, |_| panic!("a vector below 16"));
    deliver(Ipi::from_io_apic(Message::ExtInt, 1, false, Trigger::Edge), 0, &cpus.posted, |hit| assert_eq!(hit, 1));
    assert!(cpus.posted[1].take_signals().ext_int && !cpus.posted[2].has_signals());
}

#[test]
fn others_see_whether_lint0_takes_the_8259s_interrupts() {
    let mut cpus = Cpus::<2>::new();
    let accept = |cpus: &Cpus<2>| [0, 1].map(|cpu| cpus.posted[cpu].accepts_ext_int());
    assert_eq!(accept(&cpus), [true, false], "as firmware leaves it");
    assert_eq!(cpus.write(0, Register::Local(Lvt::Lint0), 0x1_0700), Effect::None);
    // Its vector and its polarity do not matter.
    assert_eq!(cpus.write(1, Register::Local(Lvt::Lint0), 0x2731), Effect::None);
    assert_eq!(accept(&cpus), [false, true]);
    assert_eq!(cpus.write(1, Register::Spurious, 0xff), Effect::None);
    assert_eq!(accept(&cpus), [false, false], "software has it disabled, which masks the entry");
    let [_, posted] = &cpus.posted;
    cpus.apics[1].set_base(0xfee0_0000, 40, posted).unwrap();
    assert_eq!(accept(&cpus), [false, true], "without its APIC a processor takes all");
}

proptest! {
    #[test]
    fn posted_vectors_are_acknowledged_once_in_order_of_priority(vectors in prop::collection::btree_set(16u8.., 1..40)) {
        let mut cpus = Cpus::<1>::new();
        vectors.iter().for_each(|&vector| cpus.posted[0].post_vector(vector));
        let mut accepted = Vec::new();
        while let Some(vector) = cpus.acknowledge(0) {
            accepted.push(vector);
            prop_assert_eq!(cpus.write(0, Register::EndOfInterrupt, 0), Effect::None);
        }
        prop_assert!(accepted.iter().copied().eq(vectors.into_iter().rev()));
    }

    #[test]
    fn apics_follow_the_manuals_rules(steps in prop::collection::vec(fuzz::step(), 0..200)) {
        fuzz::apic_accesses(&steps.concat());
    }
}

#[test]
fn two_nmis_are_two_and_three_are_too() {
    let mut cpus = Cpus::<2>::new();
    for (sent, taken) in [(1, 1), (2, 2), (3, 2)] {
        (0..sent).for_each(|_| assert_eq!(cpus.send(0, 1 << 24, 0x400), [1]));
        assert_eq!(cpus.posted[1].take_signals(), Signals { nmis: taken, ..Signals::default() });
    }
    cpus.posted[1].post_ext_int();
    (0..2).for_each(|_| cpus.posted[1].post_nmi());
    assert_eq!(cpus.posted[1].take_signals(), Signals { nmis: 2, ext_int: true, ..Signals::default() });
}

#[test]
fn what_is_discarded_is_gone() {
    let posted = Posted::new(0);
    posted.post_vector(0x40);
    posted.post_nmi();
    posted.post_startup(8);
    posted.discard();
    assert!(posted.is_empty() && !posted.may_have_vectors());
    assert_eq!(posted.take_signals(), Signals::default());
}

#[test]
fn a_request_is_raised_once_until_it_is_cleared() {
    let request = Request::new();
    assert!(!request.is_pending());
    assert!(request.raise());
    assert!(!request.raise(), "the sender that raised it kicks");
    assert!(request.is_pending());
    request.clear();
    assert!(!request.is_pending());
    assert!(request.raise());
}
