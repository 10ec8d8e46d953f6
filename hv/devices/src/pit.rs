//! The 8254 interval timer (Intel, 8254 data sheet, 231164). Its state is computed from the time when it is accessed.
//!
//! As in KVM and QEMU, a count takes effect at the moment it is written, neither at the next clock pulse nor, in modes 2 and 3,
//! at the end of the period.

use crate::Nanoseconds;
use abi::ports::{PIT_GATE, PIT_OUTPUT, SPEAKER};
use abi::timers::PIT_HERTZ;
use core::num::NonZero;

/// Control word, bits 4 and 5: which bytes of the count are read and written. 0 is the latch command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// Control word, bits 1 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    InterruptOnTerminalCount = 0,
    OneShot = 1,
    RateGenerator = 2,
    SquareWave = 3,
    SoftwareStrobe = 4,
    HardwareStrobe = 5,
}

impl Mode {
    fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::InterruptOnTerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    /// Whether counting starts with a rising edge of the gate only.
    fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// Whether, and since when, a channel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counting {
    /// No count written since the control word, or no trigger since the count.
    Idle,
    /// Since this tick.
    Since(u64),
    /// The gate is low: so many ticks had passed.
    Paused(u64),
}

#[derive(Debug)]
struct Channel {
    access: Access,
    mode: Mode,
    bcd: bool,
    /// Up to 65536.
    count: NonZero<u32>,
    counting: Counting,
    gate: bool,
    /// The low byte of a count whose high byte is still to be written.
    written_low: Option<u8>,
    /// Whether the next read of a live count gives its high byte.
    high_is_next: bool,
    latched_count: Option<Latched>,
    latched_status: Option<u8>,
    /// No count was written since the control word ("null count").
    null_count: bool,
}

/// Bytes of a latched count still to be read.
#[derive(Clone, Copy, Debug)]
enum Latched {
    Both(u16),
    One(u8),
}

