//! A guest's RAM: its ranges, and how the loader writes it.

use crate::ranges::span;
use addr::{Gpa, PAGE_SIZE};
use core::{fmt, ops::Range};

/// Start of the hole that a PC keeps for video memory and ROMs.
const HOLE_START: u64 = 0xa_0000;
/// Start of the extended BIOS data area of a PC: RAM that is never reported to an operating system as usable.
const LOW_OFFERED_END: u64 = 0x9_fc00;
/// Start of the RAM above the hole.
const HIGH_START: u64 = 0x10_0000;

/// The size of a guest's RAM. The guest may use it as on a PC: up to 639 KiB, and from 1 MiB on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRam {
    bytes: u64,
}

impl GuestRam {
    /// The smallest size.
    pub const MIN_BYTES: u64 = 2 << 20;
    /// The largest size: a PC has devices between it and 4 GiB.
    pub const MAX_BYTES: u64 = 3 << 30;

    /// RAM up to `bytes`: whole 4 KiB pages, from [`Self::MIN_BYTES`] to [`Self::MAX_BYTES`], else None.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes < Self::MIN_BYTES || bytes > Self::MAX_BYTES || !bytes.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        Some(Self { bytes })
    }

    /// The address after the last byte. The size includes the hole, as in QEMU's `-m 64M`.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Whether there is memory at `at`: from 0 to [`Self::bytes`], including the hole between 640 KiB and 1 MiB.
    /// Nothing is loaded into the hole, but guests search it for the firmware's tables, write to video memory there,
    /// and read zeros.
    pub const fn backs(self, at: Gpa) -> bool {
        at.raw() < self.bytes
    }

    /// The ranges that the guest's memory map reports as usable.
    pub(crate) const fn offered(self) -> [Range<u64>; 2] {
        [0..LOW_OFFERED_END, HIGH_START..self.bytes]
    }

    /// The range of the first MiB that the guest's memory map reports as reserved.
    pub(crate) const fn withheld(self) -> Range<u64> {
        LOW_OFFERED_END..HIGH_START
    }

    /// Whether an image or module may be loaded to `range`.
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

/// A guest's memory, which the loader fills before the guest runs.
pub trait GuestMemory {
    /// Copies `bytes` to guest memory from `at` on.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] if any of it is above the guest's RAM; [`MemoryError::NoFrames`] if the host has no
    /// frame left for it.
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError>;

    /// Zeroes `bytes` bytes of guest memory from `at` on. An implementation whose untouched pages read as zero need not
    /// touch them.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError>;
}

/// Why guest memory can't be written.
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

/// Allocates room in a guest's RAM for the modules and the boot information.
pub(crate) struct Placer {
    ram: GuestRam,
    taken: alloc::vec::Vec<Range<u64>>,
}

impl Placer {
    pub(crate) fn new(ram: GuestRam, taken: impl Iterator<Item = Range<u64>>) -> Self {
        Self { ram, taken: taken.collect() }
    }

    /// Allocates the first free range of `bytes` at or above `from` that starts at a page boundary.
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
