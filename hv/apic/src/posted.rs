//! The part of a local APIC that other vCPUs read and write.

use crate::rules::Rule;
use model::kept;
use model::sync::{AtomicU32, Ordering, fence};

/// Interrupts posted to one vCPU, as in a posted-interrupt descriptor (Intel SDM vol. 3, section 30.6), and the part of its
/// APIC's state that decides whether an interrupt is for it.
///
/// Any CPU may post a vector; only the owner takes it. The CPU that posts sets the vector's bit in the IRR first and the word's
/// bit in the summary last. The owner clears the bit in the IRR; if the word is empty then, it clears the summary's bit, reads the
/// word again, and sets the summary's bit again if another vector has come in between. So once a post has returned, its vector is
/// in the summary until it is taken. The models (`loom_*`) explore every interleaving of this.
///
/// A post releases the sender's memory with the vector's bit, and with the signal; the owner acquires it where it reads either to take
/// it. Nothing is read by what the summary says, nor by whether there are signals: an owner that misses a post which has not raised
/// the owner's [`Request`](crate::Request) yet looks again when it does. So these are read in any order. The mode and the logical
/// destination are words by themselves, too: a sender that looks a moment earlier finds the old one, as on a processor.
pub struct Posted {
    /// The interrupt request register.
    irr: [AtomicU32; 8],
    /// One bit for each word of the IRR. Clear: the word is zero, apart from vectors whose post has not returned yet.
    summary: AtomicU32,
    /// The trigger mode register: whether a vector was level-triggered when it was posted last.
    trigger_mode: [AtomicU32; 8],
    /// Pending NMIs, INIT, start-up and ExtINT: [`NMI`], [`SECOND_NMI`], [`INIT`], [`STARTUP`], [`EXT_INT`] and the start-up's page in
    /// bits 7:0.
    signals: AtomicU32,
    pub(crate) id: u32,
    /// The mode: [`HARDWARE_ENABLED`], [`SOFTWARE_ENABLED`], [`X2APIC`], [`ACCEPTS_EXT_INT`].
    state: AtomicU32,
    /// The logical destination register, as in xAPIC mode.
    logical: AtomicU32,
    /// The destination format register.
    format: AtomicU32,
}

/// Signals without a vector in the IRR that were posted since the owner last took them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// NMIs, at most two: a processor handles one, and keeps one more meanwhile (Intel SDM vol. 3, section 6.7.1).
    pub nmis: u8,
    /// INIT. It discards signals that were posted before it.
    pub init: bool,
    /// A start-up interrupt (SIPI), with the number of the page to start at. After an INIT the first one counts.
    pub startup: Option<u8>,
    /// The vCPU is to acknowledge an interrupt of the 8259s, whatever its LINT0 says.
    pub ext_int: bool,
}

const NMI: u32 = 1 << 8;
const INIT: u32 = 1 << 9;
const STARTUP: u32 = 1 << 10;
const EXT_INT: u32 = 1 << 11;
const SECOND_NMI: u32 = 1 << 12;

// Bits of `state`.
const HARDWARE_ENABLED: u32 = 1 << 0;
const SOFTWARE_ENABLED: u32 = 1 << 1;
const X2APIC: u32 = 1 << 2;
const ACCEPTS_EXT_INT: u32 = 1 << 3;

impl Posted {
    /// Nothing is posted, to the vCPU whose APIC has this ID.
    pub fn new(id: u32) -> Self {
        Self {
            irr: core::array::from_fn(|_| AtomicU32::new(0)),
            summary: AtomicU32::new(0),
            trigger_mode: core::array::from_fn(|_| AtomicU32::new(0)),
            signals: AtomicU32::new(0),
            id,
            state: AtomicU32::new(HARDWARE_ENABLED),
            logical: AtomicU32::new(0),
            format: AtomicU32::new(u32::MAX),
        }
    }

    /// Posts the edge-triggered interrupt `vector`. Posting a vector that is pending already has no effect.
    #[inline]
    pub fn post_vector(&self, vector: u8) {
        if self.is_level(vector) {
            self.trigger_mode[usize::from(vector >> 5)].fetch_and(!(1 << (vector & 31)), Ordering::Relaxed);
        }
        self.request(vector);
    }

