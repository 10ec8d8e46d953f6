//! A guest's RAM: where it is, and how the loader writes it.

use crate::ranges::span;
use addr::{Gpa, PAGE_SIZE};
use core::{fmt, ops::Range};

/// Start of the hole that a PC keeps for video memory and ROMs.
const HOLE_START: u64 = 0xa_0000;
/// Where a PC keeps its extended BIOS data area: RAM, but never offered to an operating system.
const LOW_OFFERED_END: u64 = 0x9_fc00;
/// Start of the RAM above the hole.
const HIGH_START: u64 = 0x10_0000;

/// How much RAM a guest has. It may use what a PC's operating system may use: up to 639 KiB, and from 1 MiB on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRam {
    bytes: u64,
}

impl GuestRam {
    /// The least that can be asked for.
    pub const MIN_BYTES: u64 = 2 << 20;
    /// The most: what lies above is for the devices that a PC has below 4 GiB.
    pub const MAX_BYTES: u64 = 3 << 30;

    /// RAM up to `bytes`: whole 4 KiB pages, from [`Self::MIN_BYTES`] to [`Self::MAX_BYTES`], else None.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes < Self::MIN_BYTES || bytes > Self::MAX_BYTES || !bytes.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        Some(Self { bytes })
    }

    /// The address above the last byte. The hole is counted in, as in everybody's `-m 64M`.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether there is memory behind `at`: from 0 to [`Self::bytes`], the hole between 640 KiB and 1 MiB included. Nothing is
    /// loaded there, but guests search it for the firmware's tables and write to video memory, and find zeros.
    pub const fn backs(self, at: Gpa) -> bool {
        at.raw() < self.bytes
    }

    /// What the guest is told that it may use.
    pub(crate) const fn offered(self) -> [Range<u64>; 2] {
        [0..LOW_OFFERED_END, HIGH_START..self.bytes]
    }

    /// What the guest is told that it may not use, of the first MiB.
    pub(crate) const fn withheld(self) -> Range<u64> {
        LOW_OFFERED_END..HIGH_START
    }

    /// Whether something may be loaded to all of `range`.
    pub(crate) fn holds(self, range: &Range<u64>) -> bool {
        let parts = [0..HOLE_START, HIGH_START..self.bytes];
        parts.iter().any(|part| part.start <= range.start && range.end <= part.end)
    }
}

impl Default for GuestRam {
    /// 64 MiB.
    fn default() -> Self {
        Self { bytes: 64 << 20 }
    }
}

/// A guest's memory as the loader fills it, before the guest runs.
pub trait GuestMemory {
    /// Copies `bytes` to guest memory from `at` on.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] if any of it is above the guest's RAM; [`MemoryError::NoFrames`] if the host has no frame left for it.
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError>;

    /// Makes `bytes` bytes of guest memory zero from `at` on. An implementation whose untouched pages read as zero need
    /// not touch them.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError>;
}

/// Why guest memory could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// There is no RAM at this address.
    Outside(Gpa),
    /// The host ran out of frames.
    NoFrames,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(at) => write!(f, "{at} is outside the guest's memory"),
            Self::NoFrames => f.write_str("no memory left for the guest"),
        }
    }
}

impl core::error::Error for MemoryError {}

/// Finds room in a guest's RAM for what the loader adds to the image.
pub(crate) struct Placer {
    ram: GuestRam,
    taken: alloc::vec::Vec<Range<u64>>,
}

impl Placer {
    pub(crate) fn new(ram: GuestRam, taken: impl Iterator<Item = Range<u64>>) -> Self {
        Self { ram, taken: taken.collect() }
    }

    /// Takes the first free place for `bytes` at or above `from` that starts on a page.
    pub(crate) fn place(&mut self, bytes: u64, from: u64) -> Option<u64> {
        let place = self.ram.offered().iter().find_map(|part| self.first_free(bytes, from, part))?;
        self.taken.push(place.clone());
        Some(place.start)
    }

    fn first_free(&self, bytes: u64, from: u64, part: &Range<u64>) -> Option<Range<u64>> {
        let mut start = from.max(part.start);
        loop {
            let place = span(start.checked_next_multiple_of(PAGE_SIZE)?, bytes)?;
            if place.end > part.end {
                return None;
            }
            match self.taken.iter().find(|taken| crate::ranges::overlap(taken, &place)) {
                Some(taken) => start = taken.end,
                None => return Some(place),
            }
        }
    }
}
