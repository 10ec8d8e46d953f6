//! Addresses and page frames as distinct types, so that a guest's address is never taken for the host's.
//!
//! An address type counts bytes, a frame type counts 4 KiB frames. Conversions between spaces exist only where something
//! translates: the page tables (`mmu`), the guest's own page tables (`walk`) and the hypervisor's direct map.
//!
//! ```
//! use addr::{Gpa, Hpa, Pfn};
//!
//! /// Where the byte at `at` of a guest is, if its page is in this frame.
//! fn translate(at: Gpa, frame: Pfn) -> Hpa {
//!     frame.start().wrapping_add(at.page_offset())
//! }
//!
//! let at = Gpa::new(0x1_2345);
//! assert_eq!(at.frame().raw(), 0x12);
//! assert_eq!(translate(at, Pfn::new(0x8000)), Hpa::new(0x800_0345));
//! ```
//!
//! ```compile_fail
//! let guests = addr::Gpa::new(0x1000);
//! let hosts: addr::Hpa = guests; // a mistake that does not compile
//! ```
#![no_std]
#![forbid(unsafe_code)]

use core::fmt;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $frame:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address `raw`, in bytes.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The address in bytes.
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// The address `bytes` further on, or None past the end of the space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
            /// The address `bytes` further on, modulo 2^64 as the processor computes it.
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
            /// The largest multiple of `align`, a power of two, that is not above this address.
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !(align - 1))
            }
            /// Whether this is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }
            /// The offset within the 4 KiB page.
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
            /// The 4 KiB frame that holds this address.
            pub const fn frame(self) -> $frame {
                $frame(self.0 >> PAGE_SHIFT)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident, $address:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Frame number `raw`.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The frame number.
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// The address of the frame's first byte.
            pub const fn start(self) -> $address {
                $address(self.0 << PAGE_SHIFT)
            }
            /// The frame `frames` further on.
            pub const fn add(self, frames: u64) -> Self {
                Self(self.0 + frames)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address!(
    /// A guest virtual (linear) address: what the guest's instructions use once its paging is on.
    Gva, Gvn
);
address!(
    /// A guest physical address: what the guest's page tables give, and what EPT or NPT translates.
    Gpa, Gfn
);
address!(
    /// A host physical address: what EPT or NPT gives.
    Hpa, Pfn
);
frame!(
    /// A guest virtual page number.
    Gvn, Gva
);
frame!(
    /// A guest frame number.
    Gfn, Gpa
);
frame!(
    /// A host page frame number.
    Pfn, Hpa
);

/// A leaf's size, in every format that `mmu` and `walk` know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, one `pte`.
    Size4K,
    /// 2 MiB, a leaf `pmd`.
    Size2M,
    /// 4 MiB: the large page of 32-bit paging without PAE.
    Size4M,
    /// 1 GiB, a leaf `pud`.
    Size1G,
}

impl PageSize {
    /// log2 of the size in bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size2M => 21,
            Self::Size4M => 22,
            Self::Size1G => 30,
        }
    }
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
    /// The size in 4 KiB frames.
    pub const fn frames(self) -> u64 {
        self.bytes() >> PAGE_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_frames_convert_both_ways() {
        let gpa = Gpa::new(0x1234_5678);
        assert_eq!(gpa.frame(), Gfn::new(0x12345));
        assert_eq!(gpa.frame().start(), Gpa::new(0x1234_5000));
        assert_eq!(gpa.page_offset(), 0x678);
        assert_eq!(gpa.align_down(PageSize::Size2M.bytes()), Gpa::new(0x1220_0000));
        assert!(gpa.frame().start().is_aligned(PAGE_SIZE));
    }

    #[test]
    fn sums_past_the_end_are_none() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gva::new(u64::MAX).wrapping_add(1), Gva::new(0));
    }

    #[test]
    fn sizes_are_what_their_names_say() {
        assert_eq!(PageSize::Size4K.bytes(), 4 << 10);
        assert_eq!(PageSize::Size2M.frames(), 512);
        assert_eq!(PageSize::Size4M.bytes(), 4 << 20);
        assert_eq!(PageSize::Size1G.bytes(), 1 << 30);
    }
}