    /// Posts the level-triggered interrupt `vector`, whose end the owner tells by
    /// [`Effect::BroadcastEoi`](crate::Effect::BroadcastEoi).
    pub fn post_level_vector(&self, vector: u8) {
        // The request publishes it.
        self.trigger_mode[usize::from(vector >> 5)].fetch_or(1 << (vector & 31), Ordering::Relaxed);
        self.request(vector);
    }

    /// Whether `vector` was level-triggered when it was posted last.
    #[inline]
    pub(crate) fn is_level(&self, vector: u8) -> bool {
        self.trigger_mode_word(vector >> 5) & 1 << (vector & 31) != 0
    }

    #[inline]
    pub(crate) fn trigger_mode_word(&self, word: u8) -> u32 {
        self.trigger_mode[usize::from(word & 7)].load(Ordering::Relaxed)
    }

    #[inline]
    fn request(&self, vector: u8) {
        let word = vector >> 5;
        let order = if kept(Rule::Publish) { Ordering::Release } else { Ordering::Relaxed };
        if !kept(Rule::SummaryLast) {
            self.summary.fetch_or(1 << word, order);
        }
        self.irr[usize::from(word)].fetch_or(1 << (vector & 31), order);
        if kept(Rule::SummaryLast) {
            self.summary.fetch_or(1 << word, order);
        }
    }

    /// Removes a vector from the IRR. For the owner alone.
    #[inline]
    pub(crate) fn take_vector(&self, vector: u8) {
        self.take(vector >> 5, 1 << (vector & 31));
    }

    /// Removes the vectors `bits` from a word of the IRR. The memory of their senders was acquired where they were found.
    #[inline]
    fn take(&self, word: u8, bits: u32) {
        let old = self.irr[usize::from(word & 7)].fetch_and(!bits, Ordering::Relaxed);
        if old & !bits == 0 {
            // A vector may have been posted since `fetch_and`. If its summary bit came before this line, it is lost here: the word
            // is read again below, for which this acquires the vector. If it comes after, the summary is right.
            self.summary.fetch_and(!(1 << word), Ordering::Acquire);
            if kept(Rule::ReadAgain) && self.irr_word(word) != 0 {
                self.summary.fetch_or(1 << word, Ordering::Relaxed);
            }
        }
    }

    #[inline]
    pub(crate) fn irr_word(&self, word: u8) -> u32 {
        self.irr[usize::from(word & 7)].load(Ordering::Acquire)
    }

    /// Whether a vector may be pending. False: none is, whose post has returned.
    #[inline]
    pub fn may_have_vectors(&self) -> bool {
        self.summary.load(Ordering::Relaxed) != 0
    }

    /// The highest pending vector.
    #[inline]
    pub(crate) fn highest(&self) -> Option<u8> {
        let summary = self.summary.load(Ordering::Relaxed);
        if summary == 0 { None } else { highest(|word| if summary & 1 << word == 0 { 0 } else { self.irr_word(word) }) }
    }

    /// Posts an NMI.
    pub fn post_nmi(&self) {
        let add = |old| Some(old | if old & NMI == 0 { NMI } else { SECOND_NMI });
        // It never fails.
        let _ = self.signals.fetch_update(Ordering::Release, Ordering::Relaxed, add);
    }

    /// Posts an ExtINT: the vCPU is to acknowledge an interrupt of the 8259s.
    pub fn post_ext_int(&self) {
        self.signals.fetch_or(EXT_INT, Ordering::Release);
    }

    /// Posts INIT, and discards signals that were posted before.
    pub fn post_init(&self) {
        // A swap rather than a store, so that memory released with an earlier signal is visible to the owner, too: an exchange
        // continues the release sequences of those before it.
        self.signals.swap(INIT, Ordering::Release);
    }

    /// Posts a start-up interrupt, unless one is pending.
    pub fn post_startup(&self, page: u8) {
        let add = |old| (old & STARTUP == 0).then_some(old | STARTUP | u32::from(page));
        // It fails only if one is pending.
        let _ = self.signals.fetch_update(Ordering::Release, Ordering::Relaxed, add);
    }

    /// Whether signals are pending.
    pub fn has_signals(&self) -> bool {
        self.signals.load(Ordering::Relaxed) != 0
    }

