//! A VM of the stand-ins, ready for its exits.

use super::memory::TestMemory;
use super::vcpu::TestVcpu;
use crate::cpuid::{CpuModel, Leaf};
use crate::vcpu::{ControlRegisters, SegmentState};
use crate::{Activity, Context, Exit, ExitHandler, Flow, Gpr, Host, Instant, Io, Stop, Turn, Types, Vcpu, Vm};
use arch::features::FeatureSet;
use core::ops::ControlFlow;
use devices::{BoardConfig, Clock, Effect, Nanoseconds, Sink, Size};
use std::boxed::Box;
use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

/// Where the guest's tables, code and data are: linear addresses below 2 MiB are physical ones, of which the first
/// [`PAGES`] pages are memory.
pub(super) const PML4: u64 = 0x1000;
pub(super) const PDPT: u64 = 0x2000;
pub(super) const PD: u64 = 0x3000;
pub(super) const PT: u64 = 0x4000;
pub(super) const CODE: u64 = 0x8000;
pub(super) const DATA: u64 = 0x1_0000;
pub(super) const PAGES: usize = 32;
/// A linear address whose physical address has no memory.
pub(super) const HOLE: u64 = 0x10_0000;

/// A page table entry's flags.
pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 2;
pub(super) const USER: u64 = 4;
pub(super) const LARGE: u64 = 1 << 7;

pub(super) const PE: u64 = 1;
pub(super) const WP: u64 = 1 << 16;
pub(super) const PG: u64 = 1 << 31;
pub(super) const PAE: u64 = 1 << 5;
pub(super) const LME: u64 = 1 << 8;
pub(super) const LMA: u64 = 1 << 10;

/// Where a PC's firmware leaves the interrupts of lines 0 and 4.
pub(super) const TIMER_VECTOR: u8 = 8;
pub(super) const UART_VECTOR: u8 = 12;

/// Collects what the guest prints, as far as there is room.
pub(super) struct Printed {
    pub(super) bytes: Vec<u8>,
    pub(super) room: usize,
}

impl Default for Printed {
    fn default() -> Self {
        Self { bytes: Vec::new(), room: usize::MAX }
    }
}

impl Sink for Printed {
    fn put(&mut self, byte: u8) {
        self.bytes.push(byte);
        self.room -= 1;
    }

    fn has_room(&mut self) -> bool {
        self.room != 0
    }
}

/// A clock that the test sets.
#[derive(Clone, Default)]
pub(super) struct TestClock(Rc<Cell<u64>>);

