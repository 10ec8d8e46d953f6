//! The fuzzer's entry point, which the property tests use, too.

use crate::register::Lvt;
use crate::{Clock, Due, Effect, LocalApic, Posted, Register, deliver};
use arch::apic::{BASE_ENABLED, BASE_X2APIC, COMMAND_SELF, X2APIC_MSRS};
use core::cell::Cell;

struct At<'a>(&'a Cell<u64>);

impl Clock for At<'_> {
    fn nanoseconds(&self) -> u64 {
        self.0.get()
    }
}

const CPUS: usize = 3;
pub(crate) const STEP_BYTES: usize = 8;
const ADDRESS_BITS: u8 = 40;

struct World<'w> {
    posted: &'w [Posted; CPUS],
    apics: [LocalApic; CPUS],
    time: &'w Cell<u64>,
}

/// Accesses to the local APICs of one VM, in any order, while time runs. Each is eight bytes: the kind, the vCPU, the register,
/// the value (4 bytes), and the time that passes, as a power of two. The guest's TSC is the time.
///
/// # Panics
/// If an APIC does not do what the manual's rules derive from its registers: the destinations of an interrupt, the next
/// interrupt, the priority, or the timer's deadline.
pub fn apic_accesses(data: &[u8]) {
    let (time, posted) = (Cell::new(0), core::array::from_fn(|index| Posted::new(index as u32)));
    let apics = core::array::from_fn(|index| LocalApic::new(index as u32, &posted[index]));
    let mut world = World { posted: &posted, apics, time: &time };
    for &[kind, vcpu, register, v0, v1, v2, v3, step] in data.as_chunks::<STEP_BYTES>().0 {
        let cpu = usize::from(vcpu) % CPUS;
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        match kind & 7 {
            0..=2 => world.write_page(cpu, register & 0x3f, value),
            3 => world.write_msr(cpu, register & 0x3f, u64::from(vcpu >> 2) << 32 | u64::from(value)),
            4 => world.set_base(cpu, 0xfee0_0000 | u64::from(v0 & 0xd) << 8),
            5 => world.acknowledge(cpu),
            6 if v1 & 1 != 0 => posted[cpu].post_level_vector(v0.max(16)),
            6 => posted[cpu].post_vector(v0.max(16)),
            _ => world.apics[cpu].set_tsc_deadline(value.into()),
        }
        time.set(time.get() + (1 << (step & 0x1f)));
        world.look(cpu);
    }
}

