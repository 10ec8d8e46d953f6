//! From the hypervisor into the guest and back.

use addr::Hpa;
use core::arch::asm;
use core::mem::offset_of;
use vm::Stay;

/// What the switch saves and loads itself. RAX and RSP are the VMCB's; their slots stay unused.
#[derive(Default)]
#[repr(C)]
pub(super) struct Switched {
    pub(super) gprs: [u64; 16],
    pub(super) stay: Stay,
}

/// The offset of a register's slot, by the register's number in encodings.
const fn slot(number: usize) -> usize {
    offset_of!(Switched, gprs) + number * 8
}

/// Enters the guest of `vmcb` and returns at its next exit.
///
/// # Safety
/// `vmcb` is the physical address of a valid VMCB of a guest that touches nothing of the hypervisor's; GIF is 0; SVM is on.
pub(super) unsafe fn vmrun(vmcb: Hpa, registers: &mut Switched) {
    // SAFETY: VMRUN keeps RSP and what lies above it. All other general registers are the guest's on return: they are
    // declared clobbered, or (RBX and RBP, which can't be) saved here. No vector register is touched.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rdi",
            "rdtsc",
            "mov [rdi + {entry}], eax",
            "mov [rdi + {entry} + 4], edx",
            "mov rax, rcx",
            "mov rcx, [rdi + {rcx}]",
            "mov rdx, [rdi + {rdx}]",
            "mov rbx, [rdi + {rbx}]",
            "mov rbp, [rdi + {rbp}]",
            "mov rsi, [rdi + {rsi}]",
            "mov r8, [rdi + {r8}]",
            "mov r9, [rdi + {r9}]",
            "mov r10, [rdi + {r10}]",
            "mov r11, [rdi + {r11}]",
            "mov r12, [rdi + {r12}]",
            "mov r13, [rdi + {r13}]",
            "mov r14, [rdi + {r14}]",
            "mov r15, [rdi + {r15}]",
            "mov rdi, [rdi + {rdi}]",
            "vmrun rax",
            "mov rax, [rsp]",
            "mov [rax + {rcx}], rcx",
            "mov rcx, rax",
            "mov [rcx + {rdx}], rdx",
            "rdtsc",
            "mov [rcx + {exit}], eax",
            "mov [rcx + {exit} + 4], edx",
            "mov [rcx + {rbx}], rbx",
            "mov [rcx + {rbp}], rbp",
            "mov [rcx + {rsi}], rsi",
            "mov [rcx + {rdi}], rdi",
            "mov [rcx + {r8}], r8",
            "mov [rcx + {r9}], r9",
            "mov [rcx + {r10}], r10",
            "mov [rcx + {r11}], r11",
            "mov [rcx + {r12}], r12",
            "mov [rcx + {r13}], r13",
            "mov [rcx + {r14}], r14",
            "mov [rcx + {r15}], r15",
            "pop rdi",
            "pop rbp",
            "pop rbx",
            entry = const offset_of!(Switched, stay) + offset_of!(Stay, entry),
            exit = const offset_of!(Switched, stay) + offset_of!(Stay, exit),
            rcx = const slot(1),
            rdx = const slot(2),
            rbx = const slot(3),
            rbp = const slot(5),
            rsi = const slot(6),
            rdi = const slot(7),
            r8 = const slot(8),
            r9 = const slot(9),
            r10 = const slot(10),
            r11 = const slot(11),
            r12 = const slot(12),
            r13 = const slot(13),
            r14 = const slot(14),
            r15 = const slot(15),
            inout("rdi") &raw mut *registers => _,
            inout("rcx") vmcb.raw() => _,
            out("rax") _,
            out("rdx") _,
            out("rsi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        );
    }
}
