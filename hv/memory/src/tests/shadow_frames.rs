//! Without nested paging: the guest's memory gets other frames while a vCPU's shadow tree maps the old ones.

use super::world::{LARGE, World, config};
use crate::ViewState;
use crate::account::give_back;
use crate::arena::Arena;
use abi::hypercall::TestCall;
use addr::{Gpa, Gva, PAGE_SIZE, PageSize, Pfn};
use core::num::NonZero;
use loader::{Paging, VmConfig};
use rcu::Tlb;
use shadow::{Capacity, Counter, FaultOutcome, NoMemory, Reason, Registers};
use vm::Memory;
use walk::{Access, AccessKind, Features, Privilege};

const FEATURES: Features = Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
const WRITE: Access = Access { kind: AccessKind::Write, privilege: Privilege::Supervisor { ac: false } };
const PAGE: u64 = 5 * PAGE_SIZE;

/// The guest has paging off: linear addresses are physical ones.
fn registers() -> Registers {
    Registers::new(FEATURES)
}

fn load(world: &mut World<'_>) {
    let _ = world.view().load_shadow(&registers());
}

/// The vCPU writes to [`PAGE`] until its shadow tree maps it.
fn touch(world: &mut World<'_>) {
    for _ in 0..LARGE / PAGE_SIZE {
        if world.view().shadow_fault(&registers(), Gva::new(PAGE), WRITE) == Ok(FaultOutcome::Mapped) {
            return;
        }
    }
    panic!("the page does not come");
}

fn backing(world: &World<'_>) -> Pfn {
    world.memory.tree.translate(world.cpu.read(), Gpa::new(PAGE)).unwrap().hpa.frame()
}

/// The frame that the processor reaches by its walk of the PAE tables from the vCPU's root.
fn walked(world: &World<'_>) -> Option<Pfn> {
    let mut table = world.memory.root(0).frame();
    for shift in [30, 21, 12] {
        let env = world.memory.tree.env();
        let entry =
            mmu::Env::table(env, table)?[(PAGE >> shift) as usize & 511].load(core::sync::atomic::Ordering::Relaxed);
        let frame = Pfn::new((entry & 0xff_ffff_f000) >> 12);
        match entry {
            _ if entry & 1 == 0 => return None,
            _ if shift == 21 && entry & 1 << 7 != 0 => return Some(frame.add(PAGE >> 12 & 511)),
            _ => table = frame,
        }
    }
    Some(table)
}

/// Each fault fills a part of the large page with zeroes: all of it at once would keep the CPU for as long as a slice.
#[test]
fn a_large_page_of_a_shadowed_guest_is_cleared_in_several_faults() {
    for paging in [Paging::Shadow, Paging::Vtlb] {
        let domain = Arena::domain(4096);
        let mut world = World::new(&domain, &config(2 * LARGE, paging));
        load(&mut world);
        for _ in 0..3 {
            let outcome = world.view().shadow_fault(&registers(), Gva::new(PAGE), WRITE);
            assert_eq!((outcome, world.is_mapped(PAGE)), (Ok(FaultOutcome::Retry), false), "{paging:?}");
        }
        let outcome = world.view().shadow_fault(&registers(), Gva::new(PAGE), WRITE);
        assert_eq!(outcome, Ok(FaultOutcome::Mapped), "{paging:?}");
        assert!(world.is_mapped(LARGE - 1));
        world.end();
    }
}