impl World<'_> {
    fn read(&mut self, cpu: usize, register: Register) -> u32 {
        self.apics[cpu].read(register, &self.posted[cpu], &At(self.time))
    }

    fn write_page(&mut self, cpu: usize, number: u8, value: u32) {
        let Some(register) = Register::new(number.into()).filter(|_| self.apics[cpu].is_at(self.apics[cpu].base()))
        else {
            return;
        };
        let ended = self.ended(cpu, register);
        let effect = self.apics[cpu].write(register, value, &self.posted[cpu], &At(self.time));
        if let Some(ended) = ended {
            return assert_eq!(effect, ended);
        }
        self.carry_out(cpu, register, value, effect);
    }

    /// What an EOI must lead to, if that is the register: the highest interrupt in service ends.
    fn ended(&mut self, cpu: usize, register: Register) -> Option<Effect> {
        (register == Register::EndOfInterrupt).then(|| match self.highest(cpu, Register::InService) {
            Some(vector) if self.has(cpu, Register::TriggerMode, vector) => Effect::BroadcastEoi(vector),
            _ => Effect::None,
        })
    }

    fn write_msr(&mut self, cpu: usize, number: u8, value: u64) {
        let msr = X2APIC_MSRS.start + u32::from(number);
        let on = self.apics[cpu].base() & (BASE_ENABLED | BASE_X2APIC) == BASE_ENABLED | BASE_X2APIC;
        let ended = Register::new(number.into()).and_then(|register| self.ended(cpu, register));
        let (posted, clock) = (&self.posted[cpu], At(self.time));
        if let Ok(effect) = self.apics[cpu].write_msr(msr, value, posted, &clock) {
            let register = Register::new(number.into()).expect("only registers are written");
            assert!(on);
            match ended {
                Some(ended) => assert_eq!(effect, ended),
                None => self.carry_out(cpu, register, value as u32, effect),
            }
        }
        if let Ok(value) = self.apics[cpu].read_msr(msr, &self.posted[cpu], &At(self.time)) {
            let register = Register::new(number.into()).expect("only registers are read");
            assert!(on);
            assert_eq!(value as u32, self.read(cpu, register));
        }
    }

    /// Mode changes are those of the manual's figure 11-27; disabling the APIC resets its registers.
    fn set_base(&mut self, cpu: usize, base: u64) {
        let mode = |base: u64| base & (BASE_ENABLED | BASE_X2APIC);
        let (old, new) = (mode(self.apics[cpu].base()), mode(base));
        let allowed = matches!((old, new), (_, 0) | (0 | BASE_ENABLED, BASE_ENABLED))
            || new == BASE_ENABLED | BASE_X2APIC && old != 0;
        let done = self.apics[cpu].set_base(base, ADDRESS_BITS, &self.posted[cpu]);
        assert_eq!(done.is_ok(), allowed, "{old:#x} to {new:#x}");
        assert_eq!(mode(self.apics[cpu].base()), if allowed { new } else { old });
        if allowed && new == 0 && old != 0 {
            assert_eq!(self.read(cpu, Register::Spurious), 0xff);
            assert_eq!(self.highest(cpu, Register::InterruptRequest), None);
        }
    }

    /// The vCPU handles its timer and its signals, and its registers are checked.
    fn look(&mut self, cpu: usize) {
        let now = self.time.get();
        let (apic, posted) = (&mut self.apics[cpu], &self.posted[cpu]);
        apic.expire(posted, &At(self.time), now);
        let ahead = match apic.due() {
            None => true,
            Some(Due::Nanoseconds(at) | Due::Tsc(at)) => at > now,
        };
        assert!(ahead, "the timer is due in the past");
        if posted.take_signals().init {
            apic.reset(posted);
            assert_eq!((apic.next(posted), apic.due()), (None, None));
        }
        let (initial, current) = (self.read(cpu, Register::InitialCount), self.read(cpu, Register::CurrentCount));
        assert!(current <= initial, "{current:#x} of {initial:#x}");
        let priority = self.priority(cpu);
        assert_eq!(self.read(cpu, Register::ProcessorPriority), priority);
        assert_eq!(self.apics[cpu].next(&self.posted[cpu]), self.next(cpu));
    }

    fn acknowledge(&mut self, cpu: usize) {
        let expected = self.next(cpu);
        assert_eq!(self.apics[cpu].acknowledge(&self.posted[cpu]), expected);
        if let Some(vector) = expected {
            assert!(!self.has(cpu, Register::InterruptRequest, vector));
            assert_eq!(self.highest(cpu, Register::InService), Some(vector));
        }
    }

    fn has(&mut self, cpu: usize, register: fn(u8) -> Register, vector: u8) -> bool {
        self.read(cpu, register(vector / 32)) & 1 << (vector % 32) != 0
    }

    fn highest(&mut self, cpu: usize, register: fn(u8) -> Register) -> Option<u8> {
        (0..=255).rev().find(|&vector| self.has(cpu, register, vector))
    }

    /// The processor priority by SDM section 11.8.3.1.
    fn priority(&mut self, cpu: usize) -> u32 {
        let task = self.read(cpu, Register::TaskPriority);
        let served = u32::from(self.highest(cpu, Register::InService).unwrap_or(0)) & 0xf0;
        if task & 0xf0 >= served { task } else { served }
    }

    fn next(&mut self, cpu: usize) -> Option<u8> {
        let class = self.priority(cpu) as u8 >> 4;
        let on = self.apics[cpu].base() & BASE_ENABLED != 0;
        self.highest(cpu, Register::InterruptRequest).filter(|vector| on && vector >> 4 > class)
    }

    fn carry_out(&mut self, from: usize, register: Register, value: u32, effect: Effect) {
        let command = match register {
            Register::CommandLow => value,
            Register::SelfIpi if self.apics[from].base() & BASE_X2APIC != 0 => COMMAND_SELF | value & 0xff,
            Register::InitialCount | Register::Divide | Register::Local(Lvt::Timer) => {
                return assert_eq!(effect, Effect::Timer);
            }
            Register::TaskPriority => return assert_eq!(effect, Effect::TaskPriority),
            _ => return assert_eq!(effect, Effect::None),
        };
        let (vector, mode) = (command as u8, command >> 8 & 7);
        let ends_level = command & 0xc000 == 0x8000;
        let is_sent = match mode {
            0 | 1 => vector >= 16,
            5 => !ends_level,
            4 | 6 => true,
            _ => false,
        };
        let Effect::Send(ipi) = effect else { return assert!(!is_sent, "{command:#x}") };
        assert!(is_sent, "{command:#x}");
        let mut meant: [bool; CPUS] =
            core::array::from_fn(|cpu| self.is_for(cpu, from, command) && self.takes(cpu, mode));
        if mode == 1 {
            let first = meant.iter().position(|&meant| meant);
            meant = core::array::from_fn(|cpu| first == Some(cpu));
        }
        let mut hit = [false; CPUS];
        deliver(ipi, from, self.posted, |cpu| hit[cpu] = true);
        assert_eq!(hit, meant, "{command:#x}");
        for cpu in (0..CPUS).filter(|&cpu| hit[cpu]) {
            assert!(if mode < 2 {
                self.has(cpu, Register::InterruptRequest, vector)
            } else {
                self.posted[cpu].has_signals()
            });
        }
    }

    fn takes(&mut self, cpu: usize, mode: u32) -> bool {
        let software = self.read(cpu, Register::Spurious) & 1 << 8 != 0;
        self.apics[cpu].base() & BASE_ENABLED != 0 && (software || mode > 1)
    }

    /// Whether vCPU `cpu` is a destination of the command, by SDM sections 11.6.2 and 11.12.10.
    fn is_for(&mut self, cpu: usize, from: usize, command: u32) -> bool {
        let sender_is_wide = self.apics[from].base() & BASE_X2APIC != 0;
        let high = self.read(from, Register::CommandHigh);
        let (destination, all) = if sender_is_wide { (high, u32::MAX) } else { (high >> 24, 0xff) };
        let logical = self.read(cpu, Register::LogicalDestination);
        let is_flat = self.read(cpu, Register::DestinationFormat) == u32::MAX;
        match command >> 18 & 3 {
            1 => cpu == from,
            2 => true,
            3 => cpu != from,
            _ if destination == all => true,
            _ if command & 1 << 11 == 0 => destination == cpu as u32,
            _ if self.apics[cpu].base() & BASE_X2APIC != 0 => {
                destination >> 16 == logical >> 16 && destination & logical & 0xffff != 0
            }
            _ if is_flat => destination & logical >> 24 != 0,
            _ => {
                let (cluster, members) = (destination >> 4 & 0xf, destination & 0xf);
                (cluster == 0xf || cluster == logical >> 28) && members & logical >> 24 != 0
            }
        }
    }
}

