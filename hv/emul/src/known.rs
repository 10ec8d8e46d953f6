//! Instructions without operands that exit. Their encoding is nearly always the same two or three bytes.

use crate::{Bitness, DecodeError, decode};
use iced_x86::Mnemonic;

macro_rules! known {
    ($($(#[$doc:meta])* $name:ident = [$($byte:literal),+];)+) => {
        /// An instruction that its exit code identifies, but whose length the exit does not give.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Known {
            $($(#[$doc])* $name,)+
        }

        impl Known {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// The bytes without redundant prefixes.
            pub(crate) const fn encoding(self) -> &'static [u8] {
                match self {
                    $(Self::$name => &[$($byte),+],)+
                }
            }

            const fn mnemonic(self) -> Mnemonic {
                match self {
                    $(Self::$name => Mnemonic::$name,)+
                }
            }
        }
    };
}

known! {
    /// CPUID.
    Cpuid = [0x0f, 0xa2];
    /// RDMSR.
    Rdmsr = [0x0f, 0x32];
    /// WRMSR.
    Wrmsr = [0x0f, 0x30];
    /// HLT.
    Hlt = [0xf4];
    /// VMMCALL: AMD's hypercall.
    Vmmcall = [0x0f, 0x01, 0xd9];
    /// VMCALL: Intel's hypercall.
    Vmcall = [0x0f, 0x01, 0xc1];
    /// RDTSC.
    Rdtsc = [0x0f, 0x31];
    /// RDTSCP.
    Rdtscp = [0x0f, 0x01, 0xf9];
    /// RDPMC.
    Rdpmc = [0x0f, 0x33];
    /// INVD.
    Invd = [0x0f, 0x08];
    /// WBINVD.
    Wbinvd = [0x0f, 0x09];
    /// XSETBV.
    Xsetbv = [0x0f, 0x01, 0xd1];
    /// PAUSE.
    Pause = [0xf3, 0x90];
    /// MONITOR.
    Monitor = [0x0f, 0x01, 0xc8];
    /// MWAIT.
    Mwait = [0x0f, 0x01, 0xc9];
    /// CLTS.
    Clts = [0x0f, 0x06];
    /// INT3.
    Int3 = [0xcc];
    /// INT1, or ICEBP.
    Int1 = [0xf1];
    /// RSM.
    Rsm = [0x0f, 0xaa];
    /// VMRUN.
    Vmrun = [0x0f, 0x01, 0xd8];
    /// VMLOAD.
    Vmload = [0x0f, 0x01, 0xda];
    /// VMSAVE.
    Vmsave = [0x0f, 0x01, 0xdb];
    /// STGI.
    Stgi = [0x0f, 0x01, 0xdc];
    /// CLGI.
    Clgi = [0x0f, 0x01, 0xdd];
    /// SKINIT.
    Skinit = [0x0f, 0x01, 0xde];
    /// INVLPGA.
    Invlpga = [0x0f, 0x01, 0xdf];
}

impl Known {
    /// The encoding as a little-endian number, and the mask of its bits.
    const fn pattern(self) -> (u32, u32) {
        let encoding = self.encoding();
        let (mut bytes, mut mask, mut n) = (0, 0, 0);
        while n < encoding.len() {
            bytes |= (encoding[n] as u32) << (8 * n);
            mask |= 0xff << (8 * n);
            n += 1;
        }
        (bytes, mask)
    }

    /// The encoding, mask and length of each instruction.
    const PATTERNS: [(u32, u32, u64); Self::ALL.len()] = {
        let mut patterns = [(0, 0, 0); Self::ALL.len()];
        let mut n = 0;
        while n < patterns.len() {
            let (bytes, mask) = Self::ALL[n].pattern();
            patterns[n] = (bytes, mask, Self::ALL[n].encoding().len() as u64);
            n += 1;
        }
        patterns
    };

    /// The length, if `first` (the bytes at RIP, little-endian) is the instruction without prefixes. If None, the
    /// caller uses [`decode`](Self::decode).
    #[inline]
    pub const fn length(self, first: u32) -> Option<u64> {
        let (bytes, mask, length) = Self::PATTERNS[self as usize];
        if first & mask == bytes { Some(length) } else { None }
    }

    /// The length with all prefixes in `bytes`. [`DecodeError::Unexpected`] if they are another instruction.
    pub fn decode(self, bytes: &[u8], bitness: Bitness) -> Result<u64, DecodeError> {
        let instruction = decode(bytes, bitness)?;
        if instruction.mnemonic() == self.mnemonic() {
            Ok(instruction.len() as u64)
        } else {
            Err(DecodeError::Unexpected)
        }
    }
}