    /// Takes all pending signals. For the owner alone.
    pub fn take_signals(&self) -> Signals {
        if !self.has_signals() {
            return Signals::default();
        }
        let signals = if kept(Rule::TakeAtOnce) {
            self.signals.swap(0, Ordering::Acquire)
        } else {
            let signals = self.signals.load(Ordering::Relaxed);
            self.signals.store(0, Ordering::Relaxed);
            signals
        };
        Signals {
            nmis: u8::from(signals & NMI != 0) + u8::from(signals & SECOND_NMI != 0),
            init: signals & INIT != 0,
            startup: (signals & STARTUP != 0).then_some(signals as u8),
            ext_int: signals & EXT_INT != 0,
        }
    }

    /// Whether neither a signal nor a vector is pending.
    pub fn is_empty(&self) -> bool {
        !self.has_signals() && self.highest().is_none()
    }

    /// Discards what is posted. For a time in which no vCPU of the VM runs.
    pub fn discard(&self) {
        self.signals.store(0, Ordering::Relaxed);
        self.clear_irr();
    }

    /// Discards all vectors. For the owner alone: it takes them.
    pub(crate) fn clear_irr(&self) {
        for word in 0..8 {
            self.take(word, u32::MAX);
        }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        let bit = |on, bit| if on { bit } else { 0 };
        let enabled = bit(mode.hardware, HARDWARE_ENABLED) | bit(mode.software, SOFTWARE_ENABLED);
        let state = enabled | bit(mode.x2apic, X2APIC) | bit(mode.accepts_ext_int, ACCEPTS_EXT_INT);
        self.state.store(state, Ordering::Relaxed);
        if kept(Rule::FenceAtMode) {
            fence(Ordering::SeqCst);
        }
    }

    fn state(&self) -> u32 {
        self.state.load(Ordering::Relaxed)
    }

    /// Whether the vCPU accepts interrupts of the 8259s, for a CPU that has just stored, in any order, that they have one.
    ///
    /// That CPU stores this, fences and loads the vCPU's mode; a vCPU that begins to accept them stores its mode, fences, and then
    /// looks whether they have an interrupt (Dekker). At least one of the two sees the other.
    pub fn accepts_ext_int(&self) -> bool {
        if kept(Rule::FenceAtExtInt) {
            fence(Ordering::SeqCst);
        }
        self.state() & ACCEPTS_EXT_INT != 0
    }

    pub(crate) fn set_logical(&self, logical: u32, format: u32) {
        self.logical.store(logical, Ordering::Relaxed);
        self.format.store(format, Ordering::Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.state() & HARDWARE_ENABLED != 0
    }

    /// Whether the APIC accepts vectors: hardware and software have it enabled.
    pub(crate) fn accepts_vectors(&self) -> bool {
        const BOTH: u32 = HARDWARE_ENABLED | SOFTWARE_ENABLED;
        self.state() & BOTH == BOTH
    }

    /// Whether logical destination `destination` includes this APIC: in x2APIC mode by the ID (SDM section 11.12.10.2), otherwise
    /// by the logical destination register, in the flat or the cluster model (section 11.6.2.2).
    pub(crate) fn is_logical(&self, destination: u32) -> bool {
        if self.state() & X2APIC != 0 {
            return destination >> 16 == self.id >> 4 && destination & 1 << (self.id & 15) != 0;
        }
        let (own, wanted) = (self.logical.load(Ordering::Relaxed) >> 24, destination & 0xff);
        if self.format.load(Ordering::Relaxed) >> 28 == 0xf {
            own & wanted != 0
        } else {
            (own >> 4 == wanted >> 4 || wanted >> 4 == 0xf) && own & wanted & 0xf != 0
        }
    }
}

/// What an APIC's mode means to the vCPUs that send interrupts to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    /// IA32_APIC_BASE enables it.
    pub(crate) hardware: bool,
    /// The spurious-interrupt vector register enables it.
    pub(crate) software: bool,
    pub(crate) x2apic: bool,
    pub(crate) accepts_ext_int: bool,
}

/// The number of the highest bit that is set in a 256-bit register of 8 words.
#[inline]
pub(crate) fn highest(word: impl Fn(u8) -> u32) -> Option<u8> {
    (0..8u8).rev().find_map(|index| match word(index) {
        0 => None,
        bits => Some(index << 5 | (31 - bits.leading_zeros()) as u8),
    })
}
