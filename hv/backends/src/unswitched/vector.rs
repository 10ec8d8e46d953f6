//! Instructions of the guest on x87, MMX and SSE registers, executed in its place with its registers.

use arch::{RFLAGS_AF, RFLAGS_CF, RFLAGS_FIXED, RFLAGS_OF, RFLAGS_PF, RFLAGS_SF, RFLAGS_ZF};
use core::arch::{asm, naked_asm};
use emul::interpreter::{Area, VectorInstruction};

const ARITHMETIC: u64 = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF;
/// The length of a piece of [`x87`].
const X87_PIECE: usize = 4;
/// The length of a piece of the others.
const PIECE: usize = 8;

/// For each opcode from D8h to DFh, and in it for each number in ModRM: the instruction with its operand at RDI, RET and NOP. The pieces
/// of undefined instructions are never called.
#[unsafe(naked)]
unsafe extern "C" fn x87() {
    naked_asm!(
        ".set opcode, 0xd8",
        ".rept 8",
        ".set modrm, 7",
        ".rept 8",
        ".byte opcode, modrm, 0xc3, 0x90",
        ".set modrm, modrm + 8",
        ".endr",
        ".set opcode, opcode + 1",
        ".endr",
    )
}

/// The same with a prefix for 16-bit operands.
#[unsafe(naked)]
unsafe extern "C" fn x87_short() {
    naked_asm!(
        ".set opcode, 0xd8",
        ".rept 8",
        ".set modrm, 7",
        ".rept 8",
        ".byte 0x66, opcode, modrm, 0xc3",
        ".set modrm, modrm + 8",
        ".endr",
        ".set opcode, opcode + 1",
        ".endr",
    )
}

/// The same of x87 instructions on registers, for each ModRM from C0h on.
#[unsafe(naked)]
unsafe extern "C" fn x87_registers() {
    naked_asm!(
        ".set opcode, 0xd8",
        ".rept 8",
        ".set modrm, 0xc0",
        ".rept 64",
        ".byte opcode, modrm, 0xc3, 0x90",
        ".set modrm, modrm + 1",
        ".endr",
        ".set opcode, opcode + 1",
        ".endr",
    )
}

/// A function with a piece for each register: the instruction, RET, and up to the piece's length nothing.
macro_rules! pieces {
    ($(#[$doc:meta])* $name:ident, $($instruction:literal)*) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!($($instruction, "ret", ".balign 8",)*)
        }
    };
}

pieces! {
    /// MOVQ of each MMX register to RDI.
    store_mmx,
    "movq [rdi], mm0" "movq [rdi], mm1" "movq [rdi], mm2" "movq [rdi], mm3"
    "movq [rdi], mm4" "movq [rdi], mm5" "movq [rdi], mm6" "movq [rdi], mm7"
}

pieces! {
    /// MOVQ of each MMX register from RDI.
    load_mmx,
    "movq mm0, [rdi]" "movq mm1, [rdi]" "movq mm2, [rdi]" "movq mm3, [rdi]"
    "movq mm4, [rdi]" "movq mm5, [rdi]" "movq mm6, [rdi]" "movq mm7, [rdi]"
}

pieces! {
    /// MOVDQU of each XMM register to RDI.
    store_xmm,
    "movdqu [rdi], xmm0" "movdqu [rdi], xmm1" "movdqu [rdi], xmm2" "movdqu [rdi], xmm3"
    "movdqu [rdi], xmm4" "movdqu [rdi], xmm5" "movdqu [rdi], xmm6" "movdqu [rdi], xmm7"
    "movdqu [rdi], xmm8" "movdqu [rdi], xmm9" "movdqu [rdi], xmm10" "movdqu [rdi], xmm11"
    "movdqu [rdi], xmm12" "movdqu [rdi], xmm13" "movdqu [rdi], xmm14" "movdqu [rdi], xmm15"
}

pieces! {
    /// MOVDQU of each XMM register from RDI.
    load_xmm,
    "movdqu xmm0, [rdi]" "movdqu xmm1, [rdi]" "movdqu xmm2, [rdi]" "movdqu xmm3, [rdi]"
    "movdqu xmm4, [rdi]" "movdqu xmm5, [rdi]" "movdqu xmm6, [rdi]" "movdqu xmm7, [rdi]"
    "movdqu xmm8, [rdi]" "movdqu xmm9, [rdi]" "movdqu xmm10, [rdi]" "movdqu xmm11, [rdi]"
    "movdqu xmm12, [rdi]" "movdqu xmm13, [rdi]" "movdqu xmm14, [rdi]" "movdqu xmm15, [rdi]"
}

