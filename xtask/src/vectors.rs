//! The check that the hypervisor touches no floating-point or vector register: the guest's stay live across an exit.
//!
//! The whole image is disassembled, so that it holds for what the compiler and every library made of it.

use crate::functions::{self, Function};
use anyhow::{Context, Result};
use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, InstructionInfoFactory, Mnemonic,
};
use std::fmt;
use std::fs;
use std::path::Path;

/// The module whose functions may: they save and load the guest's state as a whole, when another vCPU takes its place.
const GUEST_STATE_CODE: &str = "backends::unswitched::";

/// An instruction that must not be there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    symbol: String,
    offset: u64,
    instruction: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}: {}", self.symbol, self.offset, self.instruction)
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) instructions: usize,
    pub(crate) findings: Vec<Finding>,
}

/// Looks through an ELF file's executable sections.
pub(crate) fn scan(image: &Path) -> Result<Scan> {
    let bytes = fs::read(image).with_context(|| format!("can't read {}", image.display()))?;
    scan_elf(&bytes).with_context(|| format!("can't disassemble {}", image.display()))
}

fn scan_elf(bytes: &[u8]) -> Result<Scan> {
    let mut scan = Scan::default();
    for Function { name, address, bitness, code } in functions::of(&object::File::parse(bytes)?)? {
        scan_code(code, address, bitness, &name, &mut scan);
    }
    anyhow::ensure!(scan.instructions > 0, "no instruction was found");
    Ok(scan)
}

fn scan_code(code: &[u8], address: u64, bitness: u32, symbol: &str, scan: &mut Scan) {
    let allowed = symbol.starts_with(GUEST_STATE_CODE);
    let mut infos = InstructionInfoFactory::new();
    for instruction in &mut Decoder::with_ip(bitness, code, address, DecoderOptions::NONE) {
        scan.instructions += 1;
        if !allowed && touches_vectors(&instruction, &mut infos) {
            let mut text = String::new();
            GasFormatter::new().format(&instruction, &mut text);
            let offset = instruction.ip() - address;
            scan.findings.push(Finding { symbol: symbol.to_string(), offset, instruction: text });
        }
    }
}

/// Whether an instruction reads or writes x87, MMX, SSE, AVX or AMX state.
fn touches_vectors(instruction: &Instruction, infos: &mut InstructionInfoFactory) -> bool {
    // Instructions that work on the state as a whole, or on its control words, name no register.
    let whole_state = matches!(
        instruction.mnemonic(),
        Mnemonic::Fxsave
            | Mnemonic::Fxsave64
            | Mnemonic::Fxrstor
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsaves
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors
            | Mnemonic::Xrstors64
            | Mnemonic::Ldmxcsr
            | Mnemonic::Stmxcsr
            | Mnemonic::Vldmxcsr
            | Mnemonic::Vstmxcsr
            | Mnemonic::Vzeroall
            | Mnemonic::Vzeroupper
            | Mnemonic::Emms
            | Mnemonic::Femms
            | Mnemonic::Wait
    );
    let x87 = instruction.cpuid_features().iter().any(|feature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU287XL_ONLY | CpuidFeature::FPU387)
    });
    let by_register = infos.info(instruction).used_registers().iter().any(|used| {
        let register = used.register();
        register.is_vector_register() || register.is_mm() || register.is_st() || register.is_k() || register.is_tmm()
    });
    whole_state || x87 || by_register
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(code: &[u8], bitness: u32) -> Vec<String> {
        let mut scan = Scan::default();
        scan_code(code, 0x1000, bitness, "f", &mut scan);
        scan.findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn vector_and_floating_point_instructions_are_found() {
        for (code, text) in [
            (&[0x90, 0x0f, 0x28, 0xc1][..], "f+0x1: movaps %xmm1,%xmm0"),
            (&[0x66, 0x0f, 0xef, 0xc0], "f+0x0: pxor %xmm0,%xmm0"),
            (&[0xf2, 0x48, 0x0f, 0x2a, 0xc0], "f+0x0: cvtsi2sd %rax,%xmm0"),
            (&[0xc5, 0xfc, 0x28, 0xc1], "f+0x0: vmovaps %ymm1,%ymm0"),
            (&[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc1], "f+0x0: vmovaps %zmm1,%zmm0"),
            (&[0xc5, 0xf8, 0x92, 0xc8], "f+0x0: kmovw %eax,%k1"),
            (&[0x0f, 0x6f, 0xc1], "f+0x0: movq %mm1,%mm0"),
            (&[0xd9, 0xe8], "f+0x0: fld1"),
            (&[0xdb, 0xe3], "f+0x0: fninit"),
            (&[0x9b, 0x90], "f+0x0: fwait"),
            (&[0x0f, 0x77], "f+0x0: emms"),
            (&[0xc5, 0xf8, 0x77], "f+0x0: vzeroupper"),
            (&[0x0f, 0xae, 0x00], "f+0x0: fxsave (%rax)"),
            (&[0x0f, 0xae, 0x20], "f+0x0: xsave (%rax)"),
            (&[0x0f, 0xae, 0x10], "f+0x0: ldmxcsr (%rax)"),
        ] {
            assert_eq!(findings(code, 64), [text]);
        }
    }

    #[test]
    fn the_code_that_saves_the_guests_state_may() {
        let mut scan = Scan::default();
        scan_code(&[0x0f, 0xae, 0x00], 0x1000, 64, "backends::unswitched::Fxsave::save", &mut scan);
        assert!(scan.findings.is_empty());
    }

    #[test]
    fn general_instructions_are_not() {
        for code in [
            &[0x48, 0x89, 0xc3][..],         // mov %rax,%rbx
            &[0x0f, 0xae, 0xf0],             // mfence
            &[0x0f, 0xae, 0xf8],             // sfence
            &[0x0f, 0xc3, 0x08],             // movnti %ecx,(%rax)
            &[0x0f, 0xae, 0x38],             // clflush (%rax)
            &[0x0f, 0x01, 0xd0],             // xgetbv
            &[0x0f, 0x01, 0xd1],             // xsetbv
            &[0xf3, 0x90],                   // pause
            &[0xc4, 0xe2, 0xf8, 0xf2, 0xc3], // andn: VEX, general registers
            &[0x0f, 0x01, 0xd8],             // vmrun
            &[0xf3, 0x48, 0xa5],             // rep movsq
        ] {
            assert_eq!(findings(code, 64), [""; 0]);
        }
        assert_eq!(findings(&[0x40, 0x0f, 0x20, 0xc0], 32), [""; 0]);
    }

    #[test]
    fn a_program_with_vector_code_fails_the_check() {
        // This very test program: the standard library uses SSE throughout.
        let scan = scan(&std::env::current_exe().unwrap()).unwrap();
        assert!(scan.instructions > 10_000);
        assert!(
            scan.findings.iter().any(|finding| finding.instruction.contains("%xmm") && finding.symbol.contains("::"))
        );
    }
}
