//! Models of [`Posted`] and [`Request`], in every interleaving and with every stale read, up to loom's preemption bound.
//!
//! Each `loom_*` model has [mutants](model#mutants), each with one rule broken, which loom must catch. Run them with
//! `RUSTFLAGS="--cfg loom" cargo test -p apic --release --lib`.

use crate::ipi::{Ipi, Message, Trigger, deliver};
use crate::posted::{Mode, Posted, Signals};
use crate::request::Request;
use crate::rules::Rule;
use addr::Pfn;
use core::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic::AtomicBool;
use loom::sync::{Condvar, Mutex};
use loom::thread;
use model::{Explorer, loom_tests};
use rcu::{Cpu, CpuData, Domain, Head, Platform, Space, Tlb};
use std::sync::Arc;
use std::vec::Vec;

const LOST: &str = "a vector is lost or taken twice";
const STALE: &str = "memory is older than the interrupt";
const UNSTARTED: &str = "the start is lost";
const UNSEEN: &str = "an interrupt of the 8259s is not seen";
const EXPLORER: Explorer = Explorer { preemptions: 3, signs: &[LOST, STALE, UNSTARTED, UNSEEN] };

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
    mutant_summary_first_at_a_reset breaks [SummaryLast],
    mutant_word_read_once_at_a_reset breaks [ReadAgain]
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

/// A guest with interrupts off polls the IRR.
fn memory_before_the_irrs_bit() {
    let shared = Arc::new((Posted::new(0), AtomicBool::new(false)));
    let sender = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.1.store(true, Relaxed);
            shared.0.post_vector(0x30);
        })
    };
    if shared.0.irr_word(1) != 0 {
        assert!(shared.1.load(Relaxed), "{STALE}");
    }
    sender.join().unwrap();
}

loom_tests! {
    /// A vCPU that reads in the IRR that a vector is pending sees the memory that its sender wrote before.
    loom_memory_before_the_irrs_bit = memory_before_the_irrs_bit;
    mutant_relaxed_request_of_a_polled_vector breaks [Publish]
}

/// Memory that the sender writes before it posts a signal. An NMI is pending already: the owner may find that one, and take both.
fn memory_before_signal(post: fn(&Posted), came: fn(Signals) -> bool) {
    let shared = Arc::new((Posted::new(0), AtomicBool::new(false)));
    shared.0.post_nmi();
    let sender = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.1.store(true, Relaxed);
            post(&shared.0);
        })
    };
    if came(shared.0.take_signals()) {
        assert!(shared.1.load(Relaxed), "{STALE}");
    }
    sender.join().unwrap();
}

/// A vCPU that is started runs the code that its starter has written before.
#[test]
fn loom_memory_before_startup() {
    EXPLORER.explore(|| memory_before_signal(|posted| posted.post_startup(8), |signals| signals.startup == Some(8)));
}

#[test]
fn loom_memory_before_init() {
    EXPLORER.explore(|| memory_before_signal(Posted::post_init, |signals| signals.init));
}

#[test]
fn loom_memory_before_nmi() {
    EXPLORER.explore(|| memory_before_signal(Posted::post_nmi, |signals| signals.nmis == 2));
}

#[test]
fn loom_memory_before_ext_int() {
    EXPLORER.explore(|| memory_before_signal(Posted::post_ext_int, |signals| signals.ext_int));
}

/// A CPU shows that the 8259s have an interrupt while a vCPU begins to accept their interrupts.
fn ext_int_vs_mode() {
    let shared = Arc::new((Posted::new(0), AtomicBool::new(false)));
    let vcpu = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.0.set_mode(Mode { hardware: true, software: true, x2apic: false, accepts_ext_int: true });
            shared.1.load(Relaxed)
        })
    };
    shared.1.store(true, Relaxed);
    let is_told = shared.0.accepts_ext_int();
    let has_seen = vcpu.join().unwrap();
    assert!(is_told || has_seen, "{UNSEEN}");
}

