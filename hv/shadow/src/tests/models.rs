//! Two vCPUs on one shadow, in random schedules: `RUSTFLAGS="--cfg shuttle" cargo test -p shadow --release --lib`.
//!
//! Each `shuttle_*` model has [mutants](model#mutants), which must fail.

use crate::rules::Rule;
use crate::{Backing, BackingPage, Capacity, FaultOutcome, Memory, NoMemory, Reason, Registers, Shadow, View, Writer};
use addr::{Gpa, Gva, PageSize, Pfn};
use mmu::pool::{self, Pool, PoolPlatform};
use mmu::{AtomicU64, Caps, Pae};
use model::{failure, run};
use rcu::{Cpu, CpuData, Domain, Flush, Tlb};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::vec::Vec;
use walk::{Access, AccessKind, Controls, Features, PhysMem, Privilege};

pub(super) type Format = Pae<Gva>;
pub(super) type ThisCpu<'d> = Cpu<'d, PoolPlatform<Format>>;

const RUNS: usize = 400;
/// A mutant ends with the first run that fails. Schedules are random: so many rounds that one which is usually caught in a few is not
/// missed by chance.
const MUTANT_ROUNDS: usize = 100;
pub(super) const CAPS: Caps = Caps::new(40, PageSize::Size2M, true);
const CAPACITY: Capacity = Capacity { tables: 32, uses: 32, mappings: 128 };
pub(super) const FEATURES: Features =
    Features { maxphyaddr: 40, pages_1g: false, pse36: true, pml4e_bit8_reserved: false };
pub(super) const READ: Access = Access { kind: AccessKind::Read, privilege: Privilege::User };
pub(super) const WRITE: Access = Access { kind: AccessKind::Write, privilege: Privilege::User };
/// Present, writable, user, accessed and dirty.
pub(super) const PAGE: u64 = 0x67;
const HIGH: u64 = 1 << 32;

pub(super) struct GuestMemory {
    /// The words that a model uses. All others are zero and are never written.
    words: BTreeMap<u64, AtomicU64>,
    /// How often all pages got other frames.
    pub(super) moves: AtomicU64,
}

impl GuestMemory {
    pub(super) fn new(words: &[(u64, u64)]) -> Self {
        let words = words.iter().map(|&(at, word)| (at, AtomicU64::new(word))).collect();
        Self { words, moves: AtomicU64::new(0) }
    }

    /// The first frame of a page; each page has another.
    pub(super) const fn frame(gpa: u64) -> u64 {
        0x10_0000 | gpa >> 12 & 0xff | gpa >> 20 & 0x1000
    }

    /// The number of moves that a frame was chosen by, and the page's first frame.
    pub(super) const fn moved(frame: u64) -> (u64, u64) {
        (frame >> 21, frame & 0x1f_ffff)
    }

    fn exchange(&self, at: Gpa, mask: u64, old: u64, new: u64) -> Option<bool> {
        let word = self.words.get(&at.align_down(8).raw())?;
        let now = word.load(SeqCst);
        let same = now & mask == old;
        Some(same && word.compare_exchange(now, now & !mask | new, SeqCst, SeqCst).is_ok())
    }
}

impl PhysMem for GuestMemory {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        Some(self.words.get(&at.raw()).map_or(0, |word| word.load(SeqCst)))
    }
    fn read_u32(&self, at: Gpa) -> Option<u32> {
        Some((self.read_u64(at.align_down(8))? >> ((at.raw() & 4) * 8)) as u32)
    }
    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.exchange(at, u64::MAX, old, new)
    }
    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        let shift = (at.raw() & 4) * 8;
        self.exchange(at, 0xffff_ffff << shift, u64::from(old) << shift, u64::from(new) << shift)
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Option<()> {
        None
    }
    /// Only writes of four bytes are supported.
    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        let value = u32::from_le_bytes(bytes.try_into().ok()?);
        while !self.cmpxchg_u32(at, self.read_u32(at)?, value)? {}
        Some(())
    }
}

impl Memory for GuestMemory {
    fn backing(&self, at: Gpa, _: bool) -> Result<Backing, NoMemory> {
        let pfn = Pfn::new(self.moves.load(SeqCst) << 21 | Self::frame(at.raw()));
        Ok(Backing::Page(BackingPage { pfn, write: true, size: PageSize::Size4K }))
    }
}

