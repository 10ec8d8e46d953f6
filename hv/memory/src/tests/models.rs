//! Two vCPUs on one VM's memory, in random schedules: `RUSTFLAGS="--cfg shuttle" cargo test -p memory --release --lib`.
//!
//! Each `shuttle_*` model has [mutants](model#mutants), which must fail.

use crate::arena::{Arena, CPUS};
use crate::rules::Rule;
use crate::{HostMemory, View, ViewState, VmMemory, poll_idle};
use abi::hypercall::TestCall;
use addr::{Gpa, PAGE_SIZE, PageSize};
use loader::{GuestRam, VmConfig};
use mmu::{Caps, Npt, Rights};
use model::{failure, run};
use rcu::{Cpu, CpuData, Domain, Tlb};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use std::boxed::Box;
use std::sync::Arc;
use vm::{Memory, NestedFault, Resolved};
use walk::PhysMem;

const RUNS: usize = 300;
/// A mutant ends with the first run that fails.
const MUTANT_RUNS: usize = 20 * RUNS;
const FRAMES: usize = 32;
const PAGE: Gpa = Gpa::new(3 * PAGE_SIZE);
const VALUE: u64 = 0x1234_5678_9abc_def0;

/// One VM on a machine of its own, which are never dropped: a vCPU's thread borrows them for ever.
struct World {
    domain: &'static Domain<Arena, [CpuData; CPUS]>,
    memory: VmMemory<'static, Npt, Arena>,
    free: usize,
}

type ThisCpu = Cpu<'static, Arena>;
type ThisView<'v> = View<'v, 'static, Npt, Arena>;

/// A vCPU and its CPU.
struct Vcpu<'w> {
    world: &'w World,
    cpu: ThisCpu,
    tlb: Tlb,
    state: ViewState,
}

impl Vcpu<'_> {
    fn view(&mut self) -> ThisView<'_> {
        self.world.memory.view_of(0, &mut self.cpu, &mut self.tlb, &self.state)
    }

    /// The guest touches the page.
    fn fault(&mut self) {
        let resolved = self.view().fault(NestedFault::new(PAGE, false, false, false));
        assert_eq!(resolved, Resolved::Retry);
    }

    fn read(&mut self) -> u64 {
        self.view().read_u64(PAGE).expect("there are frames")
    }

    fn write(&mut self, value: u64) {
        self.view().write(PAGE, &value.to_le_bytes()).expect("there are frames");
    }

    /// The page gets another frame. It may be changed by another vCPU's call or fault first.
    fn replace(&mut self) {
        let _ = self.view().test_call(TestCall::Replace { at: PAGE.raw() });
    }

    /// Between two exits.
    fn rest(&mut self) {
        let view = self.view();
        view.poll();
        drop(view);
        self.cpu.quiescent();
    }
}

impl World {
    fn new() -> Arc<Self> {
        let domain: &'static Domain<_, _> = Box::leak(Box::new(Arena::domain(FRAMES)));
        let free = domain.platform().frames().available();
        let ram = GuestRam::new(GuestRam::MIN_BYTES).expect("it is a guest's RAM");
        let config = VmConfig { ram, pages: PageSize::Size4K, ..VmConfig::nth(0) };
        let caps = Caps::new(40, PageSize::Size4K, true);
        let mut cpu = domain.register(0).expect("no other uses it");
        let memory = VmMemory::new(&mut cpu, &config, (caps, caps), None).expect("there are frames");
        Arc::new(Self { domain, memory, free })
    }

