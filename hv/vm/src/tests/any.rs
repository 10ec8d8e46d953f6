//! Whatever the guest does, the handlers hold to their contract and either resume it or end it.

use super::guest::*;
use crate::{ControlRegisters, Cr8, Event, Exception, Exit, Flow, Gpr, Instruction, NestedFault, Stop};
use addr::Gpa;
use devices::Size;
use proptest::prelude::*;
use std::vec::Vec;

/// Instructions that exit, with and without prefixes, and that access memory.
const INSTRUCTIONS: [&[u8]; 20] = [
    &[0x0f, 0xa2],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x32],
    &[0x0f, 0x30],
    &[0xf4],
    &[0x66, 0xf4],
    &[0x6e],
    &[0xf3, 0x6e],
    &[0xf3, 0x66, 0x6f],
    &[0x67, 0xf3, 0x6d],
    &[0xf3, 0x6c],
    &[0x44, 0x0f, 0x20, 0xc0],
    &[0x44, 0x0f, 0x22, 0xc3],
    &[0x8b, 0x03],
    &[0x48, 0x89, 0x03],
    &[0xf0, 0x0f, 0xc1, 0x03],
    &[0xf3, 0xa4],
    &[0x48, 0xa5],
    &[0x48, 0x0f, 0xc7, 0x0b],
];

/// What the guest has made of its registers and memory.
#[derive(Clone, Debug)]
struct State {
    code: Vec<u8>,
    rip: u64,
    gprs: [u64; 16],
    rflags: u64,
    cpl: u8,
    /// CR0, CR3, CR4 and EFER.
    control: [u64; 4],
    long: bool,
    default_big: bool,
    bases: [u64; 6],
    shadow: bool,
    next_rip: Option<u64>,
    tables: Vec<(u64, u64)>,
}

/// The pages of devices: I/O APIC, HPET, local APIC, the test device's memory.
const DEVICES: [u64; 4] = [0xfec0_0000, 0xfed0_0000, 0xfee0_0000, 0xff00_0000];

/// An address: mostly in memory and often at the end of a page, or where there is none, or a device's, or anywhere.
fn address() -> impl Strategy<Value = u64> + Clone {
    let page = (0..PAGES as u64).prop_map(|page| page << 12);
    (0u8..8, page, any::<u64>()).prop_map(|(kind, page, bits)| match kind {
        0..2 => page,
        2..4 => page | bits >> 52,
        4..6 => page | 0xff0 | bits >> 60,
        6 => HOLE + bits % 0x1000,
        7 if bits >> 63 == 0 => DEVICES[(bits >> 32) as usize % 4] + bits % 0x1000,
        _ => bits,
    })
}

/// What a register holds: an address, a count, an MSR's number, anything.
fn number() -> impl Strategy<Value = u64> + Clone {
    (0u8..8, address()).prop_map(|(kind, bits)| match kind {
        0..4 => bits,
        4..6 => bits % 20,
        6 => 0x200 + bits % 0x100,
        _ => 0xc000_0080 + bits % 8,
    })
}

fn code() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::sample::select(&INSTRUCTIONS[..]).prop_map(Vec::from),
        1 => prop::collection::vec(any::<u8>(), 0..16),
    ]
}

/// An entry, mostly of the four tables.
fn entry() -> impl Strategy<Value = (u64, u64)> {
    let index = prop_oneof![Just(0u64), 0u64..40, 0u64..512];
    let flags = prop_oneof![Just(0u64), Just(1), Just(7), any::<u64>()];
    (0u64..4, index, address(), flags)
        .prop_map(|(table, index, address, flags)| (PML4 + (table << 12) + index * 8, address & !0xfff | flags))
}

/// Long mode, no paging, or any.
fn control() -> impl Strategy<Value = [u64; 4]> {
    prop_oneof![
        5 => Just([PE | WP | PG, PML4, PAE, LME | LMA]),
        2 => Just([PE, 0, 0, 0]),
        2 => (any::<u64>(), address(), any::<u64>(), any::<u64>()).prop_map(<[u64; 4]>::from),
    ]
}

prop_compose! {
    fn segments()(
        long in prop::bool::weighted(0.8), default_big in any::<bool>(), bases in prop::array::uniform6(prop_oneof![3 => Just(0), 1 => address()]),
    ) -> (bool, bool, [u64; 6]) {
        (long, default_big, bases)
    }
}

prop_compose! {
    fn state()(
        code in code(),
        rip in prop_oneof![4 => Just(CODE), 2 => CODE + 0xff0..CODE + 0x1000, 1 => address()],
        gprs in prop::array::uniform16(number()),
        rflags in any::<u64>(),
        cpl in 0u8..=3,
        control in control(),
        (long, default_big, bases) in segments(),
        shadow in any::<bool>(),
        next_rip in prop::option::weighted(0.2, any::<u64>()),
        tables in prop::collection::vec(entry(), 0..4),
    ) -> State {
        State { code, rip, gprs, rflags, cpl, control, long, default_big, bases, shadow, next_rip, tables }
    }
}

fn io_exit() -> impl Strategy<Value = Exit> {
    let port = prop_oneof![Just(0xe9u16), Just(0xf4), Just(0x3f8), Just(0x3f9), Just(0x20), Just(0x40), any::<u16>()];
    let size = prop::sample::select(&[Size::Byte, Size::Word, Size::Dword][..]);
    (port, size, any::<bool>(), any::<bool>()).prop_map(|(port, size, input, is_string)| {
        if is_string { string(port, size, input) } else { io(port, size, input) }
    })
}