fn with(paging: Paging, test: fn(&mut World<'_>)) {
    let domain = Arena::domain(4096);
    let mut world = World::new(&domain, &config(2 * LARGE, paging));
    load(&mut world);
    touch(&mut world);
    assert_eq!(walked(&world), Some(backing(&world)));
    test(&mut world);
    world.end();
}

fn for_both(test: fn(&mut World<'_>)) {
    with(Paging::Vtlb, test);
    with(Paging::Shadow, test);
}

#[test]
fn a_page_that_was_replaced_is_reached_at_its_new_frame_alone() {
    for_both(|world| {
        let old = backing(world);
        assert_eq!(world.call(TestCall::Replace { at: PAGE }), Ok(0));
        assert_ne!(backing(world), old);
        assert_eq!(walked(world), None, "the old frame is in other use soon");
        touch(world);
        assert_eq!(walked(world), Some(backing(world)));
    });
}

#[test]
fn a_page_that_was_released_is_reached_no_more() {
    for_both(|world| {
        assert_eq!(world.call(TestCall::Release { start: PAGE, bytes: PAGE_SIZE }), Ok(1));
        assert_eq!(walked(world), None);
        touch(world);
        assert_eq!(world.read(PAGE), 0);
    });
}

#[test]
fn while_frames_change_no_fault_maps_any() {
    for_both(|world| {
        let during = {
            let view = world.view();
            view.change_frames(|| view.resolve(&registers(), Gva::new(PAGE), WRITE))
        };
        assert_eq!(during, Ok(FaultOutcome::Retry));
        assert_eq!(walked(world), None);
        touch(world);
        assert_eq!(walked(world), Some(backing(world)));
    });
}

#[test]
fn a_page_whose_writes_are_logged_again_is_read_only_until_one_comes() {
    for_both(|world| {
        let log = TestCall::LogDirty { start: PAGE, bytes: PAGE_SIZE, bitmap: NonZero::new(LARGE) };
        // The write that mapped it is in the log.
        assert_eq!(world.call(log), Ok(1));
        assert_eq!(walked(world), None);
        assert_eq!(world.call(log), Ok(0));
        touch(world);
        assert_eq!(world.call(log), Ok(1));
    });
}

/// A guest fills shadow tables and has them zapped, again and again, while its CPU gives nothing back by itself.
#[test]
fn tables_that_are_zapped_do_not_take_the_machines_frames() {
    const TABLES: u64 = 200;
    for paging in [Paging::Vtlb, Paging::Shadow] {
        let domain = Arena::domain(4096);
        let small = VmConfig { pages: PageSize::Size4K, ..config(TABLES * LARGE, paging) };
        let mut world = World::new(&domain, &small);
        for _ in 0..20 {
            load(&mut world);
            for table in 0..TABLES {
                let at = Gva::new(table * LARGE);
                assert_eq!(world.view().shadow_fault(&registers(), at, WRITE), Ok(FaultOutcome::Mapped));
            }
            // A shadow that is kept is zapped by what changes the guest's frames.
            world.view().change_frames(|| ());
        }
        let peak = world.memory.account().peak_backlog();
        assert!(peak <= 64 + 2 * TABLES, "{peak} pages waited at once");
        world.end();
    }
}

/// A change of frames zaps the tables of all vCPUs in one exit.
#[test]
fn the_vcpus_of_a_vm_share_a_budget_of_tables() {
    const VCPUS: usize = 24;
    let domain = Arena::domain(8192);
    let small = VmConfig { pages: PageSize::Size4K, vcpus: VCPUS, ..config(256 * LARGE, Paging::Vtlb) };
    let world = World::new(&domain, &small);
    let World { mut cpu, memory, .. } = world;
    let mut most = 0;
    for vcpu in 0..VCPUS {
        let (mut tlb, state) = (Tlb::new(), ViewState::new());
        let mut view = memory.view_of(vcpu, &mut cpu, &mut tlb, &state);
        let _ = view.load_shadow(&registers());
        for table in 0..256 {
            while view.shadow_fault(&registers(), Gva::new(table * LARGE), WRITE) != Ok(FaultOutcome::Mapped) {}
        }
        cpu.barrier(|page| _ = give_back(memory.host(), page));
        most = most.max(memory.account().pool.lock().outstanding());
    }
    // Each page of the guest's, its nested table, and what the trees have.
    let tables = Capacity::of(small.ram.bytes() / PAGE_SIZE, VCPUS).tables;
    assert!(tables < 256 * VCPUS);
    assert!(most < (2 * 256 + tables + 5 * VCPUS) as u64, "{most} frames");
    assert_eq!(memory.free(&mut cpu).accounts.left, 0);
}

/// The machine has fewer frames than the guest has pages.
fn with_few_frames(test: fn(World<'_>, Paging)) {
    for paging in [Paging::Shadow, Paging::Vtlb] {
        let domain = Arena::domain(1200);
        let mut world = World::new(&domain, &VmConfig { pages: PageSize::Size4K, ..config(4 * LARGE, paging) });
        load(&mut world);
        test(world, paging);
    }
}

/// The vCPU writes at `at`, and passes a quiescent state.
fn fault(world: &mut World<'_>, at: u64) -> Result<FaultOutcome, NoMemory> {
    let outcome = world.view().shadow_fault(&registers(), Gva::new(at), WRITE);
    world.cpu.quiescent();
    outcome
}

#[test]
fn shadow_tables_make_way_where_no_frame_is_left() {
    with_few_frames(|mut world, paging| {
        let mut written = 0;
        while let Ok(outcome) = fault(&mut world, written * PAGE_SIZE) {
            written += u64::from(outcome == FaultOutcome::Mapped);
        }
        let dropped = world.memory.shadows.counts().map(|counts| counts.get(Counter::Dropped));
        assert!(dropped > Some(0), "{paging:?}: ended after {written} pages");
        world.end();
    });
}

#[test]
fn a_page_under_an_apic_is_in_no_shadow_table() {
    for_both(|world| {
        let hide = |world: &mut World<'_>, page| world.view().hide(0, page);
        hide(world, Some(Gpa::new(PAGE).frame()));
        assert_eq!(walked(world), None);
        let outcome = world.view().shadow_fault(&registers(), Gva::new(PAGE), WRITE);
        assert_eq!(outcome, Ok(FaultOutcome::Emulate { gpa: Gpa::new(PAGE), reason: Reason::Mmio }));
        hide(world, None);
        touch(world);
        assert_eq!(walked(world), Some(backing(world)));
    });
}

/// Frames are left for two tables of the last level, and each round needs three.
#[test]
fn tables_that_make_way_for_each_other_for_ever_are_no_way_on() {
    with_few_frames(|mut world, paging| {
        let round = [0, LARGE, 2 * LARGE];
        for at in round {
            while fault(&mut world, at) != Ok(FaultOutcome::Mapped) {}
        }
        // Data takes what is left, and then one of the tables' frames.
        let mut pages = (1..4 * LARGE / PAGE_SIZE).filter(|page| !(page * PAGE_SIZE).is_multiple_of(LARGE));
        let mut fill = |world: &mut World<'_>| {
            let at = Gpa::new(pages.next().unwrap() * PAGE_SIZE);
            walk::PhysMem::write(&world.view(), at, &[1]).is_some()
        };
        while fill(&mut world) {}
        world.view().change_frames(|| ());
        world.cpu.barrier(|page| _ = give_back(world.memory.host(), page));
        assert!(fill(&mut world));
        let ended = (0..10_000).any(|n| fault(&mut world, round[n % 3]).is_err());
        assert!(ended, "{paging:?}");
        world.end();
    });
}