impl Channel {
    /// As a PC's firmware leaves channel 0: a square wave of the longest period.
    const fn new(gate: bool) -> Self {
        Self {
            access: Access::LowThenHigh,
            mode: Mode::SquareWave,
            bcd: false,
            count: LARGEST,
            counting: if gate { Counting::Since(0) } else { Counting::Paused(0) },
            gate,
            written_low: None,
            high_is_next: false,
            latched_count: None,
            latched_status: None,
            null_count: false,
        }
    }

    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.counting {
            Counting::Idle => None,
            Counting::Since(start) => Some(now.saturating_sub(start)),
            Counting::Paused(elapsed) => Some(elapsed),
        }
    }

    /// The level of OUT.
    fn output(&self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else { return self.mode != Mode::InterruptOnTerminalCount };
        let count = self.count();
        match self.mode {
            Mode::InterruptOnTerminalCount | Mode::OneShot => elapsed >= count,
            // "If GATE goes low during an output pulse, OUT is set high immediately."
            Mode::RateGenerator => !self.gate || elapsed % count != count - 1,
            Mode::SquareWave => !self.gate || elapsed % count < count.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != count,
        }
    }

    /// The first tick after `now` with which OUT rises, if nothing is written and the gate stays as it is.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let Counting::Since(start) = self.counting else { return None };
        let count = self.count();
        let elapsed = now.saturating_sub(start);
        let rise = match self.mode {
            Mode::InterruptOnTerminalCount | Mode::OneShot => count,
            Mode::RateGenerator | Mode::SquareWave => (elapsed / count + 1) * count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => count + 1,
        };
        (rise > elapsed).then_some(start + rise)
    }

    /// The value of the counting element, as it is read.
    #[inline]
    fn value(&self, now: u64) -> u16 {
        match self.counting {
            Counting::Since(start) if !self.bcd => self.binary(now.saturating_sub(start)) as u16,
            _ => self.rare_value(now),
        }
    }

    #[inline]
    fn binary(&self, elapsed: u64) -> u64 {
        let (count, phase) = (self.count(), |elapsed: u64| elapsed % NonZero::from(self.count));
        match self.mode {
            // Two at a time in either half.
            Mode::SquareWave if count & 1 == 0 => count - phase(2 * elapsed),
            // An odd count is one less to begin with.
            Mode::SquareWave => {
                let (high, phase) = (count.div_ceil(2), phase(elapsed));
                (count - 1) - 2 * if phase < high { phase } else { phase - high }
            }
            Mode::RateGenerator => count - phase(elapsed),
            // It goes on counting down past zero.
            _ => count.wrapping_sub(elapsed),
        }
    }

    /// The value while the gate is low, or in decimal digits.
    #[cold]
    fn rare_value(&self, now: u64) -> u16 {
        let elapsed = self.elapsed(now).unwrap_or(0);
        let value = match self.mode {
            _ if !self.bcd => return self.binary(elapsed) as u16,
            Mode::SquareWave | Mode::RateGenerator => self.binary(elapsed),
            _ => self.count() + BCD_MODULUS - elapsed % BCD_MODULUS,
        };
        to_bcd((value % BCD_MODULUS) as u16)
    }

    fn count(&self) -> u64 {
        self.count.get().into()
    }

    fn set_control(&mut self, word: u8, now: u64) {
        let access = match word >> 4 & 3 {
            0 => return self.latch_count(now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
        let (mode, bcd) = (Mode::from_bits(word >> 1), word & 1 != 0);
        *self = Self {
            access,
            mode,
            bcd,
            counting: Counting::Idle,
            null_count: true,
            count: self.count,
            ..Self::new(self.gate)
        };
    }

    /// "If a counter is latched and then, some time later, latched again before the count is read, the second counter latch
    /// command is ignored."
    fn latch_count(&mut self, now: u64) {
        let [low, high] = self.value(now).to_le_bytes();
        self.latched_count.get_or_insert(match self.access {
            Access::Low => Latched::One(low),
            Access::High => Latched::One(high),
            Access::LowThenHigh => Latched::Both(u16::from_le_bytes([low, high])),
        });
    }

    fn latch_status(&mut self, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        let status = u8::from(self.output(now)) << 7
            | u8::from(self.null_count) << 6
            | access << 4
            | (self.mode as u8) << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    #[inline]
    fn read(&mut self, now: u64) -> u8 {
        if self.latched_status.is_some() || self.latched_count.is_some() {
            return self.read_latched();
        }
        let is_high = match self.access {
            Access::LowThenHigh => {
                self.high_is_next = !self.high_is_next;
                !self.high_is_next
            }
            access => access == Access::High,
        };
        (self.value(now) >> if is_high { 8 } else { 0 }) as u8
    }

    #[cold]
    fn read_latched(&mut self) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        match self.latched_count.take() {
            Some(Latched::Both(count)) => {
                let [low, high] = count.to_le_bytes();
                self.latched_count = Some(Latched::One(high));
                low
            }
            Some(Latched::One(byte)) => byte,
            None => 0,
        }
    }

    fn write(&mut self, byte: u8, now: u64) {
        match (self.access, self.written_low.take()) {
            (Access::Low, _) => self.load(byte.into(), now),
            (Access::High, _) => self.load(u16::from(byte) << 8, now),
            (Access::LowThenHigh, Some(low)) => self.load(u16::from_le_bytes([low, byte]), now),
            (Access::LowThenHigh, None) => {
                self.written_low = Some(byte);
                // "Writing the first byte disables counting. OUT is set low immediately."
                if self.mode == Mode::InterruptOnTerminalCount {
                    self.counting = Counting::Idle;
                }
            }
        }
    }

    /// A count of 0 is the largest.
    fn load(&mut self, count: u16, now: u64) {
        self.count = if self.bcd {
            NonZero::new(from_bcd(count).into()).unwrap_or(LARGEST_DECIMAL)
        } else {
            NonZero::new(count.into()).unwrap_or(LARGEST)
        };
        self.null_count = false;
        if !self.mode.is_triggered() {
            self.counting = if self.gate { Counting::Since(now) } else { Counting::Paused(0) };
        }
    }

    /// The data sheet's table "Gate pin operations summary".
    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if self.mode.is_triggered() {
            if gate && !self.null_count {
                self.counting = Counting::Since(now);
            }
            return;
        }
        self.counting = match self.counting {
            Counting::Since(start) if !gate => Counting::Paused(now.saturating_sub(start)),
            Counting::Paused(elapsed) if gate => {
                let resumed_at = if self.mode.is_periodic() { 0 } else { elapsed };
                Counting::Since(now.saturating_sub(resumed_at))
            }
            same => same,
        };
    }
}

