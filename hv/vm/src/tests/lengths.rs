//! Where the guest goes on.

use super::guest::*;
use crate::{Exit, Flow, Gpr, Stop};

const CPUID: [u8; 2] = [0x0f, 0xa2];

#[test]
fn an_instruction_is_as_long_as_its_bytes_say() {
    for (bytes, length) in [
        (&[0x0f, 0xa2][..], 2),
        (&[0x66, 0x0f, 0xa2], 3),
        (&[0x48, 0x0f, 0xa2], 3),
        (&[0xf3, 0x2e, 0x41, 0x0f, 0xa2], 5),
        (&[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0xa2], 15),
    ] {
        let mut guest = Guest::new(bytes);
        guest.resumes(Exit::Cpuid);
        assert_eq!(guest.vcpu.rip, CODE + length, "{bytes:02x?}");
    }
}

#[test]
fn protected_and_real_mode_code_is_found_by_its_segment() {
    let mut guest = Guest::flat_32(&[0x67, 0x0f, 0xa2]);
    guest.resumes(Exit::Cpuid);
    assert_eq!(guest.vcpu.rip, CODE + 3);

    for bytes in [&[0x0f, 0xa2][..], &[0x66, 0x0f, 0xa2]] {
        let mut guest = Guest::real(bytes);
        guest.resumes(Exit::Cpuid);
        assert_eq!(guest.vcpu.rip, bytes.len() as u64);
    }
}

#[test]
fn eip_wraps_at_4_gib() {
    for bytes in [&CPUID[..], &[0x66, 0x0f, 0xa2]] {
        let mut guest = Guest::flat_32(bytes);
        guest.vcpu.rip = 0xffff_fffe;
        guest.vcpu.segments[1].base = CODE + 2;
        guest.resumes(Exit::Cpuid);
        assert_eq!(guest.vcpu.rip, bytes.len() as u64 - 2);
    }
}

#[test]
fn linear_addresses_of_compatibility_mode_wrap_at_4_gib() {
    let mut guest = Guest::new(&CPUID);
    guest.vcpu.segments[1] = crate::SegmentState { base: 0xffff_f000, ..Guest::flat_32(&[]).vcpu.segments[1] };
    guest.vcpu.rip = CODE + 0x1000;
    guest.resumes(Exit::Cpuid);
    assert_eq!(guest.vcpu.rip, CODE + 0x1002);
}

#[test]
fn an_instruction_may_lie_in_two_pages() {
    let mut guest = Guest::new(&[]);
    guest.code_at(CODE + 0xfff, &CPUID);
    guest.resumes(Exit::Cpuid);
    assert_eq!(guest.vcpu.rip, CODE + 0x1001);
}

#[test]
fn what_follows_the_instruction_need_not_be_there() {
    for absent in [0, HOLE | PRESENT] {
        let mut guest = Guest::new(&[]);
        guest.code_at(CODE + 0xffe, &CPUID);
        guest.map(CODE + 0x1000, absent);
        guest.resumes(Exit::Cpuid);
        assert_eq!((guest.vcpu.rip, guest.vcpu.raised()), (CODE + 0x1000, None));
    }
}

#[test]
fn where_the_hardware_tells_the_next_rip_nothing_is_fetched() {
    for exit in [Exit::Cpuid, Exit::Hypercall, Exit::ReadMsr, Exit::WriteMsr] {
        let mut guest = Guest::new(&[]);
        guest.set(Gpr::RCX, 0x277).set(Gpr::RAX, 0x0006_0406);
        guest.vcpu.next_rip = Some(0x1234);
        guest.resumes(exit);
        assert_eq!((guest.vcpu.rip, guest.memory().accesses.get()), (0x1234, 0), "{exit:?}");
    }
}

