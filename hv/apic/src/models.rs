//! Models of [`Posted`], in every interleaving and with every stale read, up to loom's preemption bound.
//!
//! Each `loom_*` model has [mutants](model#mutants), each with one rule broken, which loom must catch. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p apic --release --lib`.

use crate::posted::Posted;
use crate::rules::Rule;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicBool, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use model::{Explorer, kept, loom_tests};
use std::vec::Vec;

const LOST: &str = "a request is lost or comes twice";
const STALE: &str = "memory is older than the interrupt";
const UNSTARTED: &str = "the start is lost";
const EXPLORER: Explorer = Explorer { preemptions: 3, signs: &[LOST, STALE, UNSTARTED] };

/// What the owner takes at one look.
fn take(posted: &Posted, taken: &mut Vec<u8>) {
    if let Some(vector) = posted.highest() {
        posted.take_vector(vector);
        taken.push(vector);
    }
}

/// The second comes while the owner takes the last of its word.
fn request_vs_take() {
    let posted = Arc::new(Posted::new(0));
    posted.post_vector(0x20);
    let sender = {
        let posted = Arc::clone(&posted);
        thread::spawn(move || posted.post_vector(0x21))
    };
    let mut taken = Vec::new();
    take(&posted, &mut taken);
    take(&posted, &mut taken);
    sender.join().unwrap();
    while posted.highest().is_some() {
        take(&posted, &mut taken);
    }
    taken.sort_unstable();
    assert_eq!(taken, [0x20, 0x21], "{LOST}");
    assert!((0..8).all(|word| posted.irr_word(word) == 0));
}

loom_tests! {
    /// Every request is taken once.
    loom_request_vs_take = request_vs_take;
    mutant_summary_first breaks [SummaryLast],
    mutant_word_read_once breaks [ReadAgain]
}

/// A request that comes after the owner's INIT is seen, one that came before is not.
fn request_vs_reset() {
    let posted = Arc::new(Posted::new(0));
    posted.post_vector(0x20);
    let sender = {
        let posted = Arc::clone(&posted);
        thread::spawn(move || posted.post_vector(0x21))
    };
    posted.clear_irr();
    sender.join().unwrap();
    let left = (posted.irr_word(1) != 0).then_some(0x21);
    assert_eq!(posted.highest(), left, "{LOST}");
}

loom_tests! {
    /// What is requested is in the summary.
    loom_request_vs_reset = request_vs_reset;
    mutant_summary_forgotten_last breaks [ForgetSummaryFirst]
}

/// The sender's memory, which nothing but the interrupt orders.
fn memory_before_interrupt() {
    let shared = Arc::new((Posted::new(0), AtomicBool::new(false)));
    let sender = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.1.store(true, Relaxed);
            shared.0.post_vector(0x30);
        })
    };
    if let Some(vector) = shared.0.highest() {
        shared.0.take_vector(vector);
        assert!(shared.1.load(Relaxed), "{STALE}");
    }
    sender.join().unwrap();
}

loom_tests! {
    /// Who takes an interrupt sees what its sender wrote before (as between processors: SDM section 9.2).
    loom_memory_before_interrupt = memory_before_interrupt;
    mutant_relaxed_request breaks [Publish]
}

/// Somebody starts a vCPU as the manuals say to, while somebody else sends it an NMI.
fn startup_vs_take() {
    let posted = Arc::new(Posted::new(0));
    let starter = {
        let posted = Arc::clone(&posted);
        thread::spawn(move || {
            posted.post_init();
            posted.post_startup(8);
            posted.post_startup(9);
        })
    };
    let (mut waits, mut started) = (false, None);
    let mut look = || {
        let signals = posted.take_signals();
        waits |= signals.init;
        if let Some(page) = signals.startup
            && waits
        {
            waits = false;
            started = Some(page);
        }
    };
    look();
    look();
    starter.join().unwrap();
    look();
    assert_eq!(started, Some(8), "{UNSTARTED}");
}

loom_tests! {
    /// A start-up after INIT starts the vCPU, and of two the first does.
    loom_startup_vs_take = startup_vs_take;
    mutant_signals_taken_in_two_steps breaks [TakeAtOnce]
}

/// A vCPU's door, as `vm` has it: a bell beside the APIC, and a kick for who is away.
struct Door {
    posted: Posted,
    bell: AtomicBool,
    away: AtomicBool,
    kicked: Mutex<bool>,
    interrupt: Condvar,
}

impl Door {
    /// Posts and rings. Only who found the bell silent looks whether the owner is away.
    fn knock(&self, vector: u8) {
        if kept(Rule::RingLast) {
            self.posted.post_vector(vector);
        }
        let silent = !self.bell.swap(true, AcqRel);
        if !kept(Rule::RingLast) {
            self.posted.post_vector(vector);
        }
        if !silent {
            return;
        }
        if kept(Rule::FenceAtKnock) {
            fence(SeqCst);
        }
        if self.away.load(Relaxed) {
            *self.kicked.lock().unwrap() = true;
            self.interrupt.notify_one();
        }
    }

    /// Guest mode, or sleep, until a kick.
    fn go_away(&self) {
        self.away.store(true, Relaxed);
        if kept(Rule::FenceAtEntry) {
            fence(SeqCst);
        }
        if !self.bell.load(Relaxed) {
            let mut kicked = self.kicked.lock().unwrap();
            while !*kicked {
                kicked = self.interrupt.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        self.away.store(false, Relaxed);
    }
}

fn knocks_vs_going_away() {
    let door = Arc::new(Door {
        posted: Posted::new(0),
        bell: AtomicBool::new(false),
        away: AtomicBool::new(false),
        kicked: Mutex::new(false),
        interrupt: Condvar::new(),
    });
    let senders = [0x20, 0x41].map(|vector| {
        let door = Arc::clone(&door);
        thread::spawn(move || door.knock(vector))
    });
    let mut taken = Vec::new();
    while taken.len() < 2 {
        door.go_away();
        door.bell.swap(false, AcqRel);
        while door.posted.highest().is_some() {
            take(&door.posted, &mut taken);
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    taken.sort_unstable();
    assert_eq!(taken, [0x20, 0x41], "{LOST}");
}

loom_tests! {
    /// Nobody sleeps on an interrupt, though two that come together kick once.
    loom_knocks_vs_going_away = knocks_vs_going_away;
    mutant_ring_before_posting sleeps_without [RingLast],
    mutant_knock_without_fence sleeps_without [FenceAtKnock],
    mutant_entry_without_fence sleeps_without [FenceAtEntry]
}
