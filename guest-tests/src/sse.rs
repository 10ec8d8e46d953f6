//! SSE state, which the compiler's code never touches.

use core::arch::naked_asm;
use core::mem::offset_of;

use crate::raw_gva::RawGva;

/// XMM0 to XMM15 and MXCSR.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sse {
    /// XMM0 to XMM15, low half first.
    pub xmm: [[u64; 2]; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

/// Loads `before`, causes an exit by CPUID, one by OUT and one by the first touch of `page`, and returns what the
/// registers then hold. SSE has to be enabled.
pub fn across_exits(before: &Sse, page: RawGva) -> Sse {
    let mut after = Sse { xmm: [[0; 2]; 16], mxcsr: 0 };
    across(before, &mut after, page.raw());
    after
}

#[unsafe(naked)]
extern "C" fn across(before: &Sse, after: &mut Sse, page: u64) {
    naked_asm!(
        "push rbx",
        "mov r8, rdx",
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movdqu xmm\\n, [rdi + 16 * \\n]",
        ".endr",
        "ldmxcsr [rdi + {mxcsr}]",
        "mov eax, 1",
        "xor ecx, ecx",
        "cpuid",
        "out 0x80, al",
        "mov byte ptr [r8], 1",
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "movdqu [rsi + 16 * \\n], xmm\\n",
        ".endr",
        "stmxcsr [rsi + {mxcsr}]",
        "pop rbx",
        "ret",
        mxcsr = const offset_of!(Sse, mxcsr),
    )
}