pieces! {
    /// Those without a register.
    others,
    "emms" "stmxcsr [rdi]" "ldmxcsr [rdi]" "fxsave [rdi]" "fxrstor [rdi]" "fxsave64 [rdi]" "fxrstor64 [rdi]"
}

/// Executes `instruction` on the registers of the vCPU that is loaded. `area` is its memory operand, `rflags` are its flags; those
/// behind it.
pub(crate) fn execute(instruction: VectorInstruction, area: &mut Area, rflags: u64) -> u64 {
    let rflags = call(instruction, area, rflags);
    if let VectorInstruction::X87 { .. } | VectorInstruction::X87Registers { .. } = instruction {
        forget_addresses();
    }
    rflags
}

/// The x87 keeps where its last instruction and operand were: here, in the hypervisor, which is not the guest's to know.
fn forget_addresses() {
    const FNSTENV: VectorInstruction = VectorInstruction::X87 { opcode: 1, extension: 6, short: false };
    const FLDENV: VectorInstruction = VectorInstruction::X87 { opcode: 1, extension: 4, short: false };
    /// FIP, FCS, FOP, FDP and FDS in the environment (Intel SDM vol. 1, figure 8-9).
    const ADDRESSES: core::ops::Range<usize> = 12..28;
    let mut environment = Area::new();
    call(FNSTENV, &mut environment, 0);
    environment.0[ADDRESSES].fill(0);
    call(FLDENV, &mut environment, 0);
}

fn call(instruction: VectorInstruction, area: &mut Area, rflags: u64) -> u64 {
    let at = |function: unsafe extern "C" fn(), offset: usize| function as usize + offset;
    let piece = match instruction {
        VectorInstruction::X87 { opcode, extension, short } => {
            let function = if short { x87_short } else { x87 };
            at(function, usize::from((opcode & 7) << 3 | extension & 7) * X87_PIECE)
        }
        VectorInstruction::StoreMmx(number) => at(store_mmx, usize::from(number & 7) * PIECE),
        VectorInstruction::LoadMmx(number) => at(load_mmx, usize::from(number & 7) * PIECE),
        VectorInstruction::StoreXmm(number) => at(store_xmm, usize::from(number & 15) * PIECE),
        VectorInstruction::LoadXmm(number) => at(load_xmm, usize::from(number & 15) * PIECE),
        VectorInstruction::X87Registers { opcode, modrm } => {
            at(x87_registers, (usize::from(opcode & 7) << 6 | usize::from(modrm & 63)) * X87_PIECE)
        }
        VectorInstruction::Emms => at(others, 0),
        VectorInstruction::Stmxcsr => at(others, PIECE),
        VectorInstruction::Ldmxcsr => at(others, 2 * PIECE),
        VectorInstruction::Fxsave { wide: false } => at(others, 3 * PIECE),
        VectorInstruction::Fxrstor { wide: false } => at(others, 4 * PIECE),
        VectorInstruction::Fxsave { wide: true } => at(others, 5 * PIECE),
        VectorInstruction::Fxrstor { wide: true } => at(others, 6 * PIECE),
    };
    // Those of the hypervisor but for the arithmetic ones: interrupts are off, and DF is clear.
    let mut flags = RFLAGS_FIXED | rflags & ARITHMETIC;
    // SAFETY: the piece is one instruction and RET. It accesses no more than the area, which has the most that any of them does, and
    // registers that the hypervisor does not use. It raises nothing: no x87 exception waits, MXCSR is valid, and the hypervisor's CR0
    // and CR4 allow it (the callers of `Vcpu::execute_vector` and `enable_fxsave`). The arithmetic flags mean nothing to the compiler.
    unsafe {
        asm!(
            "push {flags}",
            "popfq",
            "call {piece}",
            "pushfq",
            "pop {flags}",
            piece = in(reg) piece,
            flags = inout(reg) flags,
            in("rdi") &raw mut *area
        );
    }
    rflags & !ARITHMETIC | flags & ARITHMETIC
}
