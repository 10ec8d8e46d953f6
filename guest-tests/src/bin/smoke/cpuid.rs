//! CPUID.

use guest::boot::Boot;
use guest::cpuid::{HYPERVISOR_LEAF, Leaf, cpuid, hypervisor_bit};
use guest::ktap::Outcome;
use guest::processor::{self, Cr4};
use guest::{check, check_eq, skip_unless};

const EXTENDED: u32 = 0x8000_0000;
const ECX_XSAVE: u32 = 1 << 26;
const ECX_OSXSAVE: u32 = 1 << 27;

pub(crate) fn vendor_is_text(_: &Boot) -> Outcome {
    let vendor = cpuid(0, 0).vendor();
    check!(vendor.iter().all(|letter| (b' '..=b'~').contains(letter)), "vendor {vendor:x?}");
    Ok(())
}

/// Long mode cannot be found without leaf 0x8000_0001, nor the width of addresses without 0x8000_0008.
pub(crate) fn leaf_limits(_: &Boot) -> Outcome {
    let (basic, extended) = (cpuid(0, 0).eax, cpuid(EXTENDED, 0).eax);
    check!((1..HYPERVISOR_LEAF).contains(&basic), "basic {basic:#x}");
    check!((EXTENDED + 8..EXTENDED + 0x1000).contains(&extended), "extended {extended:#x}");
    Ok(())
}

pub(crate) fn hypervisor_bit_agrees_with_its_leaf(_: &Boot) -> Outcome {
    skip_unless!(hypervisor_bit(), "no hypervisor says that it is there");
    let leaf = cpuid(HYPERVISOR_LEAF, 0);
    // 0 is what old versions of KVM say.
    check!(leaf.eax == 0 || (HYPERVISOR_LEAF..HYPERVISOR_LEAF + 0x1_0000).contains(&leaf.eax), "limit {:#x}", leaf.eax);
    let signature = leaf.signature();
    check!(signature[0].is_ascii_graphic(), "signature {signature:x?}");
    Ok(())
}

pub(crate) fn same_leaf_same_answer(_: &Boot) -> Outcome {
    for leaf in (0..=cpuid(0, 0).eax).chain(EXTENDED..=cpuid(EXTENDED, 0).eax) {
        check_eq!(cpuid(leaf, 0), cpuid(leaf, 0), "of leaf {leaf:#x}");
    }
    Ok(())
}

/// AMD's processors answer with zeros, Intel's with the highest basic leaf.
pub(crate) fn leaf_beyond_the_limit(_: &Boot) -> Outcome {
    let highest = cpuid(0, 0).eax;
    for leaf in [highest + 1, cpuid(EXTENDED, 0).eax + 1] {
        let answer = cpuid(leaf, 0);
        check!(answer == Leaf::ZERO || answer == cpuid(highest, 0), "leaf {leaf:#x} gives {answer:x?}");
    }
    Ok(())
}

pub(crate) fn osxsave_follows_cr4(_: &Boot) -> Outcome {
    skip_unless!(cpuid(1, 0).ecx & ECX_XSAVE != 0, "no XSAVE");
    for on in [true, false] {
        processor::set_cr4(Cr4::OsXsave, on);
        check_eq!(cpuid(1, 0).ecx & ECX_OSXSAVE != 0, on);
    }
    Ok(())
}