impl TestClock {
    pub(super) fn pass(&self, nanoseconds: u64) {
        self.0.set(self.0.get() + nanoseconds);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Nanoseconds {
        Nanoseconds(self.0.get())
    }
}

pub(super) type Devices = devices::Board<Printed, TestClock>;

/// OUT of a byte, before the guest runs.
pub(super) fn out(devices: &mut Devices, port: u16, value: u8) {
    assert_eq!(devices.write(port, Size::Byte, value.into()), Effect::Continue);
}

/// Processors that have all that they can have.
const ALL_FEATURES: CpuModel = CpuModel { long_mode: true, hidden: FeatureSet::EMPTY };

/// A processor for [`Table::new`]: AMD's, 40-bit addresses, with 1 GiB pages.
pub(super) fn processor(leaf: u32, _subleaf: u32) -> Leaf {
    match leaf {
        0 => Leaf { eax: 0xd, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
        1 => Leaf { eax: 0x00a2_0f10, ebx: 0, ecx: 0x201, edx: 0x078b_fbff },
        0x8000_0000 => Leaf { eax: 0x8000_001f, ..Leaf::default() },
        0x8000_0001 => Leaf { edx: 1 << 29 | 1 << 26 | 1 << 20 | 1 << 11, ..Leaf::default() },
        0x8000_0008 => Leaf { eax: 0x3028, ..Leaf::default() },
        _ => Leaf::default(),
    }
}

/// The second exists only as its shared state, where tests see what it is sent.
const VCPUS: usize = 2;

/// What the tests handle exits with.
pub(super) struct TestTypes;

impl Types for TestTypes {
    type Vcpu = TestVcpu;
    type Memory = TestMemory;
    type Host = TestHost;
    type Sink = Printed;
    type Clock = TestClock;
}

/// A VM with one vCPU that runs.
pub(super) struct Guest {
    pub(super) vcpu: TestVcpu,
    pub(super) handler: ExitHandler<'static, TestTypes>,
    pub(super) vm: &'static Vm<Printed, TestClock>,
    pub(super) clock: TestClock,
}

/// The code segment of a mode.
const fn code_segment(default_big: bool, long: bool) -> SegmentState {
    SegmentState { selector: 0x08, base: 0, limit: u32::MAX, default_big, long }
}

impl Guest {
    /// A guest in kernel mode, about to execute `code` at [`CODE`]: 64-bit, every page its user's to write.
    pub(super) fn new(code: &[u8]) -> Self {
        Self::with_devices(code, |_| {})
    }

    /// As [`new`](Self::new), on a processor of `host`.
    pub(super) fn with_cpuid(code: &[u8], host: crate::cpuid::HostCpuid) -> Self {
        Self::build(code, host, ALL_FEATURES, |_| {})
    }

    /// As [`new`](Self::new), with processors of `model`.
    pub(super) fn of_model(code: &[u8], model: CpuModel) -> Self {
        Self::build(code, processor, model, |_| {})
    }

    /// As [`new`](Self::new), with devices that `prepare` has set up.
    pub(super) fn with_devices(code: &[u8], prepare: impl FnOnce(&mut Devices)) -> Self {
        Self::build(code, processor, ALL_FEATURES, prepare)
    }

    /// As [`new`](Self::new), of a VM that begins anew when it is reset.
    pub(super) fn with_restart(code: &[u8]) -> Self {
        Self::build_vm(code, processor, ALL_FEATURES, |_| {}, Vm::with_restart)
    }

    fn build(code: &[u8], host: crate::cpuid::HostCpuid, model: CpuModel, prepare: impl FnOnce(&mut Devices)) -> Self {
        Self::build_vm(code, host, model, prepare, |vm| vm)
    }

    fn build_vm(
        code: &[u8],
        host: crate::cpuid::HostCpuid,
        model: CpuModel,
        prepare: impl FnOnce(&mut Devices),
        change: impl FnOnce(Vm<Printed, TestClock>) -> Vm<Printed, TestClock>,
    ) -> Self {
        let memory = TestMemory::new(PAGES);
        memory.put_u64(PML4, PDPT | PRESENT | WRITABLE | USER);
        memory.put_u64(PDPT, PD | PRESENT | WRITABLE | USER);
        memory.put_u64(PD, PT | PRESENT | WRITABLE | USER);
        for page in 0..512 {
            memory.put_u64(PT + page * 8, page << 12 | PRESENT | WRITABLE | USER);
        }
        let clock = TestClock::default();
        let config = BoardConfig { ram_bytes: (PAGES << 12) as u64, cpus: 1, boot_time: 0 };
        let mut devices = devices::Board::new(config, Printed::default(), clock.clone());
        prepare(&mut devices);
        let control = ControlRegisters { cr0: PE | WP | PG, cr3: PML4, cr4: PAE, efer: LME | LMA, cpl: 0 };
        let vcpu = TestVcpu::new(control, code_segment(false, true));
        // Tests are short, and so is what they leak.
        let vm: &_ = Box::leak(Box::new(change(Vm::new(devices, clock.clone(), VCPUS))));
        let handler = ExitHandler::new(vm, Box::leak(Box::new(Context::new(0, vm, host, model))), memory);
        let mut guest = Self { vcpu, handler, vm, clock };
        guest.code_at(CODE, code);
        guest
    }

    /// The VM's second vCPU.
    pub(super) fn second(&self) -> (ExitHandler<'static, TestTypes>, TestVcpu) {
        let context = Box::leak(Box::new(Context::new(1, self.vm, processor, ALL_FEATURES)));
        (
            ExitHandler::new(self.vm, context, TestMemory::new(PAGES)),
            TestVcpu::new(self.vcpu.control, self.vcpu.segments[1]),
        )
    }

    /// Flat 32-bit protected mode without paging.
    pub(super) fn flat_32(code: &[u8]) -> Self {
        let mut guest = Self::new(code);
        guest.vcpu.control = ControlRegisters { cr0: PE, cr3: 0, cr4: 0, efer: 0, cpl: 0 };
        guest.vcpu.segments[1] = code_segment(true, false);
        guest
    }

    /// Real mode, in a segment that begins at [`CODE`].
    pub(super) fn real(code: &[u8]) -> Self {
        let mut guest = Self::flat_32(code);
        guest.vcpu.control.cr0 = 0;
        let base = CODE;
        guest.vcpu.segments[1] =
            SegmentState { selector: (base >> 4) as u16, base, limit: 0xffff, ..code_segment(false, false) };
        guest.vcpu.rip = 0;
        guest
    }

    /// The guest is about to execute `code` at `at`.
    pub(super) fn code_at(&mut self, at: u64, code: &[u8]) {
        self.memory().put(at, code);
        self.vcpu.rip = at;
    }

    pub(super) fn memory(&self) -> &TestMemory {
        self.handler.memory()
    }

    /// Maps the page of `at`, a linear address below 2 MiB, with these flags only.
    pub(super) fn protect(&self, at: u64, flags: u64) {
        self.map(at, at & !0xfff | flags);
    }

    /// Sets the page table entry of `at`, a linear address below 2 MiB.
    pub(super) fn map(&self, at: u64, entry: u64) {
        self.memory().put_u64(PT + (at >> 12) * 8, entry);
    }

    pub(super) fn set(&mut self, gpr: Gpr, value: u64) -> &mut Self {
        self.vcpu.gprs[gpr.index()] = value;
        self
    }

    pub(super) fn get(&self, gpr: Gpr) -> u64 {
        self.vcpu.gprs[gpr.index()]
    }

    /// One exit.
    pub(super) fn handle(&mut self, exit: Exit) -> Flow {
        self.vcpu.exit = exit;
        let mut host = TestHost::new(self);
        self.handle_on(exit, &mut host)
    }

    /// One exit, on a CPU of which the test wants to see more.
    pub(super) fn handle_on(&mut self, exit: Exit, host: &mut TestHost) -> Flow {
        self.vcpu.exit = exit;
        let stay = self.vcpu.stay();
        match self.handler.handle(&mut self.vcpu, exit, stay, host) {
            ControlFlow::Continue(()) => Flow::Resume,
            ControlFlow::Break(()) => self.handler.left(),
        }
    }

    /// One exit, after which the guest goes on.
    #[track_caller]
    pub(super) fn resumes(&mut self, exit: Exit) {
        assert_eq!(self.handle(exit), Flow::Resume);
    }

    /// One exit, which ends the VM because it can't be handled: the reason.
    #[track_caller]
    pub(super) fn unhandled(&mut self, exit: Exit) -> &'static str {
        match self.handle(exit) {
            Flow::Stop(Stop::Unhandled(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    /// Runs the script, waiting where the guest sleeps.
    pub(super) fn run(&mut self, host: &mut TestHost) -> Stop {
        loop {
            if let Some(stop) = crate::run(&mut self.vcpu, &mut self.handler, host) {
                assert_eq!(self.vm.stopped(), Some(stop));
                return stop;
            }
            if host.is_out_of_patience() || !host.waits() {
                return Stop::Limit;
            }
            assert_eq!(self.handler.context.activity(), Activity::Halted, "there is no other vCPU");
        }
    }

    /// What the guest has printed.
    pub(super) fn printed(&mut self) -> Vec<u8> {
        self.vm.devices().sink().bytes.clone()
    }
}

/// A host whose interrupts come at equal times.
pub(super) struct TestHost {
    clock: TestClock,
    /// Nanoseconds between them.
    tick: u64,
    /// How many the VM may take; at one more it has run for too long.
    patience: u32,
    pub(super) interrupts: u32,
    pub(super) waits: u32,
    /// When the guest wants to be left.
    pub(super) deadline: Option<Nanoseconds>,
    /// From when on an exit counts as an interrupt.
    pub(super) next_event: Instant,
    /// The vCPUs that were kicked.
    pub(super) kicks: Vec<usize>,
}

impl TestHost {
    /// One that ticks every millisecond.
    pub(super) fn new(guest: &Guest) -> Self {
        Self::with_patience(guest, 1_000)
    }

    pub(super) fn with_patience(guest: &Guest, patience: u32) -> Self {
        Self {
            clock: guest.clock.clone(),
            tick: 1_000_000,
            patience,
            interrupts: 0,
            waits: 0,
            deadline: None,
            next_event: Instant::NEVER,
            kicks: Vec::new(),
        }
    }

    fn ticks(&mut self) -> bool {
        self.clock.pass(self.tick);
        !self.is_out_of_patience()
    }

    fn is_out_of_patience(&self) -> bool {
        self.interrupts + self.waits > self.patience
    }

    /// The guest sleeps for a tick.
    fn waits(&mut self) -> bool {
        self.waits += 1;
        self.ticks()
    }
}

impl Host for TestHost {
    fn interrupted<V: Vcpu>(&mut self, vcpu: &mut V) -> Turn {
        vcpu.put();
        self.interrupts += 1;
        if self.ticks() { Turn::On } else { Turn::Over }
    }
    fn next_event(&self) -> Instant {
        self.next_event
    }
    fn wake_at(&mut self, deadline: Option<Nanoseconds>) {
        self.deadline = deadline;
    }
    fn kick(&mut self, vcpu: usize) {
        self.kicks.push(vcpu);
    }
    fn nanoseconds(&self, ticks: u64) -> u64 {
        ticks
    }
}

/// Port I/O that is not a string's.
pub(super) const fn io(port: u16, size: Size, input: bool) -> Exit {
    Exit::Io(Io::new(port, size, input, false))
}

/// INS and OUTS.
pub(super) const fn string(port: u16, size: Size, input: bool) -> Exit {
    Exit::Io(Io::new(port, size, input, true))
}