const LARGEST: NonZero<u32> = NonZero::new(1 << 16).unwrap();
const LARGEST_DECIMAL: NonZero<u32> = NonZero::new(10_000).unwrap();

/// How many values a counter of four decimal digits has.
const BCD_MODULUS: u64 = 10_000;

/// Encodes four decimal digits, with four bits for each.
fn to_bcd(value: u16) -> u16 {
    (value / 1000 % 10) << 12 | (value / 100 % 10) << 8 | (value / 10 % 10) << 4 | (value % 10)
}

/// Decodes four decimal digits. Digits above nine have their binary value.
fn from_bcd(value: u16) -> u16 {
    [12, 8, 4, 0].iter().fold(0, |sum, digit| sum * 10 + (value >> digit & 0xf))
}

/// The three channels: interrupt 0, memory refresh (unused today), and the speaker.
#[derive(Debug)]
pub(crate) struct Pit {
    channels: [Channel; 3],
    /// The tick at which the first channel's output rises next, as of the last look at it.
    next_rise: Option<u64>,
    /// Bit 1 of port 0x61, which connects the third channel's output to the speaker. It has no effect here.
    speaker: bool,
}

const READ_BACK: u8 = 3;
const SPEAKER_CHANNEL: usize = 2;

impl Pit {
    pub(crate) fn new() -> Self {
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        let next_rise = channels[0].next_rise(0);
        Self { channels, next_rise, speaker: false }
    }

    /// When the first channel's output rises next.
    pub(crate) fn next_deadline(&self) -> Option<Nanoseconds> {
        self.next_rise.map(|tick| Nanoseconds::from_ticks(tick, PIT_HERTZ))
    }

    /// Whether the first channel's output has risen since the last call, once or more often.
    pub(crate) fn take_rise(&mut self, now: Nanoseconds) -> bool {
        let now = now.to_ticks::<PIT_HERTZ>();
        let risen = self.next_rise.is_some_and(|tick| tick <= now);
        if risen {
            self.next_rise = self.channels[0].next_rise(now);
        }
        risen
    }

    /// Reads port 0x40 + `register`.
    pub(crate) fn read(&mut self, register: usize, now: Nanoseconds) -> u8 {
        let now = now.to_ticks::<PIT_HERTZ>();
        // The control word is write-only.
        self.channels.get_mut(register).map_or(0, |channel| channel.read(now))
    }

    /// Writes port 0x40 + `register`.
    pub(crate) fn write(&mut self, register: u16, value: u8, now: Nanoseconds) {
        let now = now.to_ticks::<PIT_HERTZ>();
        match self.channels.get_mut(usize::from(register & 3)) {
            Some(channel) => channel.write(value, now),
            None => self.write_control(value, now),
        }
        if register & 3 == 0 || register & 3 == 3 {
            self.next_rise = self.channels[0].next_rise(now);
        }
    }

    fn write_control(&mut self, word: u8, now: u64) {
        match self.channels.get_mut(usize::from(word >> 6)) {
            Some(channel) => channel.set_control(word, now),
            None => self.read_back(word, now),
        }
    }

