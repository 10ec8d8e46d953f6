use super::File;
use crate::mmio::{Executed, Mmio, decode};
use crate::{Bitness, DecodeError, Gpr, Memory, Width};
use addr::Gva;
use proptest::prelude::*;
use std::vec::Vec;

/// A device of one register that logs its accesses.
#[derive(Default)]
struct Device {
    value: u64,
    log: Vec<(Gva, Width, Option<u64>)>,
    /// All exchanges fail, as if another CPU wrote first.
    contended: bool,
}

impl Memory for Device {
    type Error = &'static str;
    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.log.push((at, Width::from_bytes(bytes.len()).unwrap(), None));
        bytes.copy_from_slice(&self.value.to_le_bytes()[..bytes.len()]);
        Ok(())
    }
    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Self::Error> {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.value = u64::from_le_bytes(value);
        self.log.push((at, Width::from_bytes(bytes.len()).unwrap(), Some(self.value)));
        Ok(())
    }
    fn compare_exchange(&mut self, at: Gva, width: Width, _: u64, new: u64) -> Result<bool, Self::Error> {
        let bytes = new.to_le_bytes();
        if self.contended { Ok(false) } else { self.write(at, &bytes[..width.bytes() as usize]).map(|()| true) }
    }
}

/// Refuses everything.
struct Nothing;

impl Memory for Nothing {
    type Error = ();
    fn read(&mut self, _: Gva, _: &mut [u8]) -> Result<(), ()> {
        Err(())
    }
    fn write(&mut self, _: Gva, _: &[u8]) -> Result<(), ()> {
        Err(())
    }
}

fn mmio(bytes: &[u8]) -> Mmio {
    let mmio = decode(bytes, Bitness::Bits64).unwrap();
    assert_eq!(mmio.length(), bytes.len() as u64);
    mmio
}

const ONES: u64 = 0x1111_1111_1111_1111;

/// RAX after loading 0xffff_ffff_8765_4381 into ones.
fn loaded(bytes: &[u8]) -> u64 {
    let mut file = File { gpr: [ONES; 16], ..File::default() };
    let mut device = Device { value: 0xffff_ffff_8765_4381, ..Device::default() };
    assert_eq!(mmio(bytes).execute(&mut file, &mut device), Ok(Executed::Retired));
    assert_eq!(device.log.len(), 1);
    file.gpr[0]
}

#[test]
fn loads_extend_as_the_instruction_says() {
    assert_eq!(loaded(&[0x8a, 0x07]), 0x1111_1111_1111_1181);
    assert_eq!(loaded(&[0x8a, 0x27]), 0x1111_1111_1111_8111, "mov ah, [rdi]");
    assert_eq!(loaded(&[0x66, 0x8b, 0x07]), 0x1111_1111_1111_4381);
    assert_eq!(loaded(&[0x8b, 0x07]), 0x8765_4381);
    assert_eq!(loaded(&[0x48, 0x8b, 0x07]), 0xffff_ffff_8765_4381);
    assert_eq!(loaded(&[0x0f, 0xb6, 0x07]), 0x81);
    assert_eq!(loaded(&[0x66, 0x0f, 0xb6, 0x07]), 0x1111_1111_1111_0081);
    assert_eq!(loaded(&[0x0f, 0xb7, 0x07]), 0x4381);
    assert_eq!(loaded(&[0x0f, 0xbe, 0x07]), 0xffff_ff81);
    assert_eq!(loaded(&[0x48, 0x0f, 0xbe, 0x07]), 0xffff_ffff_ffff_ff81);
    assert_eq!(loaded(&[0x48, 0x63, 0x07]), 0xffff_ffff_8765_4381);
    assert_eq!(loaded(&[0x63, 0x07]), 0x8765_4381);
    assert_eq!(loaded(&[0xa1, 0, 0, 0, 0, 1, 0, 0, 0]), 0x8765_4381);
    assert_eq!(loaded(&[0xac]), 0x1111_1111_1111_1181, "lodsb");
}

