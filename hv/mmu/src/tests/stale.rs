//! A simulated processor that keeps its translations until it flushes, with a guest that checks the contents of its
//! pages. The flush of each operation is left out in turn, and the guest has to detect that.

use super::page;
use crate::fault_injection::After;
use crate::format::{Format, FormatExt, table_frame};
use crate::pool::{self, Memory, Pool, PoolPlatform};
use crate::{Entry, Fault, Leaf, Level, Npt, Page, Pte, Tree};
use addr::{Gpa, PageSize, Pfn};
use rcu::{Cpu, CpuData, Domain, Flush, Tlb};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec::Vec;

/// The number of the guest's pages: those of one table. The guest uses the first few.
const PAGES: u64 = 512;
const USED: u64 = 4;
/// The first of their frames, aligned to a large page. Only one word of each frame is used.
const BASE: u64 = 0x4_0000;
const FRAMES: u64 = 4 * PAGES;
const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;
/// The initial content of the guest's pages, which differs from that of a page of zeros.
const PATTERN: u64 = 1 << 32;
const ROUNDS: u32 = 100;

struct World {
    memory: std::sync::Arc<Memory<Npt>>,
    domain: Domain<PoolPlatform<Npt>, [CpuData; 2]>,
    tree: Tree<Pool<Npt>>,
    words: Vec<AtomicU64>,
    /// Unused frames.
    free: Mutex<Vec<Pfn>>,
    /// The number of steps that the guest has done.
    steps: AtomicU64,
    over: AtomicBool,
    /// The guest has read a wrong value.
    stale: AtomicBool,
}

fn at(gfn: u64) -> Gpa {
    Gpa::new(gfn << 12)
}

const WHOLE: core::ops::Range<Gpa> = Gpa::new(0)..Gpa::new(PAGES << 12);

impl World {
    /// A world with all pages mapped as small pages.
    fn new() -> Self {
        let memory = Memory::new(16);
        let domain = pool::domain(&memory);
        let tree = Pool::new(&memory, &domain).tree().expect("there are frames");
        let world = Self {
            memory,
            domain,
            tree,
            words: (0..FRAMES).map(|_| AtomicU64::new(PATTERN)).collect(),
            free: Mutex::new((BASE + PAGES..BASE + FRAMES).map(Pfn::new).collect()),
            steps: AtomicU64::new(0),
            over: AtomicBool::new(false),
            stale: AtomicBool::new(false),
        };
        let cpu = world.domain.register(0).expect("it is the first");
        for gfn in 0..PAGES {
            world.tree.map(cpu.read(), at(gfn), page(BASE + gfn), PageSize::Size4K).expect("there is room");
        }
        drop(cpu);
        world
    }

    fn word(&self, pfn: Pfn) -> &AtomicU64 {
        &self.words[(pfn.raw() - BASE) as usize]
    }

