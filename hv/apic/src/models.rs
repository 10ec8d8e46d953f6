//! Models of [`Posted`], in every interleaving and with every stale read, up to loom's preemption bound.
//!
//! Each `loom_*` model has a `twin_*`: the same model with one rule broken, which loom must catch. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p apic --release --lib`.

use crate::posted::Posted;
use crate::rules::{BROKEN, Rule, kept};
use core::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use loom::sync::atomic::{AtomicBool, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::vec::Vec;

fn explore(broken: Option<Rule>, model: fn()) {
    struct Keep;
    impl Drop for Keep {
        fn drop(&mut self) {
            BROKEN.set(None);
        }
    }
    let _keep = Keep;
    BROKEN.set(broken);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Loom ends `model` with these words if `rule` is broken.
fn must_be_caught(rule: Rule, model: fn(), words: &str) {
    let panic = catch_unwind(AssertUnwindSafe(|| explore(Some(rule), model))).expect_err("loom finds nothing wrong");
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    assert!(message.is_some_and(|message| message.contains(words)), "loom says: {message:?}");
}

macro_rules! model {
    ($(#[$doc:meta])* $name:ident = $model:path; $($twin:ident without $rule:ident: $words:expr),+) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            explore(None, $model);
        }
        $(
            #[test]
            fn $twin() {
                must_be_caught(Rule::$rule, $model, $words);
            }
        )+
    };
}

const LOST: &str = "a request is lost or comes twice";
const ASLEEP: &str = "deadlock";

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

model! {
    /// Every request is taken once.
    loom_request_vs_take = request_vs_take;
    twin_summary_first without SummaryLast: LOST,
    twin_word_read_once without ReadAgain: LOST
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

model! {
    /// What is requested is in the summary.
    loom_request_vs_reset = request_vs_reset;
    twin_summary_forgotten_last without ForgetSummaryFirst: LOST
}

/// The sender's memory, which nothing but the interrupt orders.
fn memory_before_interrupt() {
    const STALE: &str = "memory is older than the interrupt";
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

model! {
    /// Who takes an interrupt sees what its sender wrote before (as between processors: SDM section 9.2).
    loom_memory_before_interrupt = memory_before_interrupt;
    twin_relaxed_request without Publish: "memory is older than the interrupt"
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
    assert_eq!(started, Some(8), "the start is lost");
}

model! {
    /// A start-up after INIT starts the vCPU, and of two the first does.
    loom_startup_vs_take = startup_vs_take;
    twin_signals_taken_in_two_steps without TakeAtOnce: "the start is lost"
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

model! {
    /// Nobody sleeps on an interrupt, though two that come together kick once.
    loom_knocks_vs_going_away = knocks_vs_going_away;
    twin_ring_before_posting without RingLast: ASLEEP,
    twin_knock_without_fence without FenceAtKnock: ASLEEP,
    twin_entry_without_fence without FenceAtEntry: ASLEEP
}