/// The value that is stored when all registers hold 0x0123_4567_89ab_cdef.
fn stored(bytes: &[u8]) -> (Width, u64) {
    let mut file = File { gpr: [0x0123_4567_89ab_cdef; 16], ..File::default() };
    let mut device = Device::default();
    assert_eq!(mmio(bytes).execute(&mut file, &mut device), Ok(Executed::Retired));
    match device.log[..] {
        [(_, width, Some(value))] => (width, value),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn stores_are_of_their_width() {
    assert_eq!(stored(&[0x88, 0x07]), (Width::Byte, 0xef));
    assert_eq!(stored(&[0x88, 0x27]), (Width::Byte, 0xcd), "mov [rdi], ah");
    assert_eq!(stored(&[0x40, 0x88, 0x27]), (Width::Byte, 0xef), "mov [rdi], spl");
    assert_eq!(stored(&[0x66, 0x89, 0x07]), (Width::Word, 0xcdef));
    assert_eq!(stored(&[0x89, 0x07]), (Width::Dword, 0x89ab_cdef));
    assert_eq!(stored(&[0x48, 0x89, 0x07]), (Width::Qword, 0x0123_4567_89ab_cdef));
    assert_eq!(stored(&[0x0f, 0xc3, 0x07]), (Width::Dword, 0x89ab_cdef));
    assert_eq!(stored(&[0xc6, 0x07, 0x80]), (Width::Byte, 0x80));
    assert_eq!(stored(&[0x66, 0xc7, 0x07, 0x00, 0x80]), (Width::Word, 0x8000));
    assert_eq!(stored(&[0xc7, 0x07, 0, 0, 0, 0x80]), (Width::Dword, 0x8000_0000));
    assert_eq!(stored(&[0x48, 0xc7, 0x07, 0, 0, 0, 0x80]), (Width::Qword, 0xffff_ffff_8000_0000));
    assert_eq!(stored(&[0xaa]), (Width::Byte, 0xef), "stosb");
}

#[test]
fn compare_and_test_do_not_write() {
    for bytes in [&[0x39, 0x07][..], &[0x3b, 0x07], &[0x85, 0x07], &[0x0f, 0xa3, 0x07], &[0x81, 0x3f, 1, 2, 3, 4]] {
        let mut device = Device::default();
        assert_eq!(mmio(bytes).execute(&mut File::default(), &mut device), Ok(Executed::Retired));
        assert_eq!(device.log, [(Gva::new(0), Width::Dword, None)], "{bytes:x?}");
    }
}

#[test]
fn rep_stops_after_each_iteration_and_movs_gives_both_addresses() {
    let mut file = File::default();
    file.gpr[1] = 2;
    file.gpr[6] = 0x1000;
    file.gpr[7] = 0x2000;
    file.bases[4] = 0x10_0000;
    // rep movs dword ptr es:[rdi], fs:[rsi]
    let movs = mmio(&[0xf3, 0x64, 0xa5]);
    let mut device = Device { value: 5, ..Device::default() };
    assert_eq!(movs.execute(&mut file, &mut device), Ok(Executed::Iterated));
    let (from, to) = (Gva::new(0x10_1000), Gva::new(0x2000));
    assert_eq!(device.log, [(from, Width::Dword, None), (to, Width::Dword, Some(5))]);
    assert_eq!((file.gpr[1], file.gpr[6], file.gpr[7]), (1, 0x1004, 0x2004));
    assert_eq!(movs.execute(&mut file, &mut device), Ok(Executed::Retired));
    assert_eq!(movs.execute(&mut file, &mut device), Ok(Executed::Retired), "nothing left, nothing done");
    assert_eq!((file.gpr[1], file.gpr[6], file.gpr[7]), (0, 0x1008, 0x2008));
}

#[test]
fn a_bit_offset_in_a_register_reaches_far() {
    let mut file = File::default();
    file.gpr[7] = 0x1000;
    let mut at = |bytes: &[u8], offset: i64| {
        file.gpr[0] = offset as u64;
        mmio(bytes).linear(&file).raw()
    };
    let (bt, bt_imm, bt64, bt16): (&[u8], &[u8], &[u8], &[u8]) =
        (&[0x0f, 0xa3, 0x07], &[0x0f, 0xba, 0x27, 0xff], &[0x48, 0x0f, 0xa3, 0x07], &[0x66, 0x0f, 0xa3, 0x07]);
    assert_eq!(at(bt, 31), 0x1000);
    assert_eq!(at(bt, 32), 0x1004);
    assert_eq!(at(bt, -1), 0xffc);
    assert_eq!(at(bt, 0x1_0000_0000), 0x1000);
    assert_eq!(at(bt64, 1 << 20), 0x2_1000);
    assert_eq!(at(bt16, 0xffff), 0xffe);
    assert_eq!(at(bt_imm, -1), 0x1000);
}

#[test]
fn a_lost_exchange_changes_nothing() {
    let locked: [&[u8]; 6] = [
        &[0xf0, 0x01, 0x07],       // lock add [rdi], eax
        &[0x87, 0x07],             // xchg [rdi], eax
        &[0xf0, 0x0f, 0xc1, 0x07], // lock xadd [rdi], eax
        &[0xf0, 0x0f, 0xb1, 0x0f], // lock cmpxchg [rdi], ecx
        &[0xf0, 0x0f, 0xc7, 0x0f], // lock cmpxchg8b [rdi]
        &[0xf0, 0x0f, 0xab, 0x07], // lock bts [rdi], eax
    ];
    for bytes in locked {
        let mut file = File { rflags: 0x2, ..File::default() };
        let before = file.clone();
        let mut device = Device { contended: true, ..Device::default() };
        assert_eq!(mmio(bytes).execute(&mut file, &mut device), Ok(Executed::Again), "{bytes:x?}");
        assert_eq!(file, before);
    }
}

#[test]
fn setcc_stores_the_condition_without_a_read() {
    // sete [rdi]
    let sete = mmio(&[0x0f, 0x94, 0x07]);
    for (rflags, value) in [(0x42, 1), (0x2, 0)] {
        let mut file = File { rflags, ..File::default() };
        let before = file.clone();
        let mut device = Device { value: 0xff, ..Device::default() };
        assert_eq!(sete.execute(&mut file, &mut device), Ok(Executed::Retired));
        assert_eq!(device.log, [(Gva::new(0), Width::Byte, Some(value))]);
        assert_eq!(file, before);
    }
}

#[test]
fn other_instructions_are_unexpected() {
    let unexpected: [&[u8]; 6] = [
        &[0xff, 0x37],             // push [rdi]
        &[0x0f, 0x10, 0x07],       // movups xmm0, [rdi]
        &[0xf2, 0x0f, 0x10, 0x07], // movsd xmm0, [rdi]
        &[0x8c, 0x1f],             // mov [rdi], ds
        &[0x89, 0xc7],             // mov edi, eax: no memory
        &[0x48, 0x0f, 0xc7, 0x0f], // cmpxchg16b
    ];
    for bytes in unexpected {
        assert_eq!(decode(bytes, Bitness::Bits64), Err(DecodeError::Unexpected), "{bytes:x?}");
    }
    assert_eq!(decode(&[0x8b], Bitness::Bits64), Err(DecodeError::Truncated));
    assert_eq!(decode(&[0xf0, 0x8b, 0x07], Bitness::Bits64), Err(DecodeError::Invalid));
}

/// Prefixes, an opcode of the short decoder or a similar one, and random bytes.
fn near_the_short_path() -> impl Strategy<Value = [u8; 15]> {
    let prefixes = prop_oneof![
        Just(Vec::new()),
        Just(std::vec![0x66]),
        any::<u8>().prop_map(|rex| std::vec![0x40 | rex & 15]),
        any::<u8>().prop_map(|rex| std::vec![0x66, 0x40 | rex & 15]),
        any::<u8>().prop_map(|rex| std::vec![0x40 | rex & 15, 0x66]),
        proptest::sample::select(std::vec![0x67u8, 0x64, 0x2e, 0xf0, 0xf2, 0xf3]).prop_map(|prefix| std::vec![prefix]),
    ];
    let opcode = prop_oneof![
        (0x88..=0x8bu8).prop_map(|opcode| std::vec![opcode]),
        (0xa0..=0xa3u8).prop_map(|opcode| std::vec![opcode]),
        (0xc6..=0xc7u8).prop_map(|opcode| std::vec![opcode]),
        proptest::sample::select(std::vec![0xb6u8, 0xb7, 0xbe, 0xbf]).prop_map(|opcode| std::vec![0x0f, opcode]),
    ];
    (prefixes, opcode, any::<[u8; 15]>()).prop_map(|(prefixes, opcode, mut bytes)| {
        for (byte, value) in bytes.iter_mut().zip(prefixes.into_iter().chain(opcode)) {
            *byte = value;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_short_path_decodes_as_the_general_one(bytes in near_the_short_path(), len in 1..=15usize) {
        for bitness in [Bitness::Bits16, Bitness::Bits32, Bitness::Bits64] {
            crate::mmio::same_on_both_paths(&bytes[..len], bitness);
        }
    }

    #[test]
    fn a_refused_access_changes_no_register(bytes in any::<[u8; 15]>(), gpr in any::<[u64; 16]>(), rflags in any::<u64>()) {
        if let Ok(mmio) = decode(&bytes, Bitness::Bits64) {
            let before = File { gpr, rflags, ..File::default() };
            let mut after = before.clone();
            if mmio.execute(&mut after, &mut Nothing).is_err() {
                prop_assert_eq!(after, before);
            }
        }
    }
}

/// All values of ModRM, SIB and REX for the opcodes of the short decoder, exhaustively.
#[test]
fn the_short_path_decodes_as_the_general_one_for_every_operand() {
    let opcodes: [&[u8]; 10] = [
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xc6],
        &[0xc7],
        &[0x0f, 0xb6],
        &[0x0f, 0xb7],
        &[0x0f, 0xbe],
        &[0x0f, 0xbf],
    ];
    let mut short = 0;
    for opcode in opcodes {
        for rex in 0x3f..=0x4fu8 {
            for modrm in 0..=255u8 {
                for sib in (0..=255u8).step_by(if modrm & 7 == 4 { 1 } else { 64 }) {
                    let mut bytes = Vec::new();
                    bytes.extend((rex >= 0x40).then_some(rex));
                    bytes.extend_from_slice(opcode);
                    bytes.extend([modrm, sib, 0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8]);
                    bytes.truncate(15);
                    short += u32::from(crate::mmio::same_on_both_paths(&bytes, Bitness::Bits64));
                    if rex == 0x3f {
                        short += u32::from(crate::mmio::same_on_both_paths(&bytes, Bitness::Bits32));
                    }
                }
            }
        }
    }
    assert!(short > 100_000, "{short}");
}

#[test]
fn gpr_numbers_are_indices() {
    assert_eq!(Gpr::new(0x17).index(), 7);
}
