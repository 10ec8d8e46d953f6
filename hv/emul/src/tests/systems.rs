use super::File;
use crate::system::{Decoded, StatusWord, System, decode, write_gpr};
use crate::{Bitness, DecodeError, Gpr, Width};
use addr::Gva;

fn of(bytes: &[u8]) -> System {
    let Decoded { system, length } = decode(bytes, Bitness::Bits64).unwrap();
    assert_eq!(length, bytes.len() as u64);
    system
}

#[test]
fn control_and_debug_registers() {
    assert_eq!(of(&[0x0f, 0x22, 0xd8]), System::WriteCr { cr: 3, from: Gpr::RAX });
    assert_eq!(of(&[0x0f, 0x20, 0xc3]), System::ReadCr { cr: 0, to: Gpr::RBX });
    assert_eq!(of(&[0x44, 0x0f, 0x22, 0xc7]), System::WriteCr { cr: 8, from: Gpr::RDI });
    assert_eq!(of(&[0x41, 0x0f, 0x20, 0xe7]), System::ReadCr { cr: 4, to: Gpr::new(15) });
    assert_eq!(of(&[0x0f, 0x23, 0xf8]), System::WriteDr { dr: 7, from: Gpr::RAX });
    assert_eq!(of(&[0x0f, 0x21, 0xf1]), System::ReadDr { dr: 6, to: Gpr::RCX });
    assert_eq!(of(&[0x0f, 0x06]), System::Clts);
    // A MOV between general registers is another instruction; CR5 does not exist.
    assert_eq!(decode(&[0x48, 0x89, 0xc3], Bitness::Bits64), Err(DecodeError::Unexpected));
    assert_eq!(decode(&[0x0f, 0x22, 0xe8], Bitness::Bits64), Err(DecodeError::Invalid));
}

#[test]
fn the_status_word_goes_to_registers_of_three_widths_and_to_memory() {
    assert_eq!(of(&[0x0f, 0x01, 0xf0]), System::Lmsw(StatusWord::Register(Gpr::RAX)));
    let smsw = |bytes: &[u8]| match of(bytes) {
        System::Smsw { to, width } => (matches!(to, StatusWord::Memory(_)), width),
        other => panic!("{other:?}"),
    };
    assert_eq!(smsw(&[0x0f, 0x01, 0xe1]), (false, Width::Dword));
    assert_eq!(smsw(&[0x66, 0x0f, 0x01, 0xe1]), (false, Width::Word));
    assert_eq!(smsw(&[0x48, 0x0f, 0x01, 0xe1]), (false, Width::Qword));
    assert_eq!(smsw(&[0x0f, 0x01, 0x20]), (true, Width::Word));
}

#[test]
fn invlpg_computes_its_address() {
    let mut file = File { rip: 0x1000, ..File::default() };
    file.gpr = core::array::from_fn(|n| 0x1_0000 * n as u64);
    file.bases[5] = 0x77_0000_0000;
    file.bases[3] = 0xffff_0000;
    let at = |bytes: &[u8], bitness| match decode(bytes, bitness).unwrap().system {
        System::Invlpg(address) => address.linear(&file),
        other => panic!("{other:?}"),
    };
    use Bitness::*;
    assert_eq!(at(&[0x0f, 0x01, 0x3b], Bits64), Gva::new(0x3_0000));
    assert_eq!(at(&[0x0f, 0x01, 0x7c, 0x8b, 0xff], Bits64), Gva::new(0x3_0000 + 4 * 0x1_0000 - 1));
    assert_eq!(at(&[0x65, 0x0f, 0x01, 0x38], Bits64), Gva::new(0x77_0000_0000));
    // Relative to the next instruction.
    assert_eq!(at(&[0x0f, 0x01, 0x3d, 0x10, 0, 0, 0], Bits64), Gva::new(0x1017));
    // A 32-bit address wraps at 32 bits, as does the linear address of 32-bit code.
    assert_eq!(at(&[0x67, 0x0f, 0x01, 0x78, 0xff], Bits64), Gva::new(0xffff_ffff));
    assert_eq!(at(&[0x0f, 0x01, 0x3b], Bits32), Gva::new(0x2_0000));
    // 16-bit addressing: BX + SI + 8.
    assert_eq!(at(&[0x67, 0x0f, 0x01, 0x78, 0x08], Bits32), Gva::new(0xffff_0008));
}

#[test]
fn writes_of_a_width_keep_or_clear_the_other_bits_as_instructions_do() {
    let written = |width| {
        let mut file = File::default();
        file.gpr[3] = 0x1111_1111_1111_1111;
        write_gpr(&mut file, Gpr::RBX, width, 0xffff_ffff_ffff_fffe);
        file.gpr[3]
    };
    assert_eq!(written(Width::Byte), 0x1111_1111_1111_11fe);
    assert_eq!(written(Width::Word), 0x1111_1111_1111_fffe);
    assert_eq!(written(Width::Dword), 0xffff_fffe);
    assert_eq!(written(Width::Qword), 0xffff_ffff_ffff_fffe);
}
