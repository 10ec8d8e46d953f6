//! Whatever CPUID promises is there, and what it does not promise is not.

use super::guest::*;
use super::msrs::{read, write};
use crate::cpuid::{CpuModel, Leaf, Table, Topology};
use arch::features::{FEATURES, FeatureSet, Promise};
use arch::{CR4_PCE, CR4_SMEP, EFER_LMA, EFER_NXE};
use std::vec::Vec;

const ALL: Leaf = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };

/// Processors that have everything, of each vendor, and one that has nothing.
const PROCESSORS: [fn(u32, u32) -> Leaf; 3] = [intel, amd, bare];

fn intel(leaf: u32, _: u32) -> Leaf {
    match leaf {
        0 => Leaf { eax: 0x16, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 },
        0x8000_0000 => Leaf { eax: 0x8000_0008, ..Leaf::default() },
        0x8000_0008 => Leaf { eax: 0x3028, ..Leaf::default() },
        _ => ALL,
    }
}

fn amd(leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        0 => Leaf { eax: 0xd, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
        _ => intel(leaf, subleaf),
    }
}

fn bare(leaf: u32, subleaf: u32) -> Leaf {
    match leaf {
        0 | 0x8000_0000 | 0x8000_0008 => amd(leaf, subleaf),
        _ => Leaf::default(),
    }
}

fn table(host: fn(u32, u32) -> Leaf) -> Table {
    Table::new(host, Topology { index: 0, vcpus: 1 })
}

#[test]
fn every_feature_of_the_table_can_be_shown() {
    let shown: Vec<_> = table(amd).promises().collect();
    assert_eq!(shown, FEATURES.iter().flat_map(|feature| feature.promises.iter().copied()).collect::<Vec<_>>());
}

#[test]
fn every_register_that_a_feature_promises_is_there() {
    for host in PROCESSORS {
        let mut guest = Guest::with_cpuid(&[], host);
        for promise in table(host).promises() {
            if let Promise::ReadMsr(register) | Promise::Msr(register) = promise {
                let value = read(&mut guest, register.into());
                assert!(value.is_some(), "RDMSR of {register:#x}");
                if let (Promise::Msr(_), Some(value)) = (promise, value) {
                    assert!(write(&mut guest, register.into(), value), "WRMSR of {register:#x}");
                }
            }
        }
    }
}

/// Processors without the features of these names, of those that there can be.
fn without(names: &[&str]) -> CpuModel {
    let mut hidden = FeatureSet::EMPTY;
    names.iter().for_each(|name| assert!(hidden.insert(name), "{name}"));
    CpuModel { long_mode: true, hidden }
}

#[test]
fn what_a_model_lacks_is_not_shown_and_its_bits_cannot_be_set() {
    let names = ["x2apic", "smep", "sse2", "apic", "mmx", "nx"];
    let model = without(&names);
    let lacking = table(amd).of_model(model);
    assert_eq!(lacking.missing(model.hidden).map(|feature| feature.name), Some("apic"), "the first of them");
    let has = |table: &Table, leaf, bit: u32| table.get(leaf, 0).edx & 1 << bit != 0;
    assert!(has(&table(amd), 0x8000_0001, 23) && !has(&lacking, 0x8000_0001, 23), "AMD's copy of the bit");
    assert_eq!(table(amd).cr4_bits() & !lacking.cr4_bits(), CR4_SMEP);
    assert_eq!(table(amd).efer_bits() & !lacking.efer_bits(), EFER_NXE);
    for feature in FEATURES {
        let mut one = FeatureSet::EMPTY;
        one.insert(feature.name);
        assert_eq!(lacking.missing(one).is_some(), names.contains(&feature.name), "{}", feature.name);
    }
}

#[test]
fn without_x2apic_its_mode_cannot_be_entered() {
    for (model, works) in [(without(&[]), true), (without(&["x2apic"]), false)] {
        let mut guest = Guest::of_model(&[], model);
        assert_eq!(write(&mut guest, x86::msr::IA32_APIC_BASE.into(), 0xfee0_0d00), works);
        assert!(write(&mut guest, x86::msr::IA32_APIC_BASE.into(), if works { 0xfee0_0d00 } else { 0xfee0_0900 }));
    }
}

#[test]
fn an_apic_that_is_hidden_stays_so() {
    let mut guest = Guest::of_model(&[], without(&["apic"]));
    assert!(write(&mut guest, x86::msr::IA32_APIC_BASE.into(), 0xfee0_0900));
    assert_eq!(guest.handler.context.cpuid.get(1, 0).edx & 1 << 9, 0);
}

#[test]
fn every_bit_of_cr4_that_a_feature_promises_can_be_set_and_no_other() {
    // All but CR4's bits of LA57, VMX, SMX, PCID, XSAVE, protection keys and CET.
    assert_eq!(table(intel).cr4_bits(), 0x31_0fff);
    assert_eq!(table(amd).cr4_bits(), 0x31_0fff);
    assert_eq!(table(bare).cr4_bits(), CR4_PCE);
}

#[test]
fn every_bit_of_efer_that_a_feature_promises_can_be_set() {
    for promise in table(amd).promises() {
        if let Promise::Efer(bit) = promise {
            let mut guest = Guest::with_cpuid(&[], amd);
            guest.vcpu.control = Guest::flat_32(&[]).vcpu.control;
            assert!(write(&mut guest, x86::msr::IA32_EFER.into(), bit), "{bit:#x}");
            assert_eq!(guest.vcpu.control.efer & !EFER_LMA, bit);
        }
    }
}

#[test]
fn a_bit_of_efer_that_is_not_shown_cannot_be_set() {
    let mut guest = Guest::of_model(&[], without(&["nx"]));
    guest.vcpu.control = Guest::flat_32(&[]).vcpu.control;
    assert!(!write(&mut guest, x86::msr::IA32_EFER.into(), EFER_NXE));
}