struct World {
    memory: GuestMemory,
    tables: Arc<pool::Memory<Format>>,
    domain: Domain<PoolPlatform<Format>, [CpuData; 2]>,
    shadow: Shadow<Pool<Format>>,
    controls: Controls,
}

impl World {
    fn new(words: &[(u64, u64)], controls: Controls) -> Arc<Self> {
        let tables = pool::Memory::new(48);
        let domain = pool::domain(&tables);
        let envs: Vec<_> = (0..8).map(|_| Pool::new(&tables, &domain)).collect();
        let shadow = Shadow::new(envs, CAPS, CAPACITY, 1).expect("there are frames");
        Arc::new(Self { memory: GuestMemory::new(words), tables, domain, shadow, controls })
    }

    /// Runs `work` on vCPU `n`, in a thread.
    fn spawn(
        self: &Arc<Self>,
        n: usize,
        cr3: u64,
        work: impl FnOnce(&mut Vcpu<'_>) + Send + 'static,
    ) -> shuttle::thread::JoinHandle<()> {
        let world = self.clone();
        shuttle::thread::spawn(move || world.on(n, cr3, work))
    }

    fn on(&self, n: usize, cr3: u64, work: impl FnOnce(&mut Vcpu<'_>)) {
        let cpu = self.domain.register(n).expect("no other uses it");
        let view = self.shadow.view(&cpu).expect("there are as many trees");
        let mut registers = Registers::new(FEATURES);
        let _ = registers.write(&self.memory, Controls { cr3, ..self.controls }).expect("its PDPTEs are valid");
        self.shadow.load(&cpu, &view, &registers);
        work(&mut Vcpu { world: self, cpu, view, registers, tlb: Tlb::new(), translations: BTreeMap::new() });
    }
}

struct Vcpu<'w> {
    world: &'w World,
    cpu: ThisCpu<'w>,
    view: View,
    registers: Registers,
    tlb: Tlb,
    /// The processor's TLB: the frame of each page, and whether it is writable.
    translations: BTreeMap<u64, (u64, bool)>,
}

impl Vcpu<'_> {
    /// The guest reads at `gva`. Returns the frame that it reaches; None for a page fault of its own.
    fn read(&mut self, gva: u64) -> Option<u64> {
        self.access(gva, READ, |_| {})
    }

    /// The guest writes four bytes at `gva`, which must be mapped to `gpa`.
    fn write(&mut self, gva: u64, gpa: u64, value: u32) {
        let reached = self.access(gva, WRITE, |memory| memory.write(Gpa::new(gpa), &value.to_le_bytes()).unwrap());
        assert_eq!(reached, Some(GuestMemory::frame(gpa)));
    }

    /// Calls `act` as the processor's access with its translation, or as the hypervisor's if the access is emulated.
    fn access(&mut self, gva: u64, access: Access, act: impl Fn(&GuestMemory)) -> Option<u64> {
        let World { memory, shadow, tables, .. } = self.world;
        let (page, write) = (gva >> 12, access.kind == AccessKind::Write);
        loop {
            let root = shadow.root(&self.view);
            let translations = &mut self.translations;
            let reached = self.cpu.guest(shadow.space(&self.view), &mut self.tlb, |flush| {
                if flush == Flush::Needed {
                    translations.clear();
                }
                let known = translations.get(&page).copied().filter(|found| found.1 || !write);
                let (frame, writable) = known.or_else(|| walk(tables, root, gva))?;
                translations.insert(page, (frame, writable));
                (writable || !write).then(|| {
                    act(memory);
                    frame
                })
            });
            self.rest();
            if reached.is_some() {
                return reached;
            }
            let outcome = shadow.fault(&self.cpu, &self.view, memory, &self.registers, Gva::new(gva), access);
            match outcome.expect("there are frames") {
                FaultOutcome::Mapped | FaultOutcome::Retry => {}
                FaultOutcome::Emulate { gpa, reason: Reason::Table } => {
                    shadow.write(&self.cpu, gpa.align_down(4), 4, Writer::Software, || act(memory));
                    return Some(GuestMemory::frame(gpa.raw()));
                }
                FaultOutcome::Inject { .. } => return None,
                other => panic!("{other:?}"),
            }
        }
    }