#[test]
fn going_on_ends_the_interrupt_shadow() {
    for next_rip in [None, Some(CODE + 2)] {
        let mut guest = Guest::new(&CPUID);
        guest.vcpu.next_rip = next_rip;
        guest.vcpu.shadow = true;
        guest.resumes(Exit::Cpuid);
        assert!(!guest.vcpu.shadow);
    }
}

#[test]
fn the_bytes_are_those_of_now_after_the_guest_has_changed_its_tables() {
    let mut guest = Guest::new(&CPUID);
    guest.memory().put(DATA, &[0x66, 0x0f, 0xa2]);
    guest.resumes(Exit::Cpuid);
    guest.vcpu.rip = CODE;
    guest.map(CODE, DATA | PRESENT);
    guest.resumes(Exit::Cpuid);
    assert_eq!(guest.vcpu.rip, CODE + 3);
}

#[test]
fn bytes_that_became_another_instruction_are_left_to_the_processor() {
    let mut guest = Guest::new(&[0x90]);
    guest.resumes(Exit::Cpuid);
    assert_eq!((guest.vcpu.rip, guest.vcpu.raised()), (CODE, None));
}

#[test]
fn bytes_that_became_no_instruction_are_undefined() {
    let mut guest = Guest::new(&[0x06]);
    guest.resumes(Exit::Cpuid);
    assert_eq!((guest.vcpu.rip, guest.vcpu.raised()), (CODE, Some((6, None))));
}

#[test]
fn code_that_the_guest_has_taken_away_faults() {
    let mut guest = Guest::new(&CPUID);
    guest.protect(CODE, 0);
    guest.resumes(Exit::Cpuid);
    assert_eq!((guest.vcpu.rip, guest.vcpu.raised(), guest.vcpu.cr2), (CODE, Some((14, Some(0))), CODE));
}

#[test]
fn user_code_is_fetched_with_user_rights() {
    let mut guest = Guest::new(&CPUID);
    guest.vcpu.control.cpl = 3;
    guest.resumes(Exit::Cpuid);
    assert_eq!(guest.vcpu.rip, CODE + 2);
    guest.vcpu.rip = CODE;
    guest.protect(CODE, PRESENT);
    guest.resumes(Exit::Cpuid);
    assert_eq!((guest.vcpu.rip, guest.vcpu.raised()), (CODE, Some((14, Some(5)))));
}

#[test]
fn code_at_an_address_that_is_not_canonical_is_a_general_protection_fault() {
    let mut guest = Guest::new(&CPUID);
    guest.vcpu.rip = 0x8000_0000_0000;
    guest.resumes(Exit::Cpuid);
    assert_eq!(guest.vcpu.raised(), Some((13, Some(0))));
}

#[test]
fn code_outside_memory_ends_the_vm() {
    let mut guest = Guest::new(&CPUID);
    guest.vcpu.rip = HOLE;
    assert!(guest.unhandled(Exit::Cpuid).contains("not in memory"));
}

/// Entries without memory read as ones, of which some are reserved bits.
#[test]
fn tables_outside_memory_are_a_page_fault() {
    let mut guest = Guest::new(&CPUID);
    guest.vcpu.control.cr3 = HOLE;
    guest.resumes(Exit::Cpuid);
    assert_eq!((guest.vcpu.raised(), guest.vcpu.cr2), (Some((14, Some(9))), CODE));
}

#[test]
fn an_instruction_that_goes_on_where_nothing_can_be_fetched_ends_the_vm() {
    let mut guest = Guest::new(&[]);
    guest.code_at(CODE + 0xfff, &CPUID);
    guest.protect(CODE + 0x1000, 0);
    assert!(matches!(guest.handle(Exit::Cpuid), Flow::Stop(Stop::Unhandled(_))));
}