/// One access for [`apic_accesses`]; most of them are valid.
#[cfg(test)]
pub(crate) fn step() -> impl proptest::strategy::Strategy<Value = [u8; STEP_BYTES]> {
    use proptest::prelude::*;
    const REGISTERS: [u8; 14] = [0x08, 0x0b, 0x0d, 0x0e, 0x0f, 0x28, 0x30, 0x31, 0x32, 0x35, 0x37, 0x38, 0x3e, 0x3f];
    let register = prop_oneof![3 => prop::sample::select(&REGISTERS[..]), 1 => any::<u8>()];
    let value = prop_oneof![
        2 => any::<u32>(),
        // In turn: a vector with the APIC's enable bit; a command of any kind; a destination; a divisor.
        2 => any::<u8>().prop_map(|vector| 0x100 | u32::from(vector)),
        2 => (any::<u8>(), 0u32..8, any::<bool>(), 0u32..4, 0u32..4).prop_map(|(vector, mode, logical, level, to)| {
            u32::from(vector) | mode << 8 | u32::from(logical) << 11 | level << 14 | to << 18
        }),
        1 => prop::sample::select(&[0u32, 1, 2, 3, 0xff, 0x11, 0x21, 0xf1][..]).prop_map(|id| id << 24),
        1 => 0u32..8,
    ];
    (any::<[u8; 2]>(), register, value, 0u8..20).prop_map(|([kind, vcpu], register, value, step)| {
        let [v0, v1, v2, v3] = value.to_le_bytes();
        [kind, vcpu, register, v0, v1, v2, v3, step]
    })
}