    /// The read-back command: latches the count (bit 5 clear) and the status (bit 4 clear) of each channel whose bit is set.
    fn read_back(&mut self, word: u8, now: u64) {
        debug_assert_eq!(word >> 6, READ_BACK);
        for (n, channel) in self.channels.iter_mut().enumerate() {
            if word & 2 << n == 0 {
                continue;
            }
            if word & 1 << 5 == 0 {
                channel.latch_count(now);
            }
            if word & 1 << 4 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// Reads port 0x61: the third channel's gate and output, and the memory refresh bit, which toggles.
    pub(crate) fn read_port_61(&self, now: Nanoseconds) -> u8 {
        let ticks = now.to_ticks::<PIT_HERTZ>();
        let channel = &self.channels[SPEAKER_CHANNEL];
        // It toggles about every 15 microseconds; programs measure delays by it.
        let refresh = (now.0 / 15_000) & 1 != 0;
        const REFRESH: u8 = 1 << 4;
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        bit(channel.gate, PIT_GATE)
            | bit(self.speaker, SPEAKER)
            | bit(refresh, REFRESH)
            | bit(channel.output(ticks), PIT_OUTPUT)
    }

    /// Writes port 0x61.
    pub(crate) fn write_port_61(&mut self, value: u8, now: Nanoseconds) {
        self.speaker = value & SPEAKER != 0;
        self.channels[SPEAKER_CHANNEL].set_gate(value & PIT_GATE != 0, now.to_ticks::<PIT_HERTZ>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(tick: u64) -> Nanoseconds {
        Nanoseconds::from_ticks(tick, PIT_HERTZ)
    }

    fn program(pit: &mut Pit, channel: u16, mode: u8, count: u16, tick: u64) {
        let [low, high] = count.to_le_bytes();
        pit.write(3, (channel as u8) << 6 | 0x30 | mode << 1, at(tick));
        pit.write(channel, low, at(tick));
        pit.write(channel, high, at(tick));
    }

    fn read_word(pit: &mut Pit, channel: u16, tick: u64) -> u16 {
        u16::from_le_bytes([pit.read(channel.into(), at(tick)), pit.read(channel.into(), at(tick))])
    }

    fn output(pit: &Pit, channel: usize, tick: u64) -> bool {
        pit.channels[channel].output(tick)
    }

    fn rises(pit: &mut Pit, ticks: core::ops::Range<u64>) -> std::vec::Vec<u64> {
        ticks.filter(|&tick| pit.take_rise(at(tick))).collect()
    }

    #[test]
    fn mode_0_rises_once_at_terminal_count_and_counts_on() {
        let mut pit = Pit::new();
        pit.write(3, 0x30, at(0));
        assert!(!output(&pit, 0, 0), "low after the control word");
        assert_eq!(pit.next_deadline(), None, "nothing before the count");
        program(&mut pit, 0, 0, 100, 10);
        assert_eq!(pit.next_deadline(), Some(at(110)));
        assert_eq!(rises(&mut pit, 10..300), [110]);
        assert!(!output(&pit, 0, 109) && output(&pit, 0, 110));
        assert_eq!(read_word(&mut pit, 0, 60), 50);
        assert_eq!(read_word(&mut pit, 0, 111), 0xffff);
        pit.write(0, 5, at(400));
        assert!(!output(&pit, 0, 400), "the first byte of a new count stops it");
    }

    #[test]
    fn mode_2_is_low_for_one_tick_of_each_period() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 4, 0);
        let outputs: std::vec::Vec<_> = (0..9).map(|tick| output(&pit, 0, tick)).collect();
        assert_eq!(outputs, [true, true, true, false, true, true, true, false, true]);
        let counts: std::vec::Vec<_> = (0..5).map(|tick| read_word(&mut pit, 0, tick)).collect();
        assert_eq!(counts, [4, 3, 2, 1, 4]);
        assert_eq!(rises(&mut pit, 1..13), [4, 8, 12]);
        assert!(pit.take_rise(at(1000)), "many missed are one");
        assert_eq!(pit.next_deadline(), Some(at(1004)));
    }

    #[test]
    fn mode_3_is_high_for_the_longer_half_and_counts_by_two() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 3, 5, 0);
        let outputs: std::vec::Vec<_> = (0..6).map(|tick| output(&pit, 0, tick)).collect();
        assert_eq!(outputs, [true, true, true, false, false, true]);
        let counts: std::vec::Vec<_> = (0..6).map(|tick| read_word(&mut pit, 0, tick)).collect();
        assert_eq!(counts, [4, 2, 0, 4, 2, 4]);
        program(&mut pit, 0, 3, 6, 0);
        let counts: std::vec::Vec<_> = (0..7).map(|tick| read_word(&mut pit, 0, tick)).collect();
        assert_eq!(counts, [6, 4, 2, 6, 4, 2, 6]);
        assert_eq!(rises(&mut pit, 0..13), [6, 12]);
    }