#[test]
fn the_bytes_shown_are_those_at_the_instruction_pointer() {
    let mut guest = Guest::new(&CPUID);
    let bytes = guest.handler.code(&guest.vcpu).expect("the page is there");
    assert_eq!(bytes.bytes(), [0x0f, 0xa2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    guest.vcpu.rip = HOLE;
    assert!(guest.handler.code(&guest.vcpu).is_none());
}

#[test]
fn tables_are_read_as_the_guests_processor_would() {
    use crate::cpuid::Leaf;
    fn without_1g_pages(leaf: u32, subleaf: u32) -> Leaf {
        let answer = processor(leaf, subleaf);
        Leaf { edx: if leaf == 0x8000_0001 { answer.edx & !(1 << 26) } else { answer.edx }, ..answer }
    }
    fn intel(leaf: u32, subleaf: u32) -> Leaf {
        match leaf {
            0 => Leaf { eax: 0xd, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 },
            _ => processor(leaf, subleaf),
        }
    }
    const GIGANTIC: u64 = PRESENT | LARGE;
    const BIT_8: u64 = 1 << 8;
    const BIT_40: u64 = 1 << 40;
    let reserved = Some((14, Some(9)));
    for (host, pml4e, pdpte, raised) in [
        (processor as crate::cpuid::HostCpuid, PDPT | PRESENT, GIGANTIC, None),
        (without_1g_pages, PDPT | PRESENT, GIGANTIC, reserved),
        (processor, PDPT | PRESENT | BIT_8, GIGANTIC, reserved),
        (intel, PDPT | PRESENT | BIT_8, GIGANTIC, None),
        (processor, PDPT | PRESENT, GIGANTIC | BIT_40, reserved),
    ] {
        let mut guest = Guest::with_cpuid(&CPUID, host);
        guest.memory().put_u64(PML4, pml4e);
        guest.memory().put_u64(PDPT, pdpte);
        guest.resumes(Exit::Cpuid);
        assert_eq!(guest.vcpu.raised(), raised, "{pml4e:#x} {pdpte:#x}");
    }
}

#[test]
fn a_4_mib_page_reaches_beyond_4_gib_where_the_guests_processor_has_pse36() {
    use crate::cpuid::Leaf;
    const PSE: u64 = 1 << 4;
    /// Address bit 32.
    const BIT_13: u64 = 1 << 13;
    fn without_pse36(leaf: u32, subleaf: u32) -> Leaf {
        let answer = processor(leaf, subleaf);
        Leaf { edx: if leaf == 1 { answer.edx & !(1 << 17) } else { answer.edx }, ..answer }
    }
    for (host, far) in [(processor as crate::cpuid::HostCpuid, true), (without_pse36, false)] {
        let mut guest = Guest::with_cpuid(&CPUID, host);
        let control = crate::ControlRegisters { cr0: PE | PG, cr3: PDPT, cr4: PSE, efer: 0, cpl: 0 };
        guest.vcpu.control = control;
        guest.vcpu.segments[1] = Guest::flat_32(&[]).vcpu.segments[1];
        guest.memory().put_u64(PDPT, PRESENT | LARGE | BIT_13);
        if far {
            assert!(guest.unhandled(Exit::Cpuid).contains("not in memory"));
        } else {
            guest.resumes(Exit::Cpuid);
            assert_eq!(guest.vcpu.raised(), Some((14, Some(9))));
        }
    }
}

#[test]
fn cpuid_answers_from_the_table_in_32_bits() {
    let mut guest = Guest::new(&CPUID);
    for register in [Gpr::RBX, Gpr::RDX] {
        guest.set(register, u64::MAX);
    }
    guest.set(Gpr::RAX, 0xdead_beef_4000_0000).set(Gpr::RCX, u64::MAX);
    guest.resumes(Exit::Cpuid);
    let answer = [Gpr::RBX, Gpr::RCX, Gpr::RDX].map(|register| guest.get(register));
    assert_eq!(guest.get(Gpr::RAX), 0x4000_0000);
    assert_eq!(answer, [*b"micr", *b"ohv-", *b"rust"].map(|word| u32::from_le_bytes(word).into()));
}
