//! What other vCPUs see of a local APIC, and what they put there.

use crate::rules::{Rule, kept};
#[cfg(not(loom))]
use core::sync::atomic::{AtomicU32, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};

/// One vCPU's APIC as the others see it: where interrupts are put, and what tells whether one is meant for it.
///
/// Any number of vCPUs post; one, the owner, takes. A post is the bit, then the bit of the summary; the owner clears the bit
/// and, with a word's last, the summary's, and then reads the word again. So when the post is over, the summary tells of it.
/// The models (`loom_*`) try every interleaving of these.
pub struct Posted {
    /// The interrupt request register.
    irr: [AtomicU32; 8],
    /// Which of its words may have a bit: those whose bit here is clear have none, once who posts has come to its end.
    summary: AtomicU32,
    /// NMI, INIT, start-up.
    signals: AtomicU32,
    pub(crate) id: u32,
    state: AtomicU32,
    /// The logical destination register, as in xAPIC mode.
    logical: AtomicU32,
    /// Whether the destination format is the flat one.
    format: AtomicU32,
}

/// What is not a vector, and has come since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// An NMI.
    pub nmi: bool,
    /// INIT. What came before it does not matter any more.
    pub init: bool,
    /// A start-up interrupt, with the page to begin at. Of several after one INIT the first counts.
    pub startup: Option<u8>,
}

const NMI: u32 = 1 << 8;
const INIT: u32 = 1 << 9;
const STARTUP: u32 = 1 << 10;

/// The mode, in `state`.
const HARDWARE_ENABLED: u32 = 1 << 0;
const SOFTWARE_ENABLED: u32 = 1 << 1;
const X2APIC: u32 = 1 << 2;

impl Posted {
    /// That of the vCPU whose APIC has this ID.
    pub fn new(id: u32) -> Self {
        Self {
            irr: core::array::from_fn(|_| AtomicU32::new(0)),
            summary: AtomicU32::new(0),
            signals: AtomicU32::new(0),
            id,
            state: AtomicU32::new(HARDWARE_ENABLED),
            logical: AtomicU32::new(0),
            format: AtomicU32::new(u32::MAX),
        }
    }

    /// Requests interrupt `vector`. Requests for one that is requested already are one.
    #[inline]
    pub fn post_vector(&self, vector: u8) {
        let word = vector >> 5;
        let order = if kept(Rule::Publish) { Ordering::AcqRel } else { Ordering::Relaxed };
        if !kept(Rule::SummaryLast) {
            self.summary.fetch_or(1 << word, order);
        }
        // It acquires too: if it comes after `clear_irr`, the summary's bit must not come before.
        self.irr[usize::from(word)].fetch_or(1 << (vector & 31), order);
        if kept(Rule::SummaryLast) {
            self.summary.fetch_or(1 << word, order);
        }
    }

    #[inline]
    pub(crate) fn take_vector(&self, vector: u8) {
        let word = vector >> 5;
        let old = self.irr[usize::from(word)].fetch_and(!(1 << (vector & 31)), Ordering::AcqRel);
        if old & !(1 << (vector & 31)) == 0 {
            // Whoever posts between the two finds the summary cleared, and sets it again.
            self.summary.fetch_and(!(1 << word), Ordering::AcqRel);
            if kept(Rule::ReadAgain) && self.irr_word(word) != 0 {
                self.summary.fetch_or(1 << word, Ordering::Release);
            }
        }
    }

    #[inline]
    pub(crate) fn irr_word(&self, word: u8) -> u32 {
        self.irr[usize::from(word & 7)].load(Ordering::Acquire)
    }

    /// The highest vector that is requested.
    #[inline]
    pub(crate) fn highest(&self) -> Option<u8> {
        let summary = self.summary.load(Ordering::Acquire);
        if summary == 0 { None } else { highest(|word| if summary & 1 << word == 0 { 0 } else { self.irr_word(word) }) }
    }

