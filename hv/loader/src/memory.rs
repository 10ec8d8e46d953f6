//! A guest's RAM: its ranges, and how the loader writes it.

use abi::mmio;
use addr::{Gpa, PAGE_SIZE};
use core::{fmt, ops::Range};

/// End of conventional memory: start of the hole that a PC keeps for video memory and ROMs.
pub(crate) const LOW_END: u64 = 0xa_0000;
/// Start of the RAM above that hole.
pub(crate) const HIGH_START: u64 = 0x10_0000;

/// The size of a guest's RAM, and where it is: from 0 up to [`BELOW_4G`](Self::BELOW_4G), and the rest from
/// [`ABOVE_4G`](Self::ABOVE_4G) on. Between the two a PC has its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRam {
    bytes: u64,
}

impl GuestRam {
    /// The smallest size.
    pub const MIN_BYTES: u64 = 1 << 20;
    /// The largest size.
    pub const MAX_BYTES: u64 = 64 << 30;
    /// The most RAM that is below 4 GiB, and the start of the PCI hole.
    pub const BELOW_4G: u64 = mmio::PCI_WINDOW.start as u64;
    /// The first address behind the PCI hole.
    pub const ABOVE_4G: u64 = 4 << 30;

    /// RAM of `bytes`: whole 4 KiB pages, from [`Self::MIN_BYTES`] to [`Self::MAX_BYTES`], else None.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes < Self::MIN_BYTES || bytes > Self::MAX_BYTES || !bytes.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        Some(Self { bytes })
    }

    /// The size. It includes the hole between 640 KiB and 1 MiB, as in QEMU's `-m 64M`.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The address after the last byte below 4 GiB.
    pub const fn low_end(self) -> u64 {
        if self.bytes < Self::BELOW_4G { self.bytes } else { Self::BELOW_4G }
    }

    /// The address after the last byte above 4 GiB; [`ABOVE_4G`](Self::ABOVE_4G) if there is none.
    pub const fn high_end(self) -> u64 {
        Self::ABOVE_4G + (self.bytes - self.low_end())
    }

    /// The address after the last byte of all.
    pub const fn end(self) -> Gpa {
        let has_high = self.high_end() > Self::ABOVE_4G;
        Gpa::new(if has_high { self.high_end() } else { self.low_end() })
    }

    /// Whether there is memory at `at`, including the hole between 640 KiB and 1 MiB. Nothing is loaded into that hole, but
    /// guests search it for the firmware's tables, write to video memory there, and read zeros.
    pub const fn backs(self, at: Gpa) -> bool {
        let at = at.raw();
        at < self.low_end() || Self::ABOVE_4G <= at && at < self.high_end()
    }

    /// The range of `bytes` bytes at `start`, if it lies in memory as a whole, by [`backs`](Self::backs): not where the PCI hole is.
    pub fn range(self, start: u64, bytes: u64) -> Option<Range<Gpa>> {
        let end = start.checked_add(bytes)?;
        let is_backed = end <= self.low_end() || Self::ABOVE_4G <= start && end <= self.high_end();
        is_backed.then(|| Gpa::new(start)..Gpa::new(end))
    }

    /// The ranges of RAM as a PC has them, some of which may be empty.
    pub(crate) const fn ranges(self) -> [Range<u64>; 3] {
        [0..LOW_END, HIGH_START..self.low_end(), Self::ABOVE_4G..self.high_end()]
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

    /// Does a step of what a [`write`](Self::write) of `bytes` bytes from `at` on takes beside the copy; whether nothing is left to do.
    /// For a caller that shares its CPU: a large page takes long to clear.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn prepare(&mut self, _at: Gpa, _bytes: u64) -> Result<bool, MemoryError> {
        Ok(true)
    }

    /// Zeroes `bytes` bytes of guest memory from `at` on. An implementation whose untouched pages read as zero need not
    /// touch them.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError>;
}

impl<M: GuestMemory + ?Sized> GuestMemory for &mut M {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        (**self).write(at, bytes)
    }

    fn prepare(&mut self, at: Gpa, bytes: u64) -> Result<bool, MemoryError> {
        (**self).prepare(at, bytes)
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        (**self).zero(at, bytes)
    }
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
