use super::File;
use crate::string_io::{Direction, Elements, StringIo, decode};
use crate::{AddressSize, Bitness, DecodeError, Gpr, Segment, Width};
use addr::Gva;
use proptest::prelude::*;
use std::vec::Vec;

const DF: u64 = 1 << 10;

#[test]
fn encodings() {
    use AddressSize as Size;
    use Bitness::*;
    let out = Direction::Out;
    let check = |bytes: &[u8], bitness, direction, width, size, rep| {
        let expected = StringIo::new(direction, width, size, rep, bitness, bytes.len() as u64);
        assert_eq!(decode(bytes, bitness), Ok(expected), "{bytes:x?}");
    };
    check(&[0x6c], Bits64, Direction::In, Width::Byte, Size::Bits64, false);
    check(&[0x6d], Bits64, Direction::In, Width::Dword, Size::Bits64, false);
    check(&[0x66, 0x6d], Bits64, Direction::In, Width::Word, Size::Bits64, false);
    check(&[0x48, 0x6d], Bits64, Direction::In, Width::Dword, Size::Bits64, false);
    check(&[0xf3, 0x67, 0x6c], Bits64, Direction::In, Width::Byte, Size::Bits32, true);
    check(&[0xf2, 0x6c], Bits64, Direction::In, Width::Byte, Size::Bits64, true);
    check(&[0x6d], Bits16, Direction::In, Width::Word, Size::Bits16, false);
    check(&[0x67, 0x6d], Bits32, Direction::In, Width::Dword, Size::Bits16, false);
    check(&[0x6e], Bits32, out(Segment::Ds), Width::Byte, Size::Bits32, false);
    check(&[0x64, 0x6f], Bits32, out(Segment::Fs), Width::Dword, Size::Bits32, false);
    check(&[0x26, 0xf3, 0x6f], Bits16, out(Segment::Es), Width::Word, Size::Bits16, true);
    // INS writes to ES even with a segment prefix.
    check(&[0x64, 0x6c], Bits32, Direction::In, Width::Byte, Size::Bits32, false);
    assert_eq!(decode(&[0xa4], Bits64), Err(DecodeError::Unexpected));
}

fn file(rcx: u64, rsi: u64, rdi: u64, rflags: u64) -> File {
    let mut file = File { rflags, ..File::default() };
    file.gpr[Gpr::RCX.index()] = rcx;
    file.gpr[Gpr::RSI.index()] = rsi;
    file.gpr[Gpr::RDI.index()] = rdi;
    file
}

#[test]
fn a_fault_in_the_middle_leaves_the_registers_at_the_faulting_element() {
    let ins = decode(&[0xf3, 0x6d], Bitness::Bits64).unwrap();
    let mut file = file(10, 7, 0x1ff4, 0);
    // Three elements fit into the page; the fourth faults.
    let elements = ins.next(&file).unwrap();
    assert_eq!(elements, Elements { at: Gva::new(0x1ff4), count: 3 });
    assert!(ins.retire(&mut file, 3));
    assert_eq!(file, self::file(7, 7, 0x2000, 0));
    assert_eq!(ins.next(&file), Some(Elements { at: Gva::new(0x2000), count: 7 }));
}

#[test]
fn an_element_over_two_pages_comes_alone() {
    let ins = decode(&[0xf3, 0x6d], Bitness::Bits64).unwrap();
    assert_eq!(ins.next(&file(10, 0, 0x1ffe, 0)), Some(Elements { at: Gva::new(0x1ffe), count: 1 }));
}

#[test]
fn small_addresses_wrap_and_keep_the_upper_bits_as_writes_do() {
    let high = 0xaaaa_bbbb_cccc_0000;
    // 16 bits: the rest of the registers stays.
    let outs = decode(&[0xf3, 0x67, 0x6e], Bitness::Bits32).unwrap();
    let mut file = file(high | 2, high | 0xffff, 0, 0);
    file.bases[Segment::Ds as usize] = 0x10_0000;
    assert_eq!(outs.next(&file), Some(Elements { at: Gva::new(0x10_ffff), count: 1 }));
    assert!(outs.retire(&mut file, 1));
    assert_eq!((file.gpr[1], file.gpr[6]), (high | 1, high));
    assert_eq!(outs.next(&file).unwrap().at, Gva::new(0x10_0000));
    assert!(!outs.retire(&mut file, 1));
    assert_eq!(outs.next(&file), None);
    // 32 bits in 64-bit mode: the rest is cleared.
    let outs = decode(&[0xf3, 0x67, 0x6e], Bitness::Bits64).unwrap();
    let mut file = self::file(high | 2, high | 1, 0, 0);
    assert!(outs.retire(&mut file, 1));
    assert_eq!((file.gpr[1], file.gpr[6]), (0xcccc_0001, 0xcccc_0002));
}

#[test]
fn in_64_bit_mode_only_fs_and_gs_have_a_base() {
    let mut file = file(1, 0x1000, 0x2000, 0);
    file.bases = [1 << 32, 2 << 32, 3 << 32, 4 << 32, 5 << 32, 6 << 32];
    let at = |bytes: &[u8]| decode(bytes, Bitness::Bits64).unwrap().next(&file).unwrap().at.raw();
    assert_eq!(at(&[0x6c]), 0x2000);
    assert_eq!(at(&[0x6e]), 0x1000);
    assert_eq!(at(&[0x36, 0x6e]), 0x1000);
    assert_eq!(at(&[0x65, 0x6e]), 0x6_0000_1000);
}

#[test]
fn without_rep_rcx_is_ignored() {
    let outs = decode(&[0x6f], Bitness::Bits64).unwrap();
    let mut file = file(0, 0x1000, 0, DF);
    assert_eq!(outs.next(&file).unwrap().count, 1);
    assert!(!outs.retire(&mut file, 1));
    assert_eq!((file.gpr[1], file.gpr[6]), (0, 0xffc));
}

#[test]
fn rep_with_rcx_of_zero_does_nothing() {
    let outs = decode(&[0xf3, 0x6f], Bitness::Bits64).unwrap();
    assert_eq!(outs.next(&file(0, 0x1000, 0, 0)), None);
}

proptest! {
    /// Batches give the same addresses and final registers as single steps.
    #[test]
    fn batches_are_single_steps(
        rep in any::<bool>(), wide in any::<bool>(), short in any::<bool>(), down in any::<bool>(),
        rcx in 0..3000u64, rdi in any::<u64>(), bitness in prop_oneof![Just(Bitness::Bits32), Just(Bitness::Bits64)],
    ) {
        let mut bytes = Vec::new();
        bytes.extend(rep.then_some(0xf3));
        bytes.extend(short.then_some(0x67));
        bytes.push(if wide { 0x6d } else { 0x6c });
        let ins = decode(&bytes, bitness).unwrap();
        let start = file(rcx, 0, rdi, if down { DF } else { 0 });
        let run = |limit: u64| {
            let mut file = start.clone();
            let mut addresses = Vec::new();
            while let Some(Elements { at, count }) = ins.next(&file) {
                let count = count.min(limit);
                addresses.extend((0..count).map(|n| at.raw() + n * ins.width().bytes()));
                if !ins.retire(&mut file, count) {
                    break;
                }
            }
            (addresses, file)
        };
        let (addresses, end) = run(1);
        prop_assert_eq!(addresses.len() as u64, if rep { rcx & if short && bitness == Bitness::Bits32 { 0xffff } else { u64::MAX } } else { 1 });
        prop_assert_eq!(run(u64::MAX), (addresses, end));
    }
}
