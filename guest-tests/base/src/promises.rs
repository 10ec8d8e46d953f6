//! What CPUID promises, by the table that the hypervisor makes its CPUID of ([`arch::features`]), tried out; and that what it does
//! not promise is not there.

use arch::features::{FEATURES, Feature, Promise, Register};
use arch::msr::{HWCR, NB_CFG, PATCH_LEVEL, PERF_CTR3, PERF_EVT_SEL0, SYSCFG};
use arch::{CR4_PCE, EFER_LMA};
use x86::irq::{GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR};
use x86::msr as numbers;

use crate::boot::Boot;
use crate::cpuid::{Hypervisor, cpuid, hypervisor};
use crate::exit::GuestStatus;
use crate::ktap::{self, Outcome};
use crate::{cases, check, check_eq, control, msr, println, ram, skip_unless};

/// What the tests work with.
struct Trial<'a> {
    boot: &'a Boot,
    vector_of: VectorOf,
}

/// Runs its argument, and gives the vector of the exception that ended it, if one did.
pub type VectorOf = fn(&mut dyn FnMut()) -> Option<u8>;

const UNDEFINED: Option<u8> = Some(INVALID_OPCODE_VECTOR);
const PROTECTION: Option<u8> = Some(GENERAL_PROTECTION_FAULT_VECTOR);

/// Runs all tests.
pub fn run(boot: &Boot, vector_of: VectorOf) -> GuestStatus {
    ktap::run(
        &Trial { boot, vector_of },
        cases![
            some_features_are_shown,
            msrs,
            bits_of_cr4,
            no_other_bit_of_cr4,
            bits_of_efer,
            no_other_bit_of_efer,
            instructions,
            absent_instructions,
            msrs_that_kernels_use_unasked,
            msrs_of_no_processor,
        ],
    )
}

impl Trial<'_> {
    fn vector_of(&self, mut body: impl FnMut()) -> Option<u8> {
        (self.vector_of)(&mut body)
    }
}

/// Whether CPUID shows the feature.
fn is_shown(feature: &Feature) -> bool {
    let last = cpuid(feature.leaf & 1 << 31, 0).eax;
    if feature.leaf > last {
        return false;
    }
    let leaf = cpuid(feature.leaf, 0);
    let register = match feature.register {
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    };
    register & 1 << feature.bit != 0
}

/// Each feature that is shown, with each of its promises.
fn promises() -> impl Iterator<Item = (&'static Feature, Promise)> {
    FEATURES
        .iter()
        .filter(|feature| is_shown(feature))
        .flat_map(|feature| feature.promises.iter().map(move |promise| (feature, *promise)))
}

fn promised_bits(of: impl Fn(Promise) -> u64) -> u64 {
    promises().fold(0, |bits, (_, promise)| bits | of(promise))
}

fn cr4_bits(promise: Promise) -> u64 {
    if let Promise::Cr4(bits) = promise { bits } else { 0 }
}

fn efer_bits(promise: Promise) -> u64 {
    if let Promise::Efer(bit) = promise { bit } else { 0 }
}

/// Each bit of a register of 64-bit mode, or of 32 bits where the code has no other.
fn each_bit(width: u32) -> impl Iterator<Item = u64> {
    (0..width).map(|bit| 1 << bit)
}

/// Which features there are, for people.
fn some_features_are_shown(_: &Trial<'_>) -> Outcome {
    FEATURES.iter().filter(|feature| is_shown(feature)).for_each(|feature| println!("# feature {}", feature.name));
    check!(FEATURES.iter().any(is_shown));
    Ok(())
}

/// They can be read, and take back what was read.
fn msrs(trial: &Trial<'_>) -> Outcome {
    for (Feature { name, .. }, promise) in promises() {
        match promise {
            Promise::ReadMsr(register) => {
                check_eq!(trial.vector_of(|| _ = msr::read(register)), None, "{name}: RDMSR of {register:#x}");
            }
            Promise::Msr(register) | Promise::OwnMsr(register) => {
                check_eq!(trial.vector_of(|| _ = msr::read(register)), None, "{name}: RDMSR of {register:#x}");
                check_eq!(trial.vector_of(|| msr::write_back(register)), None, "{name}: WRMSR of {register:#x}");
            }
            Promise::Cr4(_) | Promise::Efer(_) | Promise::Instruction(_) | Promise::Instruction64(_) => {}
        }
    }
    Ok(())
}

/// All can be set, each alone.
fn bits_of_cr4(trial: &Trial<'_>) -> Outcome {
    for (Feature { name, .. }, promise) in promises() {
        let bits = cr4_bits(promise);
        let mut after = 0;
        check_eq!(trial.vector_of(|| after = control::try_cr4(bits)), None, "{name}: CR4 with {bits:#x}");
        check_eq!(after & bits, bits, "{name}");
    }
    Ok(())
}

/// No other can be set. (PCE goes with RDPMC, which has no bit of CPUID's.)
fn no_other_bit_of_cr4(trial: &Trial<'_>) -> Outcome {
    skip_unless!(is_ours(), "QEMU sets VME without offering it, and leaves others clear without an exception");
    let absent = !(promised_bits(cr4_bits) | CR4_PCE);
    for bit in each_bit(usize::BITS).filter(|bit| absent & bit != 0) {
        check_eq!(trial.vector_of(|| _ = control::try_cr4(bit)), PROTECTION, "CR4 with {bit:#x}");
    }
    Ok(())
}

