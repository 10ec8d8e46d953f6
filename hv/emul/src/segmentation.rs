//! The checks of a memory operand before its linear address is used: of limits and types (Intel SDM vol. 3, sections 5.3 to 5.5; AMD64
//! APM vol. 2, sections 4.12 and 4.13), of canonical form, and of alignment (SDM vol. 3, section 6.15, interrupt 17).
//!
//! The processor makes them before an access exits, but not for operands that it has not come to: those of INS and OUTS, LMSW and SMSW,
//! and the other one of MOVS.
//!
//! ```
//! use emul::Segment;
//! use emul::segmentation::{DescriptorCache, Kind, Mode, SegmentFault, Segmentation};
//! let es = Segmentation {
//!     segment: Segment::Es,
//!     // Writable data of 4 KiB.
//!     cache: DescriptorCache { base: 0x10_0000, limit: 0xfff, attributes: 0x493 },
//!     mode: Mode::Protected,
//!     checks_alignment: false,
//! };
//! assert_eq!(es.check(0xffc, 4, Kind::Write).map(|at| at.raw()), Ok(0x10_0ffc));
//! assert_eq!(es.check(0xffd, 4, Kind::Write), Err(SegmentFault::GeneralProtection));
//! ```

use crate::Segment;
use addr::Gva;

/// The hidden part of a segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorCache {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Offset of its last byte; of an expand-down segment, that of the last byte below it.
    pub limit: u32,
    /// Bits 40 to 47 of the descriptor, and above them bits 52 to 55. Without P the register can't be used.
    pub attributes: u16,
}

/// The kind of an access to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A write, or both.
    Write,
}

/// What the checks of a segment depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode and virtual-8086 mode, where code may be written.
    Real,
    /// Protected mode and compatibility mode.
    Protected,
    /// 64-bit mode, with linear addresses of so many bits: 48 or 57.
    Long(u32),
}

/// What an access ends in. Each exception has the error code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentFault {
    /// #SS: the access is to the stack segment.
    Stack,
    /// #GP.
    GeneralProtection,
    /// #AC.
    Alignment,
}

/// What accesses through a segment register are checked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// The register.
    pub segment: Segment,
    /// Its hidden part. In 64-bit mode only the base matters, that of FS and GS.
    pub cache: DescriptorCache,
    /// The processor's mode.
    pub mode: Mode,
    /// CR0.AM and RFLAGS.AC are set, and the CPL is 3.
    pub checks_alignment: bool,
}

impl DescriptorCache {
    const WRITABLE_DATA_OR_READABLE_CODE: u16 = 1 << 1;
    const EXPAND_DOWN: u16 = 1 << 2;
    const CODE: u16 = 1 << 3;
    const PRESENT: u16 = 1 << 7;
    const DEFAULT_BIG: u16 = 1 << 10;

    const fn has(&self, attribute: u16) -> bool {
        self.attributes & attribute != 0
    }

    /// D/B: 32-bit code or stack.
    pub const fn is_big(&self) -> bool {
        self.has(Self::DEFAULT_BIG)
    }

    /// Whether the segment has the `bytes` (at least 1) at `offset`: above the limit, if it is data that grows downwards. Bytes above
    /// 4 GiB are in no segment: processors may wrap there or not (SDM vol. 3, section 5.3).
    pub const fn contains(&self, offset: u32, bytes: u32) -> bool {
        let Some(last) = offset.checked_add(bytes - 1) else { return false };
        if self.has(Self::EXPAND_DOWN) && !self.has(Self::CODE) {
            let top = if self.is_big() { u32::MAX } else { 0xffff };
            return offset > self.limit && last <= top;
        }
        last <= self.limit
    }

    const fn permits(&self, kind: Kind, mode: Mode) -> bool {
        let second = self.has(Self::WRITABLE_DATA_OR_READABLE_CODE);
        match (kind, self.has(Self::CODE)) {
            (Kind::Read, false) => true,
            (Kind::Read, true) | (Kind::Write, false) => second,
            (Kind::Write, true) => second && matches!(mode, Mode::Real),
        }
    }
}

impl Segmentation {
    /// The linear address of the `bytes` (at least 1) at `offset`, which is not above 4 GiB outside of 64-bit mode.
    ///
    /// # Errors
    /// The access is not allowed. The manuals leave to processors whether a page fault or #AC comes first (SDM vol. 3, section 6.9):
    /// here #AC does.
    pub const fn check(&self, offset: u64, bytes: u64, kind: Kind) -> Result<Gva, SegmentFault> {
        let (linear, is_allowed) = match self.mode {
            Mode::Long(width) => {
                let base = if matches!(self.segment, Segment::Fs | Segment::Gs) { self.cache.base } else { 0 };
                let first = base.wrapping_add(offset);
                let last = first.wrapping_add(bytes - 1);
                (first, is_canonical(first, width) && is_canonical(last, width))
            }
            mode => {
                let is_in_limits = self.cache.contains(offset as u32, bytes as u32);
                let is_allowed =
                    self.cache.has(DescriptorCache::PRESENT) && self.cache.permits(kind, mode) && is_in_limits;
                (self.cache.base.wrapping_add(offset) & 0xffff_ffff, is_allowed)
            }
        };
        match self.segment {
            Segment::Ss if !is_allowed => Err(SegmentFault::Stack),
            _ if !is_allowed => Err(SegmentFault::GeneralProtection),
            _ if self.checks_alignment && linear & (alignment(bytes) - 1) != 0 => Err(SegmentFault::Alignment),
            _ => Ok(Gva::new(linear)),
        }
    }
}

/// How an operand of so many bytes has to be aligned (Intel SDM vol. 3, table 6-7): far pointers and the x87's environments by their
/// parts, its real numbers of 80 bits by 8. SSE's operands are checked by their instructions.
const fn alignment(bytes: u64) -> u64 {
    match bytes {
        1 | 2 | 4 | 8 => bytes,
        10 => 8,
        14 | 94 => 2,
        6 | 28 | 108 => 4,
        _ => 1,
    }
}

/// Whether the bits of a linear address from its `width` on are as the one below.
pub const fn is_canonical(linear: u64, width: u32) -> bool {
    let unused = 64 - width;
    ((linear << unused).cast_signed() >> unused).cast_unsigned() == linear
}