    #[test]
    fn mode_4_strobes_low_for_one_tick() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 4, 3, 0);
        let outputs: std::vec::Vec<_> = (0..6).map(|tick| output(&pit, 0, tick)).collect();
        assert_eq!(outputs, [true, true, true, false, true, true]);
        assert_eq!(rises(&mut pit, 0..20), [4]);
    }

    #[test]
    fn modes_1_and_5_wait_for_the_gate() {
        for (mode, idle, after_trigger) in [(1, true, [false, false, true]), (5, true, [true, true, false])] {
            let mut pit = Pit::new();
            program(&mut pit, 2, mode, 2, 0);
            assert_eq!(output(&pit, 2, 50), idle);
            pit.write_port_61(1, at(100));
            let outputs: std::vec::Vec<_> = (100..103).map(|tick| output(&pit, 2, tick)).collect();
            assert_eq!(outputs, after_trigger, "mode {mode}");
        }
    }

    #[test]
    fn a_count_of_zero_is_the_largest() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 0, 0);
        assert_eq!(pit.next_deadline(), Some(at(0x1_0000)));
        assert_eq!(read_word(&mut pit, 0, 0), 0);
        assert_eq!(read_word(&mut pit, 0, 1), 0xffff);
    }

    #[test]
    fn a_latched_count_stays_until_read() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 1000, 0);
        pit.write(3, 0x00, at(10));
        pit.write(3, 0x00, at(20));
        assert_eq!(read_word(&mut pit, 0, 500), 990);
        assert_eq!(read_word(&mut pit, 0, 500), 500);
    }

    #[test]
    fn read_back_gives_status_before_count() {
        let mut pit = Pit::new();
        program(&mut pit, 0, 2, 1000, 0);
        pit.write(3, 0xc2, at(10));
        assert_eq!(pit.read(0, at(400)), 0xb4, "output high, both bytes, mode 2");
        assert_eq!(read_word(&mut pit, 0, 400), 990);
        pit.write(3, 0x34, at(500));
        pit.write(3, 0xe2, at(500));
        assert_eq!(pit.read(0, at(500)), 0xf4, "null count");
    }

    #[test]
    fn single_bytes_are_read_and_written_alone() {
        let mut pit = Pit::new();
        pit.write(3, 0x14, at(0));
        pit.write(0, 0x80, at(0));
        assert_eq!(pit.next_deadline(), Some(at(0x80)));
        assert_eq!(pit.read(0, at(1)), 0x7f);
        pit.write(3, 0x24, at(0));
        pit.write(0, 0x80, at(0));
        assert_eq!(pit.next_deadline(), Some(at(0x8000)));
        assert_eq!(pit.read(0, at(1)), 0x7f);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut pit = Pit::new();
        pit.write(3, 0x31, at(0));
        pit.write(0, 0x00, at(0));
        pit.write(0, 0x10, at(0));
        assert_eq!(read_word(&mut pit, 0, 1), 0x0999);
        assert_eq!(read_word(&mut pit, 0, 1001), 0x9999);
    }

    #[test]
    fn the_third_channel_measures_time_as_kernels_do() {
        let mut pit = Pit::new();
        assert_eq!(pit.read_port_61(at(0)) & 0x21, 0x20, "gate closed; a square wave that does not count is high");
        pit.write_port_61(0x01, at(100));
        program(&mut pit, 2, 0, 0x1000, 100);
        assert_eq!(pit.read_port_61(at(100 + 0xfff)) & 0x23, 0x01);
        assert_eq!(pit.read_port_61(at(100 + 0x1000)) & 0x23, 0x21);
    }

    #[test]
    fn a_low_gate_holds_mode_0_and_restarts_mode_2() {
        let mut pit = Pit::new();
        pit.write_port_61(1, at(0));
        program(&mut pit, 2, 0, 100, 0);
        pit.write_port_61(0, at(30));
        assert_eq!(read_word(&mut pit, 2, 80), 70);
        pit.write_port_61(1, at(80));
        assert_eq!(read_word(&mut pit, 2, 90), 60);
        program(&mut pit, 2, 2, 100, 100);
        pit.write_port_61(0, at(130));
        pit.write_port_61(1, at(150));
        assert_eq!(read_word(&mut pit, 2, 160), 90);
    }

    #[test]
    fn bcd_converts_both_ways() {
        assert!((0..10_000).all(|value| from_bcd(to_bcd(value)) == value));
    }

    proptest! {
        #[test]
        fn the_next_rise_is_where_the_output_rises(mode in 0u8..6, count in 2u16..40, start in 0u64..50, now in 0u64..120) {
            let mut pit = Pit::new();
            program(&mut pit, 0, mode, count, start);
            let now = now.max(start);
            let seen = (now + 1..now + 100).find(|&tick| output(&pit, 0, tick) && !output(&pit, 0, tick - 1));
            prop_assert_eq!(pit.channels[0].next_rise(now), seen);
        }
    }
}
