//! Task-state segments of 16 and of 32 bits (Intel SDM vol. 3, figures 8-2 and 8-10).

use arch::RFLAGS_FIXED;
use core::ops::Range;

/// The largest TSS, without what is behind its fixed part.
pub(super) const LARGEST: usize = 104;

/// Bits of EFLAGS that there are, but for bit 1.
const EFLAGS_DEFINED: u32 = 0x003f_7fd5;

/// One of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Bits16,
    Bits32,
}

/// The part of a task's state that a switch writes to the old task's TSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dynamic {
    pub(super) eip: u32,
    pub(super) eflags: u32,
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub(super) gprs: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    pub(super) segments: [u16; 6],
}

/// What a switch loads from the new task's TSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) dynamic: Dynamic,
    pub(super) ldtr: u16,
    pub(super) cr3: Option<u32>,
    /// T: a debug trap when the task is entered.
    pub(super) traps: bool,
}

impl Format {
    /// Of a TSS whose descriptor or register has bit 3 of the type, which this is, set or clear.
    pub(super) const fn new(is_32_bit: bool) -> Self {
        if is_32_bit { Self::Bits32 } else { Self::Bits16 }
    }

    /// How many bytes the processor reads of a new task's.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 44,
            Self::Bits32 => LARGEST,
        }
    }

    /// Where the state is that it writes to an old task's.
    pub(super) const fn dynamic(self) -> Range<usize> {
        match self {
            Self::Bits16 => 14..42,
            Self::Bits32 => 32..94,
        }
    }

    /// Has `image`, the bytes of a TSS in [`dynamic`](Self::dynamic), hold `state`.
    pub(super) fn save(self, image: &mut [u8], state: &Dynamic) {
        let numbers = [state.eip, state.eflags].into_iter().chain(state.gprs);
        match self {
            Self::Bits16 => {
                let words = numbers.map(|number| number as u16).chain(state.segments);
                for (field, word) in image.as_chunks_mut().0.iter_mut().zip(words) {
                    *field = word.to_le_bytes();
                }
            }
            Self::Bits32 => {
                let (numbers_at, segments_at) = image.split_at_mut(40);
                for (field, number) in numbers_at.as_chunks_mut().0.iter_mut().zip(numbers) {
                    *field = number.to_le_bytes();
                }
                // Each in the lower half of a doubleword.
                for (field, segment) in segments_at.chunks_mut(4).zip(state.segments) {
                    field[..2].copy_from_slice(&segment.to_le_bytes());
                }
            }
        }
    }

    /// What `image`, the first [`bytes`](Self::bytes) of a TSS, holds.
    pub(super) fn load(self, image: &[u8; LARGEST]) -> State {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let dword = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let eflags = |value: u32| value & EFLAGS_DEFINED | RFLAGS_FIXED as u32;
        match self {
            Self::Bits16 => {
                let segment = |number: usize| if number < 4 { word(34 + 2 * number) } else { 0 };
                State {
                    dynamic: Dynamic {
                        eip: word(14).into(),
                        eflags: eflags(word(16).into()),
                        gprs: core::array::from_fn(|number| word(18 + 2 * number).into()),
                        segments: core::array::from_fn(segment),
                    },
                    ldtr: word(42),
                    cr3: None,
                    traps: false,
                }
            }
            Self::Bits32 => State {
                dynamic: Dynamic {
                    eip: dword(32),
                    eflags: eflags(dword(36)),
                    gprs: core::array::from_fn(|number| dword(40 + 4 * number)),
                    segments: core::array::from_fn(|number| word(72 + 4 * number)),
                },
                ldtr: word(96),
                cr3: Some(dword(28)),
                traps: word(100) & 1 != 0,
            },
        }
    }
}