    /// Posts an NMI.
    pub fn post_nmi(&self) {
        self.signals.fetch_or(NMI, Ordering::Release);
    }

    /// Posts INIT, and withdraws a start-up that came before.
    pub fn post_init(&self) {
        // A swap: what was released by an earlier signal stays so.
        self.signals.swap(INIT, Ordering::AcqRel);
    }

    /// Posts a start-up interrupt, unless there is one.
    pub fn post_startup(&self, page: u8) {
        let add = |old| (old & STARTUP == 0).then_some(old | STARTUP | u32::from(page));
        // The only refusal is that there is one.
        let _ = self.signals.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add);
    }

    /// Whether there are signals.
    pub fn has_signals(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    /// Takes the signals.
    pub fn take_signals(&self) -> Signals {
        if !self.has_signals() {
            return Signals::default();
        }
        let signals = if kept(Rule::TakeAtOnce) {
            self.signals.swap(0, Ordering::AcqRel)
        } else {
            let signals = self.signals.load(Ordering::Acquire);
            self.signals.store(0, Ordering::Release);
            signals
        };
        Signals {
            nmi: signals & NMI != 0,
            init: signals & INIT != 0,
            startup: (signals & STARTUP != 0).then_some(signals as u8),
        }
    }

    /// Whether anything waits here.
    pub fn is_empty(&self) -> bool {
        !self.has_signals() && self.highest().is_none()
    }

    pub(crate) fn clear_irr(&self) {
        let forget_summary = || self.summary.swap(0, Ordering::AcqRel);
        if kept(Rule::ForgetSummaryFirst) {
            forget_summary();
        }
        for word in &self.irr {
            word.swap(0, Ordering::AcqRel);
        }
        if !kept(Rule::ForgetSummaryFirst) {
            forget_summary();
        }
    }

    pub(crate) fn set_mode(&self, hardware: bool, software: bool, x2apic: bool) {
        let bit = |on, bit| if on { bit } else { 0 };
        let state = bit(hardware, HARDWARE_ENABLED) | bit(software, SOFTWARE_ENABLED) | bit(x2apic, X2APIC);
        self.state.store(state, Ordering::Release);
    }

    pub(crate) fn set_logical(&self, logical: u32, format: u32) {
        self.logical.store(logical, Ordering::Release);
        self.format.store(format, Ordering::Release);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.state.load(Ordering::Acquire) & HARDWARE_ENABLED != 0
    }

    /// Whether vectors are taken: not by an APIC that software has disabled.
    pub(crate) fn takes_vectors(&self) -> bool {
        const BOTH: u32 = HARDWARE_ENABLED | SOFTWARE_ENABLED;
        self.state.load(Ordering::Acquire) & BOTH == BOTH
    }

    /// Whether logical destination `destination` names this one: in x2APIC mode by the ID (SDM section 11.12.10.2), else by
    /// the logical destination register, flat or in clusters of four (section 11.6.2.2).
    pub(crate) fn is_logical(&self, destination: u32) -> bool {
        if self.state.load(Ordering::Acquire) & X2APIC != 0 {
            return destination >> 16 == self.id >> 4 && destination & 1 << (self.id & 15) != 0;
        }
        let (own, wanted) = (self.logical.load(Ordering::Acquire) >> 24, destination & 0xff);
        if self.format.load(Ordering::Acquire) >> 28 == 0xf {
            own & wanted != 0
        } else {
            (own >> 4 == wanted >> 4 || wanted >> 4 == 0xf) && own & wanted & 0xf != 0
        }
    }
}

/// The highest bit of 8 words.
#[inline]
pub(crate) fn highest(word: impl Fn(u8) -> u32) -> Option<u8> {
    (0..8u8).rev().find_map(|index| match word(index) {
        0 => None,
        bits => Some(index << 5 | (31 - bits.leading_zeros()) as u8),
    })
}