    fn copy(&self, from: Pfn, to: Pfn) {
        self.word(to).store(self.word(from).load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Takes `frames` contiguous frames, aligned to their number.
    fn take(&self, frames: u64) -> Pfn {
        let mut free = self.free.lock().expect("no thread panics with the lock");
        free.sort_unstable();
        let in_row =
            |run: &&[Pfn]| run[0].raw().is_multiple_of(frames) && run[run.len() - 1].raw() - run[0].raw() == frames - 1;
        let first = free.windows(frames as usize).find(in_row).expect("there are frames")[0];
        free.retain(|pfn| !(first.raw()..first.raw() + frames).contains(&pfn.raw()));
        first
    }

    /// Frees frames after a grace period and poisons them: by the rules, no CPU can access them any more.
    fn give_back(&self, cpu: &mut Cpu<'_, PoolPlatform<Npt>>, frames: Vec<Pfn>) {
        cpu.synchronize_expedited();
        frames.iter().for_each(|&frame| self.word(frame).store(POISON, Ordering::SeqCst));
        self.free.lock().expect("no thread panics with the lock").extend(frames);
    }

    /// Waits until the guest has done some more steps, so that it has translations of all pages that it uses.
    fn let_it_run(&self) {
        let goal = self.steps.load(Ordering::SeqCst) + 4 * USED;
        while self.steps.load(Ordering::SeqCst) < goal && !self.stale.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    /// Waits until the guest has done a few steps or has left guest mode: after a flush it may wait for the CPU that
    /// copies.
    fn let_it_run_if_it_does(&self) {
        let goal = self.steps.load(Ordering::SeqCst) + 4 * USED;
        while self.steps.load(Ordering::SeqCst) < goal && self.domain.is_away(1) {
            std::thread::yield_now();
        }
    }
}

/// A simulated processor with cached translations.
struct Processor<'w> {
    world: &'w World,
    cached: BTreeMap<u64, Leaf>,
}

impl Processor<'_> {
    /// The page's frame, by a cached translation or by a walk. None is a fault.
    fn translate(&mut self, gfn: u64, write: bool) -> Option<Pfn> {
        let allows = |leaf: &&Leaf| !write || leaf.rights.write && leaf.dirty;
        if let Some(leaf) = self.cached.get(&gfn).filter(allows) {
            return Some(leaf.pfn);
        }
        let leaf = self.walk(gfn, write)?;
        self.cached.insert(gfn, leaf);
        Some(leaf.pfn)
    }

    /// Walks the tables and sets the accessed and dirty bits.
    fn walk(&self, gfn: u64, write: bool) -> Option<Leaf> {
        let (tree, memory) = (&self.world.tree, &self.world.memory);
        let (mut table, mut level) = (tree.root(), Npt::TOP);
        loop {
            let entry = &memory.table(table).expect("it is a table")[Npt::index(gfn << 12, level)];
            let pte = Pte::new(entry.load(model::sync::Ordering::Acquire));
            match Npt::decode(pte, level, tree.caps()) {
                Entry::Table(_) => {
                    table = table_frame(pte, tree.caps().address_mask());
                    level = level.below().expect("a pte is no table");
                }
                Entry::Leaf(leaf) if leaf.rights.write || !write => {
                    let bits = if write { Npt::AD } else { Npt::ACCESSED };
                    let marked = pte.raw() | bits;
                    let order = model::sync::Ordering::AcqRel;
                    if entry.compare_exchange(pte.raw(), marked, order, model::sync::Ordering::Relaxed).is_ok() {
                        let part = if level == Level::PTE { 0 } else { gfn % PAGES };
                        return Some(Leaf { pfn: leaf.pfn.add(part), dirty: leaf.dirty || write, ..leaf });
                    }
                    (table, level) = (tree.root(), Npt::TOP);
                }
                _ => return None,
            }
        }
    }
}

/// One step of the guest on one of its pages. False if it read a wrong value.
type Program = fn(&mut BTreeMap<u64, u64>, &AtomicU64, u64) -> bool;

/// Increments the page's word and compares it with the guest's own count.
fn counts(own: &mut BTreeMap<u64, u64>, word: &AtomicU64, gfn: u64) -> bool {
    let count = own.entry(gfn).or_insert(PATTERN);
    let found = word.load(Ordering::SeqCst);
    let right = found == *count;
    *count += 1;
    word.store(*count, Ordering::SeqCst);
    right
}

/// Only reads: the word must be its initial value, or zero if the page was unmapped and mapped again.
fn reads(_: &mut BTreeMap<u64, u64>, word: &AtomicU64, _: u64) -> bool {
    [0, PATTERN].contains(&word.load(Ordering::SeqCst))
}

/// CPU 1: the guest, and the hypervisor's faults.
fn vcpu(world: &World, program: Program, write: bool) {
    let mut cpu = world.domain.register(1).expect("no other uses it");
    let mut processor = Processor { world, cached: BTreeMap::new() };
    let (mut tlb, mut own) = (Tlb::new(), BTreeMap::new());
    let mut gfn = 0;
    while !world.over.load(Ordering::SeqCst) {
        let fault = cpu.guest(world.tree.space(), &mut tlb, |flush| {
            if flush == Flush::Needed {
                processor.cached.clear();
            }
            while !world.memory.take_kick(1) && !world.over.load(Ordering::SeqCst) {
                let Some(pfn) = processor.translate(gfn, write) else { return true };
                if !program(&mut own, world.word(pfn), gfn) {
                    world.stale.store(true, Ordering::SeqCst);
                }
                world.steps.fetch_add(1, Ordering::SeqCst);
                gfn = (gfn + 1) % USED;
            }
            false
        });
        if fault {
            handle(world, &cpu, gfn);
        }
        cpu.poll(16, |table| world.memory.free(table));
    }
}

fn handle(world: &World, cpu: &Cpu<'_, PoolPlatform<Npt>>, gfn: u64) {
    match world.tree.fault(cpu.read(), at(gfn), PageSize::Size4K).expect("it is in range") {
        Fault::Present(found) if found.leaf.logged => _ = world.tree.unprotect(cpu.read(), at(gfn)),
        Fault::Present(_) => {}
        Fault::Room(room) => {
            let frame = world.take(1);
            world.word(frame).store(0, Ordering::SeqCst);
            room.install(page(frame.raw())).expect("no other CPU maps");
        }
    }
}

/// An operation that the hypervisor repeats on CPU 0.
trait Operation: Default {
    const AFTER: After;
    const PROGRAM: Program;
    const WRITES: bool;
    fn operate(&mut self, world: &World, cpu: &mut Cpu<'_, PoolPlatform<Npt>>, round: u64);
    /// Checks the result after the guest has stopped.
    fn check(&mut self, _world: &World, _cpu: &mut Cpu<'_, PoolPlatform<Npt>>) -> bool {
        true
    }
}

/// Whether the guest reads no wrong value.
fn holds<O: Operation>(skip: Option<After>) -> bool {
    let world = World::new();
    world.tree.skip_flush(skip);
    let mut operation = O::default();
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| vcpu(&world, O::PROGRAM, O::WRITES));
        let mut cpu = world.domain.register(0).expect("no other uses it");
        for round in 0..ROUNDS {
            cpu.quiescent();
            world.let_it_run();
            operation.operate(&world, &mut cpu, round.into());
            cpu.poll(16, |table| world.memory.free(table));
        }
        // In an extended quiescent state, because the guest's CPU may wait for this CPU.
        cpu.idle(|| {
            world.let_it_run();
            world.over.store(true, Ordering::SeqCst);
            vcpu.join().expect("it does not panic");
        });
    });
    let mut cpu = world.domain.register(0).expect("the other has gone");
    let right = operation.check(&world, &mut cpu) && !world.stale.load(Ordering::SeqCst);
    cpu.barrier(|table| world.memory.free(table));
    right
}

