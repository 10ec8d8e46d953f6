//! RDMSR and WRMSR.

use super::guest::*;
use crate::{Exit, Gpr};

const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];

const EFER: u64 = 0xc000_0080;
const PAT: u64 = 0x277;
const TSC: u64 = 0x10;

const SCE: u64 = 1;
const NXE: u64 = 1 << 11;

const REFUSED: Option<(u8, Option<u32>)> = Some((13, Some(0)));

/// RDMSR: the value, or None for #GP(0), which leaves everything as it was.
#[track_caller]
fn read(guest: &mut Guest, register: u64) -> Option<u64> {
    guest.code_at(CODE, &RDMSR);
    // The registers' upper halves do not count, and are cleared.
    guest.set(Gpr::RAX, u64::MAX).set(Gpr::RDX, u64::MAX).set(Gpr::RCX, register | 0xffff_ffff << 32);
    let before = guest.vcpu.gprs;
    guest.resumes(Exit::ReadMsr);
    let (low, high) = (guest.get(Gpr::RAX), guest.get(Gpr::RDX));
    if guest.vcpu.event.is_some() {
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip, guest.vcpu.gprs), (REFUSED, CODE, before));
        guest.vcpu.event = None;
        return None;
    }
    assert_eq!((guest.vcpu.rip, low >> 32, high >> 32), (CODE + 2, 0, 0));
    Some(high << 32 | low)
}

/// WRMSR: whether it was taken; else #GP(0) was raised and everything left as it was.
#[track_caller]
fn write(guest: &mut Guest, register: u64, value: u64) -> bool {
    const JUNK: u64 = 0xdead_beef << 32;
    guest.code_at(CODE, &WRMSR);
    guest.set(Gpr::RAX, value & 0xffff_ffff | JUNK).set(Gpr::RDX, value >> 32 | JUNK).set(Gpr::RCX, register | JUNK);
    let before = (guest.vcpu.gprs, guest.vcpu.control, guest.vcpu.pat, guest.vcpu.tsc);
    guest.resumes(Exit::WriteMsr);
    assert_eq!(guest.vcpu.gprs, before.0);
    if guest.vcpu.event.is_some() {
        let after = (guest.vcpu.gprs, guest.vcpu.control, guest.vcpu.pat, guest.vcpu.tsc);
        assert_eq!((guest.vcpu.raised(), guest.vcpu.rip, after), (REFUSED, CODE, before));
        guest.vcpu.event = None;
        return false;
    }
    assert_eq!(guest.vcpu.rip, CODE + 2);
    true
}

#[test]
fn an_unknown_register_is_a_general_protection_fault() {
    let mut guest = Guest::new(&[]);
    for register in [0, 0x1234, 0x800, 0xc000_0103, 0x4b56_4d00, 0xffff_ffff] {
        assert_eq!(read(&mut guest, register), None, "{register:#x}");
        assert!(!write(&mut guest, register, 0), "{register:#x}");
    }
}

#[test]
fn values_are_split_between_eax_and_edx() {
    let mut guest = Guest::new(&[]);
    guest.vcpu.tsc = 0x1234_5678_9abc_def0;
    assert_eq!(read(&mut guest, TSC), Some(0x1234_5678_9abc_def0));
    assert!(write(&mut guest, TSC, 0xfedc_ba98_7654_3210));
    assert_eq!(guest.vcpu.tsc, 0xfedc_ba98_7654_3210);
}

#[test]
fn efer_refuses_reserved_bits_and_what_the_guest_is_not_offered() {
    const SVME: u64 = 1 << 12;
    for bit in [1, 2, 7, 9, SVME.trailing_zeros(), 13, 15, 31, 32, 63] {
        let mut guest = Guest::flat_32(&[]);
        assert!(!write(&mut guest, EFER, 1 << bit), "bit {bit}");
    }
}

#[test]
fn efer_takes_the_bits_that_the_guest_is_offered() {
    let mut guest = Guest::flat_32(&[]);
    assert!(write(&mut guest, EFER, SCE | LME | NXE));
    assert_eq!(read(&mut guest, EFER), Some(SCE | LME | NXE));
    assert!(write(&mut guest, EFER, 0));
    assert_eq!(read(&mut guest, EFER), Some(0));
}

#[test]
fn lme_does_not_change_while_paging_is_on() {
    let mut guest = Guest::new(&[]);
    assert!(!write(&mut guest, EFER, LMA));
    assert!(!write(&mut guest, EFER, 0));
    let mut guest = Guest::flat_32(&[]);
    // 32-bit paging, its directory's first entry a 4 MiB page at 0.
    guest.vcpu.control.cr0 |= PG;
    guest.vcpu.control.cr3 = PDPT;
    guest.vcpu.control.cr4 = 1 << 4;
    guest.memory().put_u64(PDPT, PRESENT | LARGE);
    assert!(!write(&mut guest, EFER, LME));
    assert!(write(&mut guest, EFER, SCE));
}

#[test]
fn lma_is_not_the_guests_to_write() {
    let mut guest = Guest::new(&[]);
    assert!(write(&mut guest, EFER, LME | NXE));
    assert_eq!(read(&mut guest, EFER), Some(LME | LMA | NXE));
    let mut guest = Guest::flat_32(&[]);
    assert!(write(&mut guest, EFER, LME | LMA));
    assert_eq!(read(&mut guest, EFER), Some(LME));
}

#[test]
fn pat_holds_memory_types_only() {
    let mut guest = Guest::new(&[]);
    for value in [0x0007_0406_0007_0406, 0x0706_0504_0100_0506, 0] {
        assert!(write(&mut guest, PAT, value));
        assert_eq!(read(&mut guest, PAT), Some(value));
    }
    for field in 0..8 {
        for wrong in [2, 3, 8, 0x10, 0x80, 0xff] {
            assert!(!write(&mut guest, PAT, wrong << (field * 8)), "{wrong} in field {field}");
        }
    }
}

#[test]
fn constant_registers_take_their_own_value_back_and_no_other() {
    let mut guest = Guest::new(&[]);
    // MTRR_DEF_TYPE, MISC_ENABLE, SYSCFG, HWCR, patch level, DEBUGCTL.
    for register in [0x2ff, 0x1a0, 0xc001_0010, 0xc001_0015, 0x8b, 0x1d9] {
        let value = read(&mut guest, register).expect("the register is there");
        assert!(write(&mut guest, register, value), "{register:#x}");
        assert!(!write(&mut guest, register, value ^ 1 << 11), "{register:#x}");
        assert!(!write(&mut guest, register, value ^ 1 << 40), "{register:#x}");
        assert_eq!(read(&mut guest, register), Some(value));
    }
}

#[test]
fn the_mtrr_capabilities_can_only_be_read() {
    let mut guest = Guest::new(&[]);
    let value = read(&mut guest, 0xfe).expect("MTRRCAP is there");
    assert_eq!(value & 0x1ff, 0, "no variable and no fixed ranges");
    assert!(!write(&mut guest, 0xfe, value));
}