    fn invlpg(&mut self, gva: u64) {
        self.translations.remove(&(gva >> 12));
        self.world.shadow.invlpg(&self.cpu, &self.view, Gva::new(gva));
    }

    fn load(&mut self, cr3: u64) {
        let _ = self.registers.write_cr3(&self.world.memory, cr3).expect("its PDPTEs are valid");
        self.translations.clear();
        self.world.shadow.load(&self.cpu, &self.view, &self.registers);
    }

    fn rest(&mut self) {
        self.cpu.quiescent();
        self.cpu.poll(usize::MAX, |table| self.world.tables.free(table));
    }
}

/// A processor's walk: the frame, and whether it is writable.
pub(super) fn walk(tables: &pool::Memory<Format>, root: Pfn, gva: u64) -> Option<(u64, bool)> {
    let mut table = root;
    let mut writable = true;
    for (shift, top) in [(30, true), (21, false), (12, false)] {
        let entry = tables.table(table).expect("it is a table")[(gva >> shift & 511) as usize].load(SeqCst);
        assert_ne!(entry, pool::POISON, "a freed table is walked");
        if entry & 1 == 0 {
            return None;
        }
        writable &= top || entry & 2 != 0;
        table = Pfn::new((entry & 0xff_ffff_f000) >> 12);
    }
    Some((table.raw(), writable))
}

/// In each round a vCPU changes its entry twice.
pub(super) const ROUNDS: u64 = 3;
/// Each vCPU has two directories.
const DIRECTORIES: [[u64; 2]; 2] = [[0x1000, 0x6000], [0x8000, 0x9000]];

/// The linear address of the table in page 2.
pub(super) const TABLE: u64 = 0x40_0000;

/// Two levels: all directories have the tables in pages 2 and 10 in common. The first maps linear 0 and 0x1000, to pages that
/// the vCPUs change; the second maps the first at [`TABLE`].
fn common_table() -> Arc<World> {
    let mut words = Vec::from([(0x2000, page(0, 0) | page(1, 0) << 32), (0xa000, 0x2000 | PAGE)]);
    words.extend(DIRECTORIES.as_flattened().iter().map(|&at| (at, 0x2000 | PAGE | (0xa000 | PAGE) << 32)));
    World::new(&words, Controls { cr0: 0x8001_0001, cr3: 0, cr4: 1 << 4, efer: 0 })
}

/// The entry of vCPU `n` after `changes` changes.
pub(super) const fn page(n: u64, changes: u64) -> u64 {
    (0x20 + n * 0x10 + changes) << 12 | PAGE
}

/// How often vCPU `n` had changed its entry, as told by the frame that the entry maps.
pub(super) fn changes(n: u64, frame: Option<u64>) -> u64 {
    frame.and_then(|frame| frame.checked_sub(GuestMemory::frame(page(n, 0)))).expect("it is one of that vCPU's")
}