#[derive(Default)]
struct Release;

impl Operation for Release {
    const AFTER: After = After::Zap;
    const PROGRAM: Program = reads;
    const WRITES: bool = false;

    fn operate(&mut self, world: &World, cpu: &mut Cpu<'_, PoolPlatform<Npt>>, round: u64) {
        let mut frames = Vec::new();
        let gfn = round % USED;
        world.tree.zap(cpu, at(gfn)..at(gfn + 1), |page: Page<Gpa>| frames.push(page.leaf.pfn)).expect("it is a range");
        world.give_back(cpu, frames);
    }
}

#[derive(Default)]
struct Replace;

impl Operation for Replace {
    const AFTER: After = After::Replace;
    const PROGRAM: Program = counts;
    const WRITES: bool = true;

    fn operate(&mut self, world: &World, cpu: &mut Cpu<'_, PoolPlatform<Npt>>, round: u64) {
        let new = world.take(1);
        let copy = |old: Leaf| {
            world.copy(old.pfn, new);
            world.let_it_run_if_it_does();
        };
        let old = world.tree.replace(cpu, at(round % USED), PageSize::Size4K, new, copy).expect("it is mapped");
        world.give_back(cpu, [old.pfn].into());
    }
}

#[derive(Default)]
struct Collapse;

impl Operation for Collapse {
    const AFTER: After = After::Collapse;
    const PROGRAM: Program = counts;
    const WRITES: bool = true;

    fn operate(&mut self, world: &World, cpu: &mut Cpu<'_, PoolPlatform<Npt>>, _: u64) {
        let (new, mut old) = (world.take(PAGES), Vec::new());
        let copy = |index: usize, leaf: Leaf| {
            world.copy(leaf.pfn, new.add(index as u64));
            if index as u64 == PAGES - 1 {
                world.let_it_run_if_it_does();
            }
        };
        world
            .tree
            .collapse_into(cpu, at(0), PageSize::Size2M, new, copy, |page| old.push(page.leaf.pfn))
            .expect("no other CPU changes the table");
        world.give_back(cpu, old);
        world.tree.split(cpu.read(), at(0)).expect("it is a large page");
    }
}

/// The copies of a simulated migration, by page.
#[derive(Default)]
struct Log(BTreeMap<u64, u64>);

impl Operation for Log {
    const AFTER: After = After::DirtyLog;
    const PROGRAM: Program = counts;
    const WRITES: bool = true;

    fn operate(&mut self, world: &World, cpu: &mut Cpu<'_, PoolPlatform<Npt>>, _: u64) {
        let mut copy = |page: Page<Gpa>| {
            self.0.insert(page.at.raw() >> 12, world.word(page.leaf.pfn).load(Ordering::SeqCst));
        };
        world.tree.dirty_log(cpu, WHOLE, &mut copy).expect("it is a range");
    }

    fn check(&mut self, world: &World, cpu: &mut Cpu<'_, PoolPlatform<Npt>>) -> bool {
        self.operate(world, cpu, 0);
        (0..USED).all(|gfn| {
            let found = world.tree.translate(cpu.read(), at(gfn)).expect("it is mapped");
            self.0.get(&gfn) == Some(&world.word(found.leaf.pfn).load(Ordering::SeqCst))
        })
    }
}

fn the_flush_is_needed<O: Operation>() {
    assert!(holds::<O>(None), "a rule is broken");
    assert!(!holds::<O>(Some(O::AFTER)), "the guest did not detect that the flush is left out");
}

#[test]
fn a_skipped_flush_of_a_release_is_detected() {
    the_flush_is_needed::<Release>();
}

#[test]
fn a_skipped_flush_of_a_replacement_is_detected() {
    the_flush_is_needed::<Replace>();
}

#[test]
fn a_skipped_flush_of_a_collapse_is_detected() {
    the_flush_is_needed::<Collapse>();
}

#[test]
fn a_skipped_flush_of_the_dirty_log_is_detected() {
    the_flush_is_needed::<Log>();
}
