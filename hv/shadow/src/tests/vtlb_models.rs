//! Two vCPUs, each on its virtual TLB, and the host, which takes their tables and their frames, in random schedules.

use super::models::{
    CAPS, FEATURES, Format, GuestMemory, PAGE, READ, ROUNDS, TABLE, ThisCpu, WRITE, changes, must_fail, page, walk,
};
use crate::rules::Rule;
use crate::{FaultOutcome, Registers, Vtlb};
use addr::{Gpa, Gva};
use mmu::AtomicU64;
use mmu::pool::{self, Pool, PoolPlatform};
use model::run;
use model::sync::relax;
use rcu::{CpuData, Domain, Flush, Tlb};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::JoinHandle;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, PhysMem};

/// The CPU of the host's thread.
const HOST: usize = 2;
/// A load zaps the whole tree, and each of its entries is a step: fewer runs than of the other models.
const RUNS: usize = 100;
const DIRECTORY: u64 = 0x1000;
/// Linear addresses of the same table, in parts of the address space that make way one by one.
const PARTS: [u64; 3] = [0, 0x400_0000, 0x800_0000];

struct World {
    memory: GuestMemory,
    /// Frames that were chosen by fewer moves than these are not the guest's any more.
    lost: AtomicU64,
    tables: Arc<pool::Memory<Format>>,
    domain: Domain<PoolPlatform<Format>, [CpuData; 3]>,
    vtlbs: [Vtlb<Pool<Format>>; 2],
}

impl World {
    /// Two levels: the table in page 2 maps linear 0 and 0x1000, to pages that the vCPUs change. The table in page 10 maps the
    /// first one at [`TABLE`].
    fn new() -> Arc<Self> {
        let (table, maps_it) = (0x2000 | PAGE, 0xa000 | PAGE);
        let mut words = Vec::from([(0x2000, page(0, 0) | page(1, 0) << 32), (0xa000, table)]);
        words.extend(PARTS.map(|gva| (DIRECTORY + (gva >> 22) * 4, table | if gva == 0 { maps_it << 32 } else { 0 })));
        let tables = pool::Memory::new(48);
        let domain = pool::domain(&tables);
        let vtlbs = [(); 2].map(|()| Vtlb::new(Pool::new(&tables, &domain), CAPS, 8).expect("there are frames"));
        Arc::new(Self { memory: GuestMemory::new(&words), lost: AtomicU64::new(0), tables, domain, vtlbs })
    }

    /// Runs `work` on vCPU `n`, in a thread.
    fn spawn(self: &Arc<Self>, n: usize, work: impl FnOnce(&mut Vcpu<'_>) + Send + 'static) -> JoinHandle<()> {
        let world = self.clone();
        shuttle::thread::spawn(move || {
            let cpu = world.domain.register(n).expect("no other uses it");
            let mut registers = Registers::new(FEATURES);
            let controls = Controls { cr0: 0x8001_0001, cr3: DIRECTORY, cr4: 1 << 4, efer: 0 };
            _ = registers.write(&world.memory, controls).expect("there are no PDPTEs");
            let vtlb = &world.vtlbs[n];
            work(&mut Vcpu { world: &world, vtlb, cpu, registers, tlb: Tlb::new(), translations: BTreeMap::new() });
        })
    }

    /// Runs `work` on the host's CPU, in a thread.
    fn host(self: &Arc<Self>, work: impl FnOnce(&Self, &mut ThisCpu<'_>) + Send + 'static) -> JoinHandle<()> {
        let world = self.clone();
        shuttle::thread::spawn(move || work(&world, &mut world.domain.register(HOST).expect("no other uses it")))
    }

    /// Gives all pages other frames.
    fn move_pages(&self, cpu: &ThisCpu<'_>) {
        self.vtlbs.iter().for_each(|vtlb| vtlb.suspend(cpu));
        let moves = self.lost.fetch_add(1, SeqCst) + 1;
        self.memory.moves.store(moves, SeqCst);
        self.vtlbs.iter().for_each(Vtlb::resume);
    }
}

struct Vcpu<'w> {
    world: &'w World,
    vtlb: &'w Vtlb<Pool<Format>>,
    cpu: ThisCpu<'w>,
    registers: Registers,
    tlb: Tlb,
    /// The processor's TLB: the frame of each page, and whether it is writable.
    translations: BTreeMap<u64, (u64, bool)>,
}

impl Vcpu<'_> {
    /// The guest reads at `gva`. Returns the first frame of the page that it reaches.
    fn read(&mut self, gva: u64) -> u64 {
        self.access(gva, READ, |_| {})
    }

    /// The guest writes four bytes at `gva`, which must be mapped to `gpa`.
    fn write(&mut self, gva: u64, gpa: u64, value: u32) {
        let reached = self.access(gva, WRITE, |memory| memory.write(Gpa::new(gpa), &value.to_le_bytes()).unwrap());
        assert_eq!(reached, GuestMemory::frame(gpa));
    }

