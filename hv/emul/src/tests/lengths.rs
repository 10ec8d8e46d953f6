use crate::{Bitness, DecodeError, Known, length, warm_up};
use proptest::prelude::*;
use std::vec::Vec;

const MODES: [Bitness; 3] = [Bitness::Bits16, Bitness::Bits32, Bitness::Bits64];

#[test]
fn the_decoder_knows_each_table_entry_by_its_bytes() {
    for &known in Known::ALL {
        let bytes = known.encoding();
        for bitness in MODES {
            // Decoding depends on the bytes only, not on whether the processor has the instruction.
            assert_eq!(known.decode(bytes, bitness), Ok(bytes.len() as u64), "{known:?}");
        }
        let mut four = [0x90; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        assert_eq!(known.length(u32::from_le_bytes(four)), Some(bytes.len() as u64));
    }
}

#[test]
fn another_instruction_is_not_taken_for_it() {
    for &known in Known::ALL {
        for &other in Known::ALL.iter().filter(|other| **other != known) {
            let mut four = [0x90; 4];
            four[..other.encoding().len()].copy_from_slice(other.encoding());
            assert_eq!(known.length(u32::from_le_bytes(four)), None, "{other:?} for {known:?}");
            assert_eq!(known.decode(&four, Bitness::Bits64), Err(DecodeError::Unexpected));
        }
    }
}

#[test]
fn prefixes_count() {
    let bytes = [0x2e, 0x66, 0x48, 0x0f, 0xa2];
    assert_eq!(Known::Cpuid.decode(&bytes, Bitness::Bits64), Ok(5));
    assert_eq!(Known::Hlt.decode(&[0x67, 0xf4], Bitness::Bits32), Ok(2));
}

#[test]
fn errors_say_what_is_wrong() {
    assert_eq!(length(&[], Bitness::Bits64), Err(DecodeError::Truncated));
    assert_eq!(length(&[0x48, 0x8b], Bitness::Bits64), Err(DecodeError::Truncated));
    assert_eq!(length(&[0x0f, 0x0b], Bitness::Bits64), Ok(2));
    assert_eq!(length(&[0x06, 0x90], Bitness::Bits64), Err(DecodeError::Invalid));
    assert_eq!(length(&[0x06], Bitness::Bits32), Ok(1));
    assert_eq!(length(&[0xf0, 0x0f, 0xa2], Bitness::Bits64), Err(DecodeError::Invalid));
    // Fifteen prefixes leave no room for an instruction.
    assert_eq!(length(&[0x66; 15], Bitness::Bits64), Err(DecodeError::Invalid));
    assert_eq!(length(&[0x66; 20], Bitness::Bits64), Err(DecodeError::Invalid));
    assert_eq!(length(&[0x66; 14], Bitness::Bits64), Err(DecodeError::Truncated));
}

#[test]
fn rip_wraps_as_the_mode_says() {
    assert_eq!(Bitness::Bits64.advance(0xffff_ffff, 2), 0x1_0000_0001);
    assert_eq!(Bitness::Bits32.advance(0xffff_ffff, 2), 1);
}

proptest! {
    #[test]
    fn table_and_decoder_agree(bytes in any::<[u8; 4]>(), which in 0..Known::ALL.len(), put in any::<bool>()) {
        warm_up();
        let known = Known::ALL[which];
        let mut bytes = bytes;
        if put {
            bytes[..known.encoding().len()].copy_from_slice(known.encoding());
        }
        if let Some(length) = known.length(u32::from_le_bytes(bytes)) {
            prop_assert_eq!(known.decode(&bytes, Bitness::Bits64), Ok(length));
        }
    }

    #[test]
    fn more_bytes_do_not_change_a_length(bytes in proptest::collection::vec(any::<u8>(), 15)) {
        for bitness in MODES {
            if let Ok(len) = length(&bytes, bitness) {
                let len = len as usize;
                prop_assert!((1..=15).contains(&len));
                prop_assert_eq!(length(&bytes[..len], bitness), Ok(len as u64));
                let shorter: Vec<_> = (0..len).map(|n| length(&bytes[..n], bitness)).collect();
                prop_assert!(shorter.iter().all(|short| *short == Err(DecodeError::Truncated)));
            }
        }
    }
}