/// Each vCPU changes its entry of the common table, and sees the change after INVLPG. After a load of CR3 it sees all changes that
/// the other vCPU had made before.
fn entries_of_a_common_table() {
    let world = common_table();
    let changed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let threads = [0, 1].map(|n| {
        let changed = changed.clone();
        world.spawn(n, DIRECTORIES[n][0], move |vcpu| {
            let (mine, other) = (n as u64, 1 - n as u64);
            let gva = mine * 0x1000;
            for round in 1..=ROUNDS {
                vcpu.read(gva);
                for change in [2 * round - 1, 2 * round] {
                    vcpu.write(TABLE + 4 * mine, 0x2000 + 4 * mine, page(mine, change) as u32);
                    changed[n].store(change, SeqCst);
                }
                if round % 2 == 0 {
                    vcpu.invlpg(gva);
                    assert_eq!(changes(mine, vcpu.read(gva)), 2 * round, "after INVLPG");
                }
                let reported = changed[1 - n].load(SeqCst);
                vcpu.load(DIRECTORIES[n][round as usize % 2]);
                assert_eq!(changes(mine, vcpu.read(gva)), 2 * round, "after a load of CR3");
                assert!(changes(other, vcpu.read(other * 0x1000)) >= reported, "the other's after a load of CR3");
            }
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for cr3 in DIRECTORIES.into_iter().flatten() {
        world.on(0, cr3, |vcpu| {
            let seen = [0, 1].map(|n| changes(n, vcpu.read(n * 0x1000)));
            assert_eq!(seen, [2 * ROUNDS; 2], "after all");
        });
    }
}

/// A page that both vCPUs have mapped by a common table becomes the directory of vCPU 0. Its first entry refers to the table in page 4,
/// until vCPU 1 lets it refer to that in page 5. A load of CR3 behind that finds the new entry.
fn page_that_becomes_a_directory() {
    const PAGE_3: u64 = 0x3000;
    let mut words =
        Vec::from([(0x2000, PAGE_3 | PAGE), (PAGE_3, 0x4000 | PAGE), (0x4000, 0x6000 | PAGE), (0x5000, 0x7000 | PAGE)]);
    words.extend([0, 1].map(|n| (DIRECTORIES[n][0], 0x2000 | PAGE)));
    let world = World::new(&words, Controls { cr0: 0x8001_0001, cr3: 0, cr4: 1 << 4, efer: 0 });
    let has_changed = Arc::new(AtomicU64::new(0));
    let changes = {
        let has_changed = has_changed.clone();
        world.spawn(1, DIRECTORIES[1][0], move |vcpu| {
            vcpu.write(0, PAGE_3, 0x4000 | PAGE as u32);
            vcpu.write(0, PAGE_3, 0x5000 | PAGE as u32);
            has_changed.store(1, SeqCst);
        })
    };
    let uses = world.spawn(0, DIRECTORIES[0][0], move |vcpu| {
        vcpu.read(0);
        vcpu.load(PAGE_3);
        vcpu.read(0);
        let has_changed = has_changed.load(SeqCst) == 1;
        vcpu.load(PAGE_3);
        let reached = vcpu.read(0);
        assert!(!has_changed || reached == Some(GuestMemory::frame(0x7000)), "{reached:x?} by the old entry");
    });
    [changes, uses].into_iter().for_each(|thread| thread.join().unwrap());
    world.on(0, PAGE_3, |vcpu| assert_eq!(vcpu.read(0), Some(GuestMemory::frame(0x7000)), "after all"));
}

/// PAE, with PDPTEs in page 9 and a directory in page 1. vCPU 0 changes the directory's first entry, between tables whose
/// addresses differ in both halves, in the order that the manual demands.
fn halves_of_an_entry() {
    let [one, other] = [0x2000 | PAGE, HIGH | 0x7000 | PAGE];
    let pages = [(0x2000, 0x3000), (HIGH | 0x7000, 0x4000), (0x7000, 0x5000), (HIGH | 0x2000, 0x6000)];
    let mut words = Vec::from([(0x9000, 0x1001), (0x1000, one)]);
    words.extend(pages.map(|(table, page)| (table, page | PAGE)));
    let world = World::new(&words, Controls { cr0: 0x8001_0001, cr3: 0, cr4: 1 << 5, efer: 0 });
    let [first, second] = [0x3000, 0x4000].map(|page| Some(GuestMemory::frame(page)));
    let flips = world.spawn(0, 0x9000, move |vcpu| {
        for (entry, page) in [(other, second), (one, first)] {
            for (at, half) in [(0x1000, 0), (0x1004, entry >> 32), (0x1000, entry)] {
                let World { memory, shadow, .. } = vcpu.world;
                let store = || memory.write(Gpa::new(at), &(half as u32).to_le_bytes()).unwrap();
                shadow.write(&vcpu.cpu, Gpa::new(at), 4, Writer::Software, store);
            }
            assert_eq!(vcpu.read(0), page);
        }
    });
    let reads = world.spawn(1, 0x9000, move |vcpu| {
        for _ in 0..6 {
            let seen = vcpu.read(0);
            assert!([None, first, second].contains(&seen), "{seen:x?} is neither page");
        }
    });
    [flips, reads].into_iter().for_each(|thread| thread.join().unwrap());
    world.on(0, 0x9000, |vcpu| assert_eq!(vcpu.read(0), first, "after all"));
}

/// One vCPU writes a directory's entry. The other reads it, and executes INVLPG or loads CR3: if it has read the new entry, it must
/// use the new entry then.
fn entry_seen_early(forget: fn(&mut Vcpu<'_>)) {
    let words = [(0x9000, 0x1001), (0x1000, 0x2000 | PAGE), (0x2000, 0x3000 | PAGE), (0x7000, 0x4000 | PAGE)];
    let world = World::new(&words, Controls { cr0: 0x8001_0001, cr3: 0, cr4: 1 << 5, efer: 0 });
    let new: u64 = 0x7000 | PAGE;
    let writes = world.spawn(0, 0x9000, move |vcpu| {
        let World { memory, shadow, .. } = vcpu.world;
        let store = || memory.write(Gpa::new(0x1000), &(new as u32).to_le_bytes()).unwrap();
        shadow.write(&vcpu.cpu, Gpa::new(0x1000), 4, Writer::Software, store);
    });
    let sees = world.spawn(1, 0x9000, move |vcpu| {
        vcpu.read(0);
        let seen = vcpu.world.memory.read_u64(Gpa::new(0x1000)).unwrap();
        forget(vcpu);
        let reached = vcpu.read(0);
        assert!(seen != new || reached == Some(GuestMemory::frame(0x4000)), "{reached:x?} by the old entry");
    });
    [writes, sees].into_iter().for_each(|thread| thread.join().unwrap());
}

fn entry_seen_before_invlpg() {
    entry_seen_early(|vcpu| vcpu.invlpg(0));
}

fn entry_seen_before_load() {
    entry_seen_early(|vcpu| vcpu.load(0x9000));
}

pub(super) fn must_fail(rules: &'static [Rule], model: fn()) {
    let by_few_switches = || failure(rules, || run(PctScheduler::new(5, RUNS), model)).is_some();
    let by_many = || failure(rules, || run(RandomScheduler::new(RUNS), model)).is_some();
    let caught = (0..MUTANT_ROUNDS).any(|_| by_few_switches() || by_many());
    assert!(caught, "without {rules:?} it holds as well");
}

#[test]
fn shuttle_entries_of_a_common_table() {
    run(RandomScheduler::new(RUNS), entries_of_a_common_table);
    run(PctScheduler::new(5, RUNS), entries_of_a_common_table);
}

#[test]
fn shuttle_page_that_becomes_a_directory() {
    run(RandomScheduler::new(RUNS), page_that_becomes_a_directory);
    run(PctScheduler::new(5, RUNS), page_that_becomes_a_directory);
}

#[test]
fn shuttle_halves_of_an_entry() {
    run(RandomScheduler::new(RUNS), halves_of_an_entry);
    run(PctScheduler::new(5, RUNS), halves_of_an_entry);
}

#[test]
fn shuttle_entry_seen_before_invlpg() {
    run(RandomScheduler::new(RUNS), entry_seen_before_invlpg);
}

#[test]
fn shuttle_entry_seen_before_load() {
    run(RandomScheduler::new(RUNS), entry_seen_before_load);
}

#[test]
fn mutant_shuttle_stored_before_the_lock() {
    must_fail(&[Rule::StoreLocked], entry_seen_before_invlpg);
    must_fail(&[Rule::StoreLocked], entry_seen_before_load);
}

#[test]
fn mutant_shuttle_halves_without_reading_again() {
    must_fail(&[Rule::ReadAgain], halves_of_an_entry);
}

#[test]
fn mutant_shuttle_without_write_protection() {
    must_fail(&[Rule::WriteProtect], entries_of_a_common_table);
}

#[test]
fn mutant_shuttle_without_reading_again() {
    must_fail(&[Rule::ReadAgain], entries_of_a_common_table);
}

#[test]
fn mutant_shuttle_without_flush_of_the_others() {
    must_fail(&[Rule::FlushSharers], page_that_becomes_a_directory);
}

#[test]
fn mutant_shuttle_shared_while_out_of_sync() {
    must_fail(&[Rule::SyncFirst], entries_of_a_common_table);
}