fn nested_fault() -> impl Strategy<Value = Exit> {
    (address(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(address, write, fetch, present)| {
        Exit::NestedFault(NestedFault::new(Gpa::new(address), write, fetch, present))
    })
}

fn instruction() -> impl Strategy<Value = Exit> {
    prop::sample::select(&[Instruction::Invd, Instruction::Xsetbv, Instruction::Undefined][..])
        .prop_map(Exit::Instruction)
}

fn exception() -> impl Strategy<Value = Exit> {
    (prop_oneof![Just(6u8), 0u8..32], any::<Option<u32>>())
        .prop_map(|(vector, error_code)| Exit::Exception(Exception::new(vector, error_code)))
}

fn cr8() -> impl Strategy<Value = Exit> {
    (any::<bool>(), prop::option::of(0u8..4)).prop_map(|(write, gpr)| Exit::Cr8(Cr8::new(write, gpr.map(Gpr::new))))
}

/// Exits that may leave the guest running.
fn exit() -> impl Strategy<Value = Exit> {
    use Exit::*;
    prop_oneof![
        6 => prop::sample::select(&[Cpuid, Hypercall, ReadMsr, WriteMsr, Halt, ExternalInterrupt, Nmi, InterruptWindow][..]),
        6 => io_exit(),
        4 => nested_fault(),
        1 => instruction(),
        1 => cr8(),
        2 => exception(),
    ]
}

impl State {
    /// Sets the vCPU; the state of memory was set before.
    fn load(&self, vcpu: &mut super::vcpu::TestVcpu) {
        vcpu.rip = self.rip;
        vcpu.gprs = self.gprs;
        vcpu.rflags = self.rflags;
        let [cr0, cr3, cr4, efer] = self.control;
        vcpu.control = ControlRegisters { cr0, cr3, cr4, efer, cpl: self.cpl };
        for (segment, base) in vcpu.segments.iter_mut().zip(self.bases) {
            segment.base = base;
        }
        vcpu.segments[1].long = self.long;
        vcpu.segments[1].default_big = self.default_big;
        (vcpu.shadow, vcpu.pending_traps) = (self.shadow, 0);
        if self.shadow {
            vcpu.hold_step();
        }
        vcpu.next_rip = self.next_rip;
    }

    fn guest(&self) -> Guest {
        // Every interrupt unmasked, the timer running, COM1's pending.
        let mut guest = Guest::with_devices(&[], |devices| {
            out(devices, 0x21, 0);
            [(0x43, 0x34), (0x40, 0), (0x40, 0x10)].into_iter().for_each(|(port, value)| out(devices, port, value));
            devices.set_gsi(4, true);
        });
        for &(at, entry) in &self.tables {
            guest.memory().put_u64(at, entry);
        }
        // Where it is to be found without paging and by the first tables.
        if self.rip < (PAGES as u64) << 12 {
            let room = ((PAGES << 12) - self.rip as usize).min(self.code.len());
            guest.memory().put(self.rip, &self.code[..room]);
        }
        self.load(&mut guest.vcpu);
        guest
    }
}

/// Whether RIP is where it was, or behind an instruction there, or where the hardware says.
fn has_gone_on_or_stayed(before: &State, rip: u64) -> bool {
    let advance = rip.wrapping_sub(before.rip);
    advance <= 15 || (rip.wrapping_sub(before.rip & 0xffff_ffff) & 0xffff_ffff) <= 15 || Some(rip) == before.next_rip
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_exit_resumes_or_stops(state in state(), exit in exit(), cut_short in any::<Option<u8>>()) {
        let mut guest = state.guest();
        if let (Exit::NestedFault(_), Some(vector)) = (exit, cut_short) {
            guest.vcpu.event = Some(Event::Interrupt(vector));
        }
        let memory = guest.memory().snapshot();
        let event = guest.vcpu.event;
        let flow = guest.handle(exit);

        // An instruction that is carried out on an address without memory may be a jump.
        prop_assert!(matches!(exit, Exit::NestedFault(_)) || has_gone_on_or_stayed(&state, guest.vcpu.rip));
        // A trap comes behind the instruction.
        let raised = guest.vcpu.event != event
            && matches!(guest.vcpu.event, Some(Event::Exception(_)))
            && guest.vcpu.event != Some(Event::DEBUG);
        if raised {
            prop_assert_eq!((guest.vcpu.rip, flow), (state.rip, Flow::Resume));
        }
        let is_io = matches!(exit, Exit::Io(_));
        if let Flow::Stop(Stop::Exited(_) | Stop::Reset | Stop::PoweredOff) = flow {
            prop_assert!(is_io);
        }
        if !is_io && !matches!(exit, Exit::NestedFault(_)) {
            prop_assert!(guest.memory().snapshot() == memory);
        }
        // The stack pointer does not matter, unless the instruction at RIP loads it from an address without memory.
        if !matches!(exit, Exit::NestedFault(_)) {
            prop_assert_eq!(guest.get(Gpr::RSP), state.gprs[Gpr::RSP.index()]);
        }
    }

    #[test]
    fn every_run_ends_and_every_exit_is_counted(first in state(), exits in prop::collection::vec((exit(), state()), 0..12)) {
        let mut guest = first.guest();
        for (exit, state) in exits {
            guest.vcpu.then(exit, move |vcpu| state.load(vcpu));
        }
        guest.vcpu.then(Exit::Shutdown, |_| {});
        let mut host = TestHost::with_patience(&guest, 100);
        let stop = guest.run(&mut host);
        prop_assert!(stop == Stop::TripleFault || guest.vcpu.script_left() > 0 || stop == Stop::Limit);
        let table = std::format!("{}", guest.handler.context.stats());
        let all = table.lines().last().and_then(|line| line.split_whitespace().nth(1)).map(str::parse);
        prop_assert_eq!(all, Some(Ok(guest.vcpu.entries)));
    }
}
