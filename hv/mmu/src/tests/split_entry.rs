use crate::split_entry::{Interrupts, LocklessSync, SplitEntry};
use crate::{Pte, Rights};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

/// One CPU: no other CPU reads.
struct Alone;

impl Interrupts for Alone {
    fn off<R>(&self, read: impl FnOnce() -> R) -> R {
        read()
    }
}

impl LocklessSync for Alone {
    fn lockless_sync(&self) {}
}

#[test]
fn halves_make_the_entry() {
    let pte = Pte::new(0x8000_0012_3456_7063);
    let mut entry = SplitEntry::new(pte);
    assert_eq!(entry.pmdp_get_lockless(&Alone), pte);
    let cleared = entry.clear();
    assert_eq!(entry.pmdp_get_lockless(&Alone), Pte::NONE);
    cleared.lockless_sync(&Alone).set(Pte::new(0x1_0000_0001));
    assert_eq!(entry.pmdp_get_lockless(&Alone).raw(), 0x1_0000_0001);
    entry.write_high(2);
    entry.write_low(3);
    assert_eq!(entry.pmdp_get_lockless(&Alone).raw(), 0x2_0000_0003);
    entry.fresh().set(pte);
    assert_eq!(entry.pmdp_get_lockless(&Alone), pte);
    assert_eq!(core::mem::size_of::<SplitEntry>(), 8);
    assert!(Rights::ALL.include(Rights::READ_ONLY) && !Rights::READ_ONLY.include(Rights::ALL));
}

/// Two CPUs. The one that reads counts its reads: the number is odd while its interrupts are disabled.
#[derive(Default)]
struct Reader(AtomicU64);

impl Interrupts for Reader {
    fn off<R>(&self, read: impl FnOnce() -> R) -> R {
        self.0.fetch_add(1, SeqCst);
        let result = read();
        self.0.fetch_add(1, SeqCst);
        result
    }
}

impl LocklessSync for Reader {
    fn lockless_sync(&self) {
        let before = self.0.load(SeqCst);
        while before % 2 == 1 && self.0.load(SeqCst) == before {
            thread::yield_now();
        }
    }
}

#[test]
fn an_entry_that_was_cleared_is_set_when_its_readers_have_ended() {
    let (entry, cpus) = (SplitEntry::new(Pte::new(0x1_0000_0001)), Reader::default());
    thread::scope(|threads| {
        cpus.off(|| {
            threads.spawn(|| entry.clear().lockless_sync(&cpus).set(Pte::new(0x2_0000_0001)));
            let read = || entry.pmdp_get_lockless(&Alone).raw();
            while read() == 0x1_0000_0001 {
                thread::yield_now();
            }
            assert!((0..100_000).all(|_| read() & 1 == 0), "it is set while a CPU reads");
        });
    });
    assert_eq!(entry.pmdp_get_lockless(&Alone).raw(), 0x2_0000_0001);
}

#[test]
fn a_reader_on_another_cpu_gets_no_halves_of_two_values() {
    // The low half is the same in all of them.
    let values = [0x1_0000_0001, 0x2_0000_0001, 0x3_0000_0001].map(Pte::new);
    let (entry, cpus, done) = (SplitEntry::new(values[0]), Reader::default(), AtomicBool::new(false));
    thread::scope(|threads| {
        threads.spawn(|| {
            for turn in 0..200_000 {
                entry.clear().lockless_sync(&cpus).set(values[turn % values.len()]);
            }
            done.store(true, SeqCst);
        });
        while !done.load(SeqCst) {
            let seen = entry.pmdp_get_lockless(&cpus);
            // A reader may see a half of an entry that is being cleared or set, which is not present then.
            assert!(seen.raw() & 1 == 0 || values.contains(&seen), "{seen:?} was never the entry");
        }
    });
}
