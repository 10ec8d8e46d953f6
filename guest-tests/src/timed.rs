//! What single instructions cost, as a guest sees it: RDTSC, the instruction, RDTSC.
//!
//! Every kind is measured by the same code but for the instruction itself, with all results in registers, so that
//! [`empty`] measures what the others have in common.

use core::arch::naked_asm;
use core::mem::offset_of;

use crate::hypercall::Instruction;
use crate::msr::Msr;
use crate::pic;
use crate::raw_gva::RawGva;

/// What the instruction finds in its registers; RSI is 0.
#[repr(C)]
#[derive(Default)]
struct Operands {
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    rdi: u64,
}

/// The span in TSC ticks around `$instruction`, with four register moves in it.
macro_rules! timed {
    ($name:ident $(, $instruction:literal)?) => {
        #[unsafe(naked)]
        extern "C" fn $name(operands: &Operands) -> u64 {
            naked_asm!(
                "push rbx",
                // RDTSC takes EAX and EDX, so the instruction's come from R10 and R11.
                "mov r10d, [rdi + {eax}]",
                "mov r11d, [rdi + {edx}]",
                "mov ebx, [rdi + {ebx}]",
                "mov ecx, [rdi + {ecx}]",
                "mov rdi, [rdi + {rdi}]",
                "xor esi, esi",
                "rdtsc",
                "mov r8d, eax",
                "mov r9d, edx",
                "mov eax, r10d",
                "mov edx, r11d",
                $($instruction,)?
                "rdtsc",
                "shl rdx, 32",
                "or rax, rdx",
                "shl r9, 32",
                "or r8, r9",
                "sub rax, r8",
                "pop rbx",
                "ret",
                eax = const offset_of!(Operands, eax),
                ebx = const offset_of!(Operands, ebx),
                ecx = const offset_of!(Operands, ecx),
                edx = const offset_of!(Operands, edx),
                rdi = const offset_of!(Operands, rdi),
            )
        }
    };
}

/// The span with nothing in it.
pub fn empty() -> u64 {
    timed!(code);
    code(&Operands::default())
}

/// CPUID, leaf 0.
pub fn cpuid() -> u64 {
    timed!(code, "cpuid");
    code(&Operands::default())
}

/// The hypercall of this number, without arguments.
pub fn hypercall(instruction: Instruction, number: u32) -> u64 {
    timed!(vmmcall, "vmmcall");
    timed!(vmcall, "vmcall");
    let code = match instruction {
        Instruction::Vmmcall => vmmcall,
        Instruction::Vmcall => vmcall,
    };
    code(&Operands { eax: number, ..Operands::default() })
}

/// IN AL, DX from `port`.
pub fn inb(port: u16) -> u64 {
    timed!(code, "in al, dx");
    code(&Operands { edx: port.into(), ..Operands::default() })
}

/// IN EAX, DX from `port`.
pub fn inl(port: u16) -> u64 {
    timed!(code, "in eax, dx");
    code(&Operands { edx: port.into(), ..Operands::default() })
}

/// OUT DX, AL to the first ELCR.
pub fn pio_out(elcr: u8) -> u64 {
    timed!(code, "out dx, al");
    code(&Operands { eax: u32::from(elcr), edx: u32::from(pic::ELCR), ..Operands::default() })
}

/// RDMSR of IA32_PAT.
pub fn rdmsr() -> u64 {
    timed!(code, "rdmsr");
    code(&Operands { ecx: Msr::Pat as u32, ..Operands::default() })
}

/// WRMSR of IA32_PAT.
pub fn wrmsr(pat: u64) -> u64 {
    timed!(code, "wrmsr");
    code(&Operands { eax: pat as u32, ecx: Msr::Pat as u32, edx: (pat >> 32) as u32, ..Operands::default() })
}

/// CR8 read.
pub fn mov_from_cr8() -> u64 {
    timed!(code, "mov rax, cr8");
    code(&Operands::default())
}

/// CR8 written: `class`, 0 to 15.
pub fn mov_to_cr8(class: u32) -> u64 {
    timed!(code, "mov cr8, rax");
    code(&Operands { eax: class, ..Operands::default() })
}

/// 32 bits loaded from `at`.
pub fn load(at: RawGva) -> u64 {
    timed!(code, "mov eax, [rdi]");
    code(&Operands { rdi: at.raw(), ..Operands::default() })
}

/// 32 bits stored to `at`.
pub fn store_32(at: RawGva, value: u32) -> u64 {
    timed!(code, "mov [rdi], eax");
    code(&Operands { eax: value, rdi: at.raw(), ..Operands::default() })
}

/// RDMSR of the register with this number.
pub fn rdmsr_of(number: u32) -> u64 {
    timed!(code, "rdmsr");
    code(&Operands { ecx: number, ..Operands::default() })
}

/// WRMSR of 32 bits to the register with this number.
pub fn wrmsr_of(number: u32, value: u32) -> u64 {
    timed!(code, "wrmsr");
    code(&Operands { eax: value, ecx: number, ..Operands::default() })
}

/// A byte stored to `at`.
pub fn store(at: RawGva) -> u64 {
    timed!(code, "mov [rdi], al");
    code(&Operands { rdi: at.raw(), ..Operands::default() })
}