    /// Calls `act` as the processor's access.
    fn access(&mut self, gva: u64, access: Access, act: impl Fn(&GuestMemory)) -> u64 {
        let World { memory, lost, tables, .. } = self.world;
        let (linear, write) = (gva >> 12, access.kind == AccessKind::Write);
        loop {
            let (root, translations) = (self.vtlb.root(), &mut self.translations);
            let reached = self.cpu.guest(self.vtlb.space(), &mut self.tlb, |flush| {
                if flush == Flush::Needed {
                    translations.clear();
                }
                let known = translations.get(&linear).copied().filter(|found| found.1 || !write);
                let (frame, writable) = known.or_else(|| walk(tables, root, gva))?;
                translations.insert(linear, (frame, writable));
                (writable || !write).then(|| {
                    let (moves, first) = GuestMemory::moved(frame);
                    assert!(moves >= lost.load(SeqCst), "a guest uses a frame that it has lost");
                    act(memory);
                    first
                })
            });
            self.cpu.quiescent();
            self.cpu.poll(usize::MAX, |table| tables.free(table));
            if let Some(first) = reached {
                return first;
            }
            let outcome = self.vtlb.fault(&self.cpu, memory, &self.registers, Gva::new(gva), access);
            match outcome.expect("there are frames") {
                FaultOutcome::Mapped => {}
                FaultOutcome::Retry => relax(),
                other => panic!("{other:?}"),
            }
        }
    }

    fn invlpg(&mut self, gva: u64) {
        self.translations.remove(&(gva >> 12));
        self.vtlb.invlpg(&self.cpu, Gva::new(gva));
    }

    fn load(&mut self) {
        self.translations.clear();
        self.vtlb.load(&self.cpu);
    }
}

/// The host moves the guest's pages. No vCPU uses a frame that the guest has lost.
fn frames_change() {
    let world = World::new();
    let vcpus = [0, 1].map(|n| {
        world.spawn(n, move |vcpu| {
            for round in 0..4 {
                vcpu.read(PARTS[round % 2]);
            }
        })
    });
    let host = world.host(|world, cpu| (0..2).for_each(|_| world.move_pages(cpu)));
    vcpus.into_iter().chain([host]).for_each(|thread| thread.join().unwrap());
    world.spawn(0, |vcpu| assert_eq!(vcpu.read(0), GuestMemory::frame(page(0, 0)), "after all")).join().unwrap();
}

/// Each vCPU changes its entry of the common table, and sees the change after INVLPG or a load of CR3. After a load it sees all
/// changes that the other vCPU had made before.
fn entries_change() {
    let world = World::new();
    let changed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let vcpus = [0, 1].map(|n| {
        let changed = changed.clone();
        world.spawn(n, move |vcpu| {
            let (mine, other) = (n as u64, 1 - n as u64);
            for change in 1..=ROUNDS {
                vcpu.read(mine << 12);
                vcpu.write(TABLE + 4 * mine, 0x2000 + 4 * mine, page(mine, change) as u32);
                changed[n].store(change, SeqCst);
                vcpu.invlpg(mine << 12);
                assert_eq!(changes(mine, Some(vcpu.read(mine << 12))), change, "after INVLPG");
                let reported = changed[1 - n].load(SeqCst);
                vcpu.load();
                assert!(changes(other, Some(vcpu.read(other << 12))) >= reported, "the other's after a load of CR3");
            }
        })
    });
    let host = world.host(|world, cpu| world.move_pages(cpu));
    vcpus.into_iter().chain([host]).for_each(|thread| thread.join().unwrap());
}

/// The host takes tables while vCPUs use them. Their number is right when all have ended: none is left, and as many were counted.
fn tables_make_way() {
    let world = World::new();
    let vcpus = [0, 1].map(|n| world.spawn(n, |vcpu| PARTS.iter().cycle().take(6).for_each(|&gva| _ = vcpu.read(gva))));
    let host = world.host(|world, cpu| {
        for vtlb in &world.vtlbs {
            vtlb.make_way(cpu);
            vtlb.suspend(cpu);
            vtlb.resume();
        }
    });
    vcpus.into_iter().chain([host]).for_each(|thread| thread.join().unwrap());
    let rest = world.host(|world, cpu| {
        for vtlb in &world.vtlbs {
            let parts = (0..).take_while(|_| vtlb.make_way(cpu)).take(PARTS.len() + 1).count();
            assert!(parts <= PARTS.len(), "more tables are counted than there are");
            assert!(vtlb.tree().report(cpu.read()).tables <= 2, "a table is left that is not counted");
        }
    });
    rest.join().unwrap();
}

#[test]
fn shuttle_frames_change_under_a_vtlb() {
    run(RandomScheduler::new(RUNS), frames_change);
    run(PctScheduler::new(5, RUNS), frames_change);
}

#[test]
fn mutant_shuttle_frames_change_under_a_fault_that_looks_once() {
    must_fail(&[Rule::LookAgain], frames_change);
}

#[test]
fn shuttle_entries_change_under_a_vtlb() {
    run(RandomScheduler::new(RUNS), entries_change);
    run(PctScheduler::new(5, RUNS), entries_change);
}

#[test]
fn shuttle_tables_make_way_under_a_vtlb() {
    run(RandomScheduler::new(RUNS), tables_make_way);
    run(PctScheduler::new(5, RUNS), tables_make_way);
}