loom_tests! {
    /// A vCPU that begins to accept interrupts of the 8259s sees that they have one, or is told.
    loom_ext_int_vs_mode = ext_int_vs_mode;
    mutant_mode_without_fence breaks [FenceAtMode],
    mutant_ext_int_without_fence breaks [FenceAtExtInt]
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

/// A vCPU that is owned by CPU 0, whose interrupts it takes, and the other CPUs' means to reach it.
struct Vcpu {
    posted: Posted,
    request: Request,
    domain: Domain<Kicks, [CpuData; 1]>,
    space: Space,
}

/// A CPU in guest mode or asleep is blocked until it is kicked.
struct Kicks {
    kicked: Mutex<bool>,
    interrupt: Condvar,
}

impl Platform for Kicks {
    fn head(&self, _: Pfn) -> &Head {
        unreachable!("nothing is freed")
    }

    fn kick(&self, _: usize) {
        *self.kicked.lock().unwrap() = true;
        self.interrupt.notify_one();
    }

    fn now(&self) -> u64 {
        0
    }
}

impl Kicks {
    fn stay(&self) {
        let mut kicked = self.kicked.lock().unwrap();
        while !*kicked {
            kicked = self.interrupt.wait(kicked).unwrap();
        }
        *kicked = false;
    }
}

impl Vcpu {
    fn new() -> Self {
        let posted = Posted::new(0);
        posted.set_mode(Mode { hardware: true, software: true, x2apic: false, accepts_ext_int: false });
        let domain = Domain::new(Kicks { kicked: Mutex::new(false), interrupt: Condvar::new() }, 1);
        let space = Space::new(&domain);
        Self { posted, request: Request::new(), domain, space }
    }

    /// Sends an IPI, as `vm` does. Only a sender that found the request clear tests whether the owner is away.
    fn send(&self, vector: u8) {
        let ipi = Ipi::from_io_apic(Message::Fixed(vector), 0, false, Trigger::Edge);
        deliver(ipi, 1, [&self.posted], |_| {
            if self.request.raise() && self.domain.is_away(0) {
                self.domain.platform().kick(0);
            }
        });
    }

    fn take_both(&self, leave: fn(&Vcpu, &mut Cpu<'_, Kicks>, &mut Tlb)) {
        let Ok(mut cpu) = self.domain.register(0) else { unreachable!("it is registered once") };
        let (mut tlb, mut taken) = (Tlb::new(), Vec::new());
        while taken.len() < 2 {
            leave(self, &mut cpu, &mut tlb);
            self.request.clear();
            while self.posted.highest().is_some() {
                take(&self.posted, &mut taken);
            }
        }
        taken.sort_unstable();
        assert_eq!(taken, [0x20, 0x41], "{LOST}");
    }

    /// What the owner does before it enters the guest or sleeps, and meanwhile.
    fn leave(&self) {
        if !self.request.is_pending() {
            self.domain.platform().stay();
        }
    }
}

/// Two vectors are sent while the owner leaves the hypervisor, by `leave`, until it has taken both.
fn requests_vs(leave: fn(&Vcpu, &mut Cpu<'_, Kicks>, &mut Tlb)) {
    let vcpu = Arc::new(Vcpu::new());
    let owner = {
        let vcpu = Arc::clone(&vcpu);
        thread::spawn(move || vcpu.take_both(leave))
    };
    let sender = {
        let vcpu = Arc::clone(&vcpu);
        thread::spawn(move || vcpu.send(0x20))
    };
    vcpu.send(0x41);
    sender.join().unwrap();
    owner.join().unwrap();
}

fn requests_vs_entry() {
    requests_vs(|vcpu, cpu, tlb| cpu.guest(&vcpu.space, tlb, |_| vcpu.leave()));
}

fn requests_vs_sleep() {
    requests_vs(|vcpu, cpu, _| cpu.idle(|| vcpu.leave()));
}

loom_tests! {
    /// The owner never stays in guest mode while a vector is pending, although two senders at once kick only once.
    loom_requests_vs_entry = requests_vs_entry;
    mutant_raise_before_posting sleeps_without [RaiseLast]
}

loom_tests! {
    /// The owner never sleeps while a vector is pending.
    loom_requests_vs_sleep = requests_vs_sleep;
    mutant_raise_before_posting_to_a_sleeper sleeps_without [RaiseLast]
}

/// The rules of `rcu` without which a request is not seen.
mod rules_of_rcu {
    use super::{requests_vs_entry, requests_vs_sleep};
    use crate::models::EXPLORER;
    use model::Ending;
    use rcu::rules::Rule;

    #[test]
    fn mutant_raise_without_fence() {
        EXPLORER.must_fail(&[Rule::FenceAtPost], requests_vs_entry, Ending::Asleep);
    }

    #[test]
    fn mutant_entry_without_fence() {
        EXPLORER.must_fail(&[Rule::FenceAtEntry], requests_vs_entry, Ending::Asleep);
    }

    #[test]
    fn mutant_sleep_without_fence() {
        EXPLORER.must_fail(&[Rule::FenceAtIdle], requests_vs_sleep, Ending::Asleep);
    }
}