/// All can be set, each alone.
fn bits_of_efer(trial: &Trial<'_>) -> Outcome {
    for (Feature { name, .. }, promise) in promises() {
        let bit = efer_bits(promise);
        let mut after = 0;
        check_eq!(trial.vector_of(|| after = msr::try_efer(bit)), None, "{name}: EFER with {bit:#x}");
        check_eq!(after & bit, bit, "{name}");
    }
    Ok(())
}

/// No other can be set. (A write leaves LMA as it is.)
fn no_other_bit_of_efer(trial: &Trial<'_>) -> Outcome {
    skip_unless!(is_ours(), "emulators leave them clear");
    let absent = !(promised_bits(efer_bits) | EFER_LMA);
    for bit in each_bit(u64::BITS).filter(|bit| absent & bit != 0) {
        check_eq!(trial.vector_of(|| _ = msr::try_efer(bit)), PROTECTION, "EFER with {bit:#x}");
    }
    Ok(())
}

/// Each is executed.
fn instructions(trial: &Trial<'_>) -> Outcome {
    control::enable_sse();
    let code = Code::new(trial);
    for (Feature { name, .. }, promise) in promises() {
        match promise {
            Promise::Instruction(bytes) => check_eq!(code.run(bytes), None, "{name}: {bytes:02x?}"),
            Promise::Instruction64(bytes) if cfg!(target_pointer_width = "64") => {
                check_eq!(code.run(bytes), None, "{name}: {bytes:02x?}");
            }
            _ => {}
        }
    }
    Ok(())
}

/// What this hypervisor offers to no guest, whatever the processor has.
fn absent_instructions(trial: &Trial<'_>) -> Outcome {
    skip_unless!(is_ours(), "others may offer them");
    let code = Code::new(trial);
    for (name, [first, second, third]) in [
        ("XGETBV", [0x0f, 0x01, 0xd0]),
        ("XSETBV", [0x0f, 0x01, 0xd1]),
        ("MONITOR", [0x0f, 0x01, 0xc8]),
        ("MWAIT", [0x0f, 0x01, 0xc9]),
        ("VMRUN", [0x0f, 0x01, 0xd8]),
        ("STGI", [0x0f, 0x01, 0xdc]),
        ("VMXOFF", [0x0f, 0x01, 0xc4]),
    ] {
        // Behind XOR EAX, EAX and XOR ECX, ECX: QEMU looks at the operands of MONITOR, MWAIT and VMRUN before it asks whether they exit.
        check_eq!(code.run(&[0x31, 0xc0, 0x31, 0xc9, first, second, third]), UNDEFINED, "{name}");
    }
    check_eq!(code.run(&[0x0f, 0x33]), PROTECTION, "RDPMC");
    Ok(())
}

/// Kernels read and write registers that CPUID does not tell of, by the processor's vendor and family alone.
fn msrs_that_kernels_use_unasked(trial: &Trial<'_>) -> Outcome {
    skip_unless!(is_ours(), "a machine has those of its vendor");
    const READ_ONLY: [u32; 2] = [numbers::MSR_PLATFORM_INFO, numbers::IA32_MCG_CAP];
    const WRITABLE: [u32; 10] = [
        numbers::IA32_MCG_STATUS,
        numbers::IA32_MTRR_DEF_TYPE,
        numbers::IA32_PAT,
        numbers::IA32_MISC_ENABLE,
        numbers::IA32_TSC_ADJUST,
        numbers::IA32_DEBUGCTL,
        SYSCFG,
        HWCR,
        NB_CFG,
        PATCH_LEVEL,
    ];
    for register in READ_ONLY {
        check_eq!(trial.vector_of(|| _ = msr::read(register)), None, "RDMSR of {register:#x}");
        check_eq!(trial.vector_of(|| msr::write_back(register)), PROTECTION, "WRMSR of {register:#x}");
    }
    for register in WRITABLE.into_iter().chain(PERF_EVT_SEL0..=PERF_CTR3) {
        check_eq!(trial.vector_of(|| _ = msr::read(register)), None, "RDMSR of {register:#x}");
        check_eq!(trial.vector_of(|| msr::write_back(register)), None, "WRMSR of {register:#x}");
    }
    Ok(())
}

/// They raise #GP; the hypervisor lists them at the run's end.
fn msrs_of_no_processor(trial: &Trial<'_>) -> Outcome {
    skip_unless!(is_ours(), "emulators ignore MSRs that they do not know");
    for register in 0..12 {
        let register = 0x4856_0000 + register;
        for _ in 0..=register & 0xf {
            check_eq!(trial.vector_of(|| _ = msr::read(register)), PROTECTION, "RDMSR of {register:#x}");
        }
    }
    Ok(())
}

/// Whether it is this hypervisor that runs the guest.
fn is_ours() -> bool {
    hypervisor() == Hypervisor::Microhv
}

/// Where instructions are put to be run.
struct Code<'a> {
    trial: &'a Trial<'a>,
    frame: ram::Frame,
}

impl<'a> Code<'a> {
    fn new(trial: &'a Trial<'a>) -> Self {
        Self { trial, frame: ram::fresh(trial.boot) }
    }

    /// Runs the instruction in a function of its own, with its bytes of the stack. The vector of the exception that it raises, if it
    /// does.
    fn run(&self, instruction: &[u8]) -> Option<u8> {
        // SUB ESP, 24; …; ADD ESP, 24; RET. In 64-bit mode that makes RSP, which is below 4 GiB, a multiple of 16.
        let (before, after) = ([0x83, 0xec, 24], [0x83, 0xc4, 24, 0xc3]);
        let mut end = 0;
        for part in [&before[..], instruction, &after[..]] {
            self.frame.write_bytes(end, part);
            end += part.len() as u64;
        }
        self.trial.vector_of(|| self.frame.address(0).call())
    }
}
