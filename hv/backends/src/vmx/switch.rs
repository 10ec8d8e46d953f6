//! From the hypervisor into the guest and back.

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use vm::Stay;
use x86::vmx::vmcs::ro;

/// The registers that the switch saves and loads itself: all general registers but RSP. The slot of RSP stays unused.
///
/// Exits load RSP with the address of this (the host's RSP in the VMCS), so it must not move while a VMCS has that.
#[derive(Default)]
#[repr(C, align(16))]
pub(super) struct Switched {
    pub(super) gprs: [u64; 16],
    pub(super) stay: Stay,
    /// The host's stack, and where it goes on after the exit.
    host_rsp: u64,
    host_rip: u64,
}

/// The offset of a register's slot, by the register's number in encodings.
const fn slot(number: usize) -> usize {
    offset_of!(Switched, gprs) + number * 8
}

/// A VM-instruction error number (Intel SDM vol. 3, table 31-1).
const VMLAUNCH_WITH_NON_CLEAR_VMCS: u32 = 4;

/// In place of an exit reason: the entry instruction failed, and the host's state was never left.
pub(super) const ENTRY_REFUSED: u64 = u64::MAX;

/// The host's RIP in every VMCS: RSP points to [`Switched`]. Entries can be compiled to several places, so each says where
/// it goes on.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn exited() {
    naked_asm!("jmp qword ptr [rsp + {back}]", back = const offset_of!(Switched, host_rip))
}

/// Enters the guest of the current VMCS and returns the reason of its next exit, or [`ENTRY_REFUSED`].
///
/// # Safety
/// The current VMCS is that of a guest that touches nothing of the hypervisor's, with the host's state as it is now,
/// [`exited`] as RIP and `registers` as RSP.
#[inline(always)]
pub(super) unsafe fn enter(registers: &mut Switched) -> u64 {
    let reason;
    // SAFETY: an exit leads to `2:` with RSP pointing to `registers`, from where the stack pointer is taken back. All other
    // general registers are the guest's then: they are declared clobbered, or (RBX and RBP, which can't be) saved here. No
    // vector register is touched.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov [rdi + {host_rsp}], rsp",
            "lea rax, [rip + 2f]",
            "mov [rdi + {host_rip}], rax",
            "rdtsc",
            "mov [rdi + {entry}], eax",
            "mov [rdi + {entry} + 4], edx",
            "mov rax, [rdi + {rax}]",
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
            "vmresume",
            // Behind here VMRESUME has failed, and the stack is still the host's. The first entry is VMLAUNCH's. If that says
            // that it is not the first, VMRESUME had another reason, and leaves its number when asked again.
            "vmlaunch",
            "mov eax, {instruction_error}",
            "vmread rax, rax",
            "cmp eax, {not_clear}",
            "jne 3f",
            "vmresume",
            "3:",
            "mov rax, {refused}",
            "jmp 4f",
            "2:",
            "mov [rsp + {rax}], rax",
            "mov [rsp + {rdx}], rdx",
            "rdtsc",
            "mov [rsp + {exit}], eax",
            "mov [rsp + {exit} + 4], edx",
            "mov [rsp + {rcx}], rcx",
            "mov [rsp + {rbx}], rbx",
            "mov [rsp + {rbp}], rbp",
            "mov [rsp + {rsi}], rsi",
            "mov [rsp + {rdi}], rdi",
            "mov [rsp + {r8}], r8",
            "mov [rsp + {r9}], r9",
            "mov [rsp + {r10}], r10",
            "mov [rsp + {r11}], r11",
            "mov [rsp + {r12}], r12",
            "mov [rsp + {r13}], r13",
            "mov [rsp + {r14}], r14",
            "mov [rsp + {r15}], r15",
            "mov rsp, [rsp + {host_rsp}]",
            "mov eax, {exit_reason}",
            "vmread rax, rax",
            "4:",
            "pop rbp",
            "pop rbx",
            entry = const offset_of!(Switched, stay) + offset_of!(Stay, entry),
            exit = const offset_of!(Switched, stay) + offset_of!(Stay, exit),
            host_rsp = const offset_of!(Switched, host_rsp),
            host_rip = const offset_of!(Switched, host_rip),
            exit_reason = const ro::EXIT_REASON,
            instruction_error = const ro::VM_INSTRUCTION_ERROR,
            not_clear = const VMLAUNCH_WITH_NON_CLEAR_VMCS,
            refused = const ENTRY_REFUSED.cast_signed(),
            rax = const slot(0),
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
            lateout("rax") reason,
            out("rcx") _,
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
    reason
}
