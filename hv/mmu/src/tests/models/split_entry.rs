//! Models of entries in two halves.

use super::EXPLORER;
use crate::Pte;
use crate::rules::Rule;
use crate::split_entry::{Interrupts, LocklessSync, SplitEntry};
use loom::sync::atomic::fence;
use model::loom_tests;
use model::sync::{AtomicBool, Ordering, relax};
use std::sync::Arc;

const OLD: Pte = Pte::new(0x1111_0000_0000_0001);
const NEW: Pte = Pte::new(0x2222_0000_0000_0003);
/// An entry with the same low half as `OLD`.
const SAME_LOW: Pte = Pte::new(0x2222_0000_0000_0001);

/// The reading CPU. While it has interrupts disabled, an interrupt stays pending.
struct Reader {
    off: AtomicBool,
}

impl Interrupts for Reader {
    fn off<R>(&self, read: impl FnOnce() -> R) -> R {
        self.off.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let result = read();
        self.off.store(false, Ordering::Release);
        result
    }
}

impl LocklessSync for Reader {
    fn lockless_sync(&self) {
        fence(Ordering::SeqCst);
        while self.off.load(Ordering::Acquire) {
            relax();
        }
    }
}

/// A read concurrent with `write`. A present entry that it reads must be one of the two.
fn read_during(first: Pte, second: Pte, write: impl FnOnce(&SplitEntry, &Reader)) {
    let shared = Arc::new((SplitEntry::new(first), Reader { off: AtomicBool::new(false) }));
    let other = {
        let shared = shared.clone();
        loom::thread::spawn(move || shared.0.pmdp_get_lockless(&shared.1))
    };
    write(&shared.0, &shared.1);
    let read = other.join().unwrap();
    let present = read.raw() & 1 != 0;
    assert!(!present || read == first || read == second, "{read:?} is neither");
}

loom_tests! {
    loom_split_entry_set_under_a_reader = set;
    mutant_split_entry_set_low_half_first breaks [LowLast]
}

fn set() {
    read_during(Pte::NONE, NEW, |entry, reader| entry.clear().lockless_sync(reader).set(NEW));
}

loom_tests! {
    loom_split_entry_cleared_under_a_reader = clear;
    mutant_split_entry_cleared_high_half_first breaks [LowLast],
    mutant_split_entry_low_half_read_once breaks [ReadLowAgain]
}

fn clear() {
    read_during(OLD, OLD, |entry, _| _ = entry.clear());
}

loom_tests! {
    loom_split_entry_refilled_with_the_same_low_half = aba;
    mutant_split_entry_refilled_without_sync breaks [LocklessSync]
}

fn aba() {
    read_during(OLD, SAME_LOW, |entry, reader| entry.clear().lockless_sync(reader).set(SAME_LOW));
}

loom_tests! {
    loom_split_entry_emulated_half_writes = half_writes;
    mutant_split_entry_half_writes_read_once breaks [ReadLowAgain]
}

/// The guest clears and sets the entry by writes of halves that the hypervisor emulates.
fn half_writes() {
    read_during(OLD, NEW, |entry, _| {
        entry.write_low(0);
        entry.write_high((NEW.raw() >> 32) as u32);
        entry.write_low(NEW.raw() as u32);
    });
}