    fn on(&self, cpu: usize, work: impl FnOnce(&mut Vcpu<'_>)) {
        let cpu = self.domain.register(cpu).expect("no other uses it");
        let mut vcpu = Vcpu { world: self, cpu, tlb: Tlb::new(), state: ViewState::new() };
        work(&mut vcpu);
        poll_idle(&vcpu.cpu);
    }

    fn spawn(
        self: &Arc<Self>,
        cpu: usize,
        work: impl FnOnce(&mut Vcpu<'_>) + Send + 'static,
    ) -> shuttle::thread::JoinHandle<()> {
        let world = self.clone();
        shuttle::thread::spawn(move || world.on(cpu, work))
    }

    /// The VM ends. The page has these rights, if it is mapped.
    fn end_with(self: Arc<Self>, rights: Rights) {
        self.on(0, |vcpu| {
            let view = vcpu.view();
            let found = view.vm.tree.translate(view.cpu.read(), PAGE);
            assert!(found.is_none_or(|found| found.leaf.rights == rights), "{found:?}");
        });
        self.end();
    }

    /// The VM ends: all frames are free again.
    fn end(self: Arc<Self>) {
        let Self { domain, memory, free } = Arc::into_inner(self).expect("the vCPUs have ended");
        let mut cpu = domain.register(0).expect("the vCPUs have ended");
        assert_eq!(memory.free(&mut cpu).accounts.left, 0);
        assert_eq!(domain.platform().frames().available(), free, "the frames that are free");
    }
}

/// A vCPU touches a page for the first time and reads it, while another one writes it and has its frame replaced.
fn fault_meets_replacement() {
    let world = World::new();
    let reads = world.spawn(0, |vcpu| {
        vcpu.fault();
        for _ in 0..2 {
            let seen = vcpu.read();
            assert!([0, VALUE].contains(&seen), "{seen:#x} was never written to the page");
            vcpu.rest();
        }
    });
    let replaces = world.spawn(1, |vcpu| {
        vcpu.write(VALUE);
        vcpu.replace();
        assert_eq!(vcpu.read(), VALUE);
    });
    [reads, replaces].into_iter().for_each(|thread| thread.join().expect("it has ended"));
    world.on(0, |vcpu| assert_eq!(vcpu.read(), VALUE, "after all"));
    world.end();
}

/// A vCPU reads a page again and again, by the place that it keeps, while another one has its frame replaced and the old one given
/// back.
fn reader_meets_replacement() {
    let world = World::new();
    world.on(0, |vcpu| vcpu.write(VALUE));
    let reads = world.spawn(0, |vcpu| {
        for _ in 0..4 {
            assert_eq!(vcpu.read(), VALUE);
            vcpu.rest();
        }
    });
    let replaces = world.spawn(1, |vcpu| {
        vcpu.replace();
        (0..4).for_each(|_| vcpu.rest());
    });
    [reads, replaces].into_iter().for_each(|thread| thread.join().expect("it has ended"));
    world.end();
}

/// Two vCPUs touch the same page for the first time.
fn two_faults_meet() {
    let world = World::new();
    let threads = [0, 1].map(|cpu| world.spawn(cpu, |vcpu| vcpu.fault()));
    threads.into_iter().for_each(|thread| thread.join().expect("it has ended"));
    world.on(0, |vcpu| assert_eq!(vcpu.read(), 0));
    world.end();
}

/// A vCPU's APIC comes to lie over a page, while another vCPU touches it for the first time.
fn hiding_meets_faults() {
    let world = World::new();
    let hides = world.spawn(0, |vcpu| vcpu.view().hide(0, Some(PAGE.frame())));
    let touches = world.spawn(1, |vcpu| _ = vcpu.view().fault(NestedFault::new(PAGE, false, false, false)));
    [hides, touches].into_iter().for_each(|thread| thread.join().expect("it has ended"));
    world.end_with(Rights::HIDDEN);
}

/// It goes away again, while another vCPU touches the page for the first time.
fn showing_meets_faults() {
    let world = World::new();
    world.on(0, |vcpu| vcpu.view().hide(0, Some(PAGE.frame())));
    let shows = world.spawn(0, |vcpu| vcpu.view().hide(0, None));
    let touches = world.spawn(1, |vcpu| _ = vcpu.view().fault(NestedFault::new(PAGE, false, false, false)));
    [shows, touches].into_iter().for_each(|thread| thread.join().expect("it has ended"));
    world.end_with(Rights::ALL);
}

fn explore(runs: usize, model: fn()) {
    run(RandomScheduler::new(runs), model);
    run(PctScheduler::new(3, runs), model);
}

fn must_fail(rules: &'static [Rule], model: fn()) {
    assert!(failure(rules, || explore(MUTANT_RUNS, model)).is_some(), "without {rules:?} the model holds as well");
}

#[test]
fn shuttle_fault_meets_replacement() {
    explore(RUNS, fault_meets_replacement);
}

#[test]
fn mutant_fault_without_zeroes_first() {
    must_fail(&[Rule::ZeroFirst], fault_meets_replacement);
}

#[test]
fn shuttle_reader_meets_replacement() {
    explore(RUNS, reader_meets_replacement);
}

#[test]
fn mutant_reader_with_the_generation_read_last() {
    must_fail(&[Rule::GenerationFirst], reader_meets_replacement);
}

#[test]
fn mutant_replacement_that_gives_back_at_once() {
    must_fail(&[Rule::RetireLate], reader_meets_replacement);
}

#[test]
fn shuttle_two_faults_meet() {
    explore(RUNS, two_faults_meet);
}

#[test]
fn mutant_fault_that_keeps_its_page() {
    must_fail(&[Rule::GiveBackLoser], two_faults_meet);
}

#[test]
fn shuttle_hiding_meets_faults() {
    explore(RUNS, hiding_meets_faults);
}

#[test]
fn mutant_fault_that_does_not_look_for_hidden_pages_again() {
    must_fail(&[Rule::LookAgain], hiding_meets_faults);
}

#[test]
fn shuttle_showing_meets_faults() {
    explore(RUNS, showing_meets_faults);
}

#[test]
fn mutant_page_that_is_mapped_while_hidden_ones_change() {
    must_fail(&[Rule::InstallLocked], showing_meets_faults);
}
