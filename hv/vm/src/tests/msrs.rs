//! RDMSR and WRMSR.

use super::guest::*;
use crate::{Exit, Gpr, Instruction};
use std::string::ToString;

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
pub(super) fn read(guest: &mut Guest, register: u64) -> Option<u64> {
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
pub(super) fn write(guest: &mut Guest, register: u64, value: u64) -> bool {
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
    for register in [2, 0x1234, 0x800, 0xc000_0103, 0x4b56_4d00, 0xffff_ffff] {
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
    // MISC_ENABLE, SYSCFG, HWCR, patch level.
    for register in [0x1a0, 0xc001_0010, 0xc001_0015, 0x8b] {
        let value = read(&mut guest, register).expect("the register is there");
        assert!(write(&mut guest, register, value), "{register:#x}");
        assert!(!write(&mut guest, register, value ^ 1 << 11), "{register:#x}");
        assert!(!write(&mut guest, register, value ^ 1 << 40), "{register:#x}");
        assert_eq!(read(&mut guest, register), Some(value));
    }
}

#[test]
fn debugctl_has_lbr_and_btf() {
    let mut guest = Guest::new(&[]);
    for value in [1, 2, 3, 0] {
        assert!(write(&mut guest, 0x1d9, value));
        assert_eq!((read(&mut guest, 0x1d9), guest.vcpu.debugctl), (Some(value), value));
    }
    for bit in 2..64 {
        assert!(!write(&mut guest, 0x1d9, 1 << bit), "bit {bit}");
    }
}

#[test]
fn registers_of_capabilities_can_only_be_read() {
    let mut guest = Guest::new(&[]);
    // MTRRCAP, MCG_CAP, platform info, P5_MC_ADDR and P5_MC_TYPE.
    for (register, expected) in [(0xfe, 0x508), (0x179, 0), (0xce, 0), (0, 0), (1, 0)] {
        assert_eq!(read(&mut guest, register), Some(expected), "{register:#x}");
        assert!(!write(&mut guest, register, expected), "{register:#x}");
    }
}

#[test]
fn mtrrs_keep_what_is_written() {
    let mut guest = Guest::new(&[]);
    assert_eq!(read(&mut guest, 0x2ff), Some(0xc06));
    for (register, value) in
        [(0x2ff, 0x800), (0x250, 0x0101_0101_0101_0101), (0x202, 0x1_0000_0006), (0x203, 0xff_0000_0800)]
    {
        assert!(write(&mut guest, register, value), "{register:#x}");
        assert_eq!(read(&mut guest, register), Some(value));
    }
    assert!(!write(&mut guest, 0x202, 1 << 40), "wider than an address");
}

#[test]
fn machine_checks_have_no_banks_and_a_status() {
    const MCG_STATUS: u64 = 0x17a;
    let mut guest = Guest::new(&[]);
    assert_eq!(read(&mut guest, MCG_STATUS), Some(0));
    assert!(write(&mut guest, MCG_STATUS, 7));
    assert_eq!(read(&mut guest, MCG_STATUS), Some(7));
    assert!(!write(&mut guest, MCG_STATUS, 8));
    // MCG_CTL and the first bank's.
    assert_eq!([0x17b, 0x400].map(|register| read(&mut guest, register)), [None, None]);
}

#[test]
fn misc_enable_says_what_there_is() {
    const MISC_ENABLE: u64 = 0x1a0;
    let mut guest = Guest::new(&[]);
    // Fast strings; no BTS and no PEBS.
    assert_eq!(read(&mut guest, MISC_ENABLE), Some(0x1801));
    assert!(write(&mut guest, MISC_ENABLE, 0x1800));
    for refused in [7, 16, 18, 22, 34] {
        assert!(!write(&mut guest, MISC_ENABLE, 0x1801 | 1 << refused), "bit {refused}");
    }
}

#[test]
fn tsc_and_tsc_adjust_change_together() {
    const TSC_ADJUST: u64 = 0x3b;
    let mut guest = Guest::new(&[]);
    guest.vcpu.tsc = 1000;
    assert_eq!(read(&mut guest, TSC_ADJUST), Some(0));
    assert!(write(&mut guest, TSC_ADJUST, 50));
    assert_eq!((guest.vcpu.tsc, read(&mut guest, TSC_ADJUST)), (1050, Some(50)));
    assert!(write(&mut guest, TSC, 1000));
    assert_eq!((guest.vcpu.tsc, read(&mut guest, TSC_ADJUST)), (1000, Some(0)));
    assert!(write(&mut guest, TSC, 999));
    assert_eq!(read(&mut guest, TSC_ADJUST), Some(u64::MAX), "less than nothing");
}

#[test]
fn a_tsc_that_is_set_past_the_timers_deadline_lets_it_expire() {
    const APIC_BASE: u64 = 0x1b;
    const TSC_DEADLINE: u64 = 0x6e0;
    let mut guest = Guest::new(&[]);
    // x2APIC mode; software-enabled; the timer in TSC-deadline mode with vector 40h.
    assert!(write(&mut guest, APIC_BASE, 0xfee0_0d00));
    assert!(write(&mut guest, 0x80f, 0x1ff));
    assert!(write(&mut guest, 0x832, 2 << 17 | 0x40));
    assert!(write(&mut guest, TSC_DEADLINE, 1_000_000));
    assert_eq!(read(&mut guest, 0x822), Some(0), "the interrupt request register's bits 64 to 95");
    assert!(write(&mut guest, TSC, 1_000_000));
    assert_eq!(read(&mut guest, TSC_DEADLINE), Some(0));
    assert_eq!(read(&mut guest, 0x822), Some(1));
}

#[test]
fn k7_performance_counters_read_zero_and_take_writes() {
    let mut guest = Guest::new(&[]);
    for register in 0xc001_0000..=0xc001_0007 {
        assert!(write(&mut guest, register, 0x0053_0076), "{register:#x}");
        assert_eq!(read(&mut guest, register), Some(0), "{register:#x}");
    }
    assert_eq!(read(&mut guest, 0xc001_0008), None);
}

#[test]
fn amds_workarounds_are_taken_without_effect() {
    const HWCR: u64 = 0xc001_0015;
    const NB_CFG: u64 = 0xc001_001f;
    let mut guest = Guest::new(&[]);
    let tsc_freq_sel = 1 << 24;
    // FFDIS, as Linux sets it on family 0Fh; CF8 accesses to extended configuration space, on family 10h.
    assert!(write(&mut guest, HWCR, tsc_freq_sel | 1 << 6));
    assert_eq!(read(&mut guest, HWCR), Some(tsc_freq_sel));
    assert!(write(&mut guest, NB_CFG, 1 << 46));
    assert_eq!(read(&mut guest, NB_CFG), Some(0));
}

#[test]
fn rdpmc_is_a_general_protection_fault() {
    let mut guest = Guest::new(&[0x0f, 0x33]);
    guest.resumes(Exit::Instruction(Instruction::Rdpmc));
    assert_eq!((guest.vcpu.raised(), guest.vcpu.rip), (REFUSED, CODE));
}

#[test]
fn registers_that_are_not_there_are_counted_and_refused_values_are_not() {
    let mut guest = Guest::new(&[]);
    assert!(guest.handler.context.stats().wanted_msrs().is_empty());
    assert!(!write(&mut guest, PAT, 2));
    assert!(!write(&mut guest, 0x2ff, 2));
    assert!(!write(&mut guest, 0x1a0, 0));
    assert!(guest.handler.context.stats().wanted_msrs().is_empty());
    assert_eq!(read(&mut guest, 0xc001_0141), None);
    assert!(!write(&mut guest, 0xc001_0141, 0));
    assert_eq!(read(&mut guest, 0x3a), None);
    let told = guest.handler.context.stats().wanted_msrs().to_string();
    assert_eq!(told, "MSRs that the guest does not have: 0xc0010141 2 times, 0x3a 1 times");
}
