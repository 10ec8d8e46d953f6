//! Walks of arbitrary tables: the fuzz target, which a property test runs too.

use crate::entry::{Caps, Pte, Rights};
use crate::env::Env;
use crate::format::{Format, FormatExt};
use crate::level::{Address, Level};
use crate::pool::{self, FIRST, Memory, NewTable, Pool};
use crate::range::Page;
use crate::tree::Tree;
use crate::{Ept, Fault, Leaf, LongMode, Npt, Pae, Toy};
use addr::{PAGE_SIZE, PageSize, Pfn};
use core::ops::Range;
use model::sync::Ordering;

/// The number of frames that entries may refer to, and of all frames in the pool. The other frames are free, and
/// entries must not refer to them, because the allocator would give out a table in use.
const FRAMES: usize = 6;
const POOL: usize = FRAMES + 4;

/// Fills the tables of a tree from `data` and runs all operations on it. They must not panic, must not hang, and must
/// access no other frames.
pub fn arbitrary_tables(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    match choice % 6 {
        0 => arbitrary::<Npt>(data),
        1 => arbitrary::<LongMode<5>>(data),
        2 => arbitrary::<Ept<4>>(data),
        3 => arbitrary::<Ept<5>>(data),
        4 => arbitrary::<Pae>(data),
        _ => arbitrary::<Toy<4>>(data),
    }
}

/// One write of an entry to a table.
struct Write {
    frame: Pfn,
    index: usize,
    pte: Pte,
}

/// The writes in `data`, of ten bytes each: frame, index, entry. The upper bits of the frame's byte select the kind of
/// entry, so that many are valid.
fn writes<F: Format>(data: &[u8]) -> impl Iterator<Item = Write> {
    data.chunks_exact(10).map(|chunk| {
        let raw = chunk[2..].iter().fold(0, |raw, &byte| raw << 8 | u64::from(byte));
        // The index after the last frame in use selects a frame outside of the pool.
        let target = match raw % (FRAMES as u64 + 1) {
            n if n == FRAMES as u64 => Pfn::new(FIRST + POOL as u64),
            n => Pfn::new(FIRST + n),
        };
        let level = Level::from_number(raw as u8 % 5);
        let pte = match chunk[0] >> 5 {
            0..=2 => F::table(target, level),
            3 => F::leaf(&Leaf::new(Pfn::new(raw >> 40 & !0x3ffff), Rights::ALL), level),
            4 => Pte::new(F::FROZEN | raw & (F::ACCESSED | F::DIRTY)),
            5 => Pte::new(F::table(target, level).raw() ^ 1 << (raw % 64)),
            _ => Pte::new(raw),
        };
        Write { frame: Pfn::new(FIRST + u64::from(chunk[0] & 31) % FRAMES as u64), index: chunk[1].into(), pte }
    })
}

fn arbitrary<F: Format<Table: NewTable>>(data: &[u8]) {
    let memory = Memory::<F>::new(POOL);
    let domain = pool::domain::<F, 1>(&memory);
    let cpu = domain.register(0).expect("it is the first");
    let caps = Caps::new(40, PageSize::Size1G, true);
    let tree = Tree::new(Pool::new(&memory, &domain), caps).expect("there are frames");
    for n in 1..FRAMES as u8 {
        let table = tree.env().alloc_table().expect("there are frames");
        tree.start_table(table, Level::from_number(n % 4), 0, |_| Pte::NONE);
    }
    let names_free = |pte: Pte| {
        let table = crate::format::table_frame(pte, caps.address_mask());
        (FIRST + FRAMES as u64..FIRST + POOL as u64).contains(&table.raw())
    };
    for Write { frame, index, pte } in writes::<F>(data).filter(|write| !names_free(write.pte)) {
        let entries = memory.table(frame).map_or(&[][..], AsRef::as_ref);
        entries[index % entries.len()].store(pte.raw(), Ordering::Relaxed);
    }
    look(&tree, &cpu, data);
    change(&tree, &cpu, data);
}

fn address<F: Format>(seed: u64) -> F::Input {
    F::Input::from_offset(seed & ((1 << F::INPUT_BITS) - 1) & !(PAGE_SIZE - 1), F::INPUT_BITS)
}

fn addresses<F: Format>(data: &[u8]) -> impl Iterator<Item = F::Input> {
    let spread = |byte: u8| u64::from(byte & 3) << 12 | u64::from(byte >> 2 & 3) << 21 | u64::from(byte >> 4) << 30;
    data.iter().take(32).map(move |&byte| address::<F>(spread(byte) | u64::from(byte) << 39 | u64::from(byte) << 13))
}

fn look<F: Format>(tree: &Tree<Pool<F>>, cpu: &rcu::Cpu<'_, pool::PoolPlatform<F>>, data: &[u8]) {
    let guard = cpu.read();
    for at in addresses::<F>(data) {
        if let Some(found) = tree.translate(guard, at) {
            assert_eq!(found.hpa.raw() >> 40, 0, "beyond the physical addresses there are");
        }
        tree.path(guard, at, |level, _, _| assert!(level <= F::TOP));
    }
    let _ = tree.report(guard);
}

fn change<F: Format>(tree: &Tree<Pool<F>>, cpu: &rcu::Cpu<'_, pool::PoolPlatform<F>>, data: &[u8]) {
    let ignore = |_: Page<F::Input>| {};
    for (n, at) in addresses::<F>(data).enumerate() {
        let guard = cpu.read();
        let range =
            Range { start: at, end: address::<F>(at.to_offset(F::INPUT_BITS).unwrap_or(0) + (0x1000 << (n % 20))) };
        match n % 16 {
            0 => _ = tree.map(guard, at, Leaf::new(Pfn::new(0x4_0000), Rights::ALL), PageSize::Size1G),
            1 => _ = tree.zap(cpu, range, ignore),
            2 => _ = tree.protect(cpu, range, Rights::READ_ONLY),
            3 => _ = tree.harvest(cpu, range, ignore),
            4 => _ = tree.dirty_log(cpu, range, ignore),
            5 => _ = tree.split(guard, at),
            6 => _ = tree.collapse(cpu, at, PageSize::Size2M),
            7 => _ = tree.unprotect(guard, at),
            8 => _ = tree.find(guard, at, Level::PMD).map(|entry| entry.pte_offset_map_lock().map(|_| ())),
            9 => _ = tree.find(guard, at, Level::PUD).map(|entry| entry.pte_offset_map().map(|_| ())),
            10 => _ = tree.fault(guard, at, PageSize::Size2M).map(|fault| matches!(fault, Fault::Room(_))),
            11 => _ = tree.write(guard, at, |_| ()),
            12 => _ = tree.replace(cpu, at, PageSize::Size4K, Pfn::new(0x4_0000), |_| ()),
            13 => _ = tree.collapse_into(cpu, at, PageSize::Size2M, Pfn::new(0x4_0000), |_, _| (), ignore),
            14 => _ = tree.age(guard, range),
            _ => _ = tree.move_table(cpu, at, address::<F>(0), Level::PMD),
        }
    }
}
