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

const LOST: &str = "a vector is lost or taken twice";
const STALE: &str = "memory is older than the interrupt";
const UNSTARTED: &str = "the start is lost";
const EXPLORER: Explorer = Explorer { preemptions: 3, signs: &[LOST, STALE, UNSTARTED] };

/// The owner takes the highest vector, if there is one.
fn take(posted: &Posted, taken: &mut Vec<u8>) {
    if let Some(vector) = posted.highest() {
        posted.take_vector(vector);
        taken.push(vector);
    }
}

/// A second vector is posted while the owner takes the only other vector of that word.
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
    /// Every vector that is posted is taken once.
    loom_request_vs_take = request_vs_take;
    mutant_summary_first breaks [SummaryLast],
    mutant_word_read_once breaks [ReadAgain]
}

/// A vector that is posted after the owner's INIT is seen, a vector posted before is not.
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
    /// Every vector in the IRR is in the summary.
    loom_request_vs_reset = request_vs_reset;
    mutant_summary_cleared_last breaks [ClearSummaryFirst]
}

/// Memory that the sender writes before it posts. Nothing else orders it.
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
    /// A vCPU that takes an interrupt sees the memory that its sender wrote before (as between processors: SDM section 9.2).
    loom_memory_before_interrupt = memory_before_interrupt;
    mutant_relaxed_request breaks [Publish]
}

/// Another vCPU starts this vCPU by INIT, SIPI, SIPI, as the manuals demand, while this one takes its signals.
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
    /// A SIPI after INIT starts the vCPU, and of two the first one counts.
    loom_startup_vs_take = startup_vs_take;
    mutant_signals_taken_in_two_steps breaks [TakeAtOnce]
}

/// A vCPU with a request beside its APIC, as in `vm`. An owner that is away (in guest mode or asleep) is kicked.
struct Vcpu {
    posted: Posted,
    request: AtomicBool,
    away: AtomicBool,
    kicked: Mutex<bool>,
    interrupt: Condvar,
}

impl Vcpu {
    /// Posts a vector and raises the request. Only a sender that found the request clear tests whether the owner is away.
    fn send(&self, vector: u8) {
        if kept(Rule::RaiseLast) {
            self.posted.post_vector(vector);
        }
        let was_clear = !self.request.swap(true, AcqRel);
        if !kept(Rule::RaiseLast) {
            self.posted.post_vector(vector);
        }
        if !was_clear {
            return;
        }
        if kept(Rule::FenceAtRaise) {
            fence(SeqCst);
        }
        if self.away.load(Relaxed) {
            *self.kicked.lock().unwrap() = true;
            self.interrupt.notify_one();
        }
    }

    /// The owner is in guest mode or asleep until it is kicked, unless a request is pending.
    fn leave(&self) {
        self.away.store(true, Relaxed);
        if kept(Rule::FenceAtEntry) {
            fence(SeqCst);
        }
        if !self.request.load(Relaxed) {
            let mut kicked = self.kicked.lock().unwrap();
            while !*kicked {
                kicked = self.interrupt.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        self.away.store(false, Relaxed);
    }
}

fn requests_vs_leaving() {
    let vcpu = Arc::new(Vcpu {
        posted: Posted::new(0),
        request: AtomicBool::new(false),
        away: AtomicBool::new(false),
        kicked: Mutex::new(false),
        interrupt: Condvar::new(),
    });
    let senders = [0x20, 0x41].map(|vector| {
        let vcpu = Arc::clone(&vcpu);
        thread::spawn(move || vcpu.send(vector))
    });
    let mut taken = Vec::new();
    while taken.len() < 2 {
        vcpu.leave();
        vcpu.request.swap(false, AcqRel);
        while vcpu.posted.highest().is_some() {
            take(&vcpu.posted, &mut taken);
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    taken.sort_unstable();
    assert_eq!(taken, [0x20, 0x41], "{LOST}");
}

loom_tests! {
    /// The owner never sleeps while a vector is pending, although two senders at once kick only once.
    loom_requests_vs_leaving = requests_vs_leaving;
    mutant_raise_before_posting sleeps_without [RaiseLast],
    mutant_raise_without_fence sleeps_without [FenceAtRaise],
    mutant_entry_without_fence sleeps_without [FenceAtEntry]
}
