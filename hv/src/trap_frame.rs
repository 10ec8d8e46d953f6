//! The registers of what an exception or an interrupt interrupted.

use abi::wire::OWN;
use core::fmt;

/// What `traps.s` leaves on the stack: lowest address first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct TrapFrame {
    rax: u64,
    rcx: u64,
    rdx: u64,
    rbx: u64,
    pub(crate) rbp: u64,
    rsi: u64,
    rdi: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    pub(crate) vector: u64,
    error_code: u64,
    pub(crate) rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{OWN}rip {:016x} cs {:04x} rflags {:08x} error {:x}",
            self.rip, self.cs, self.rflags, self.error_code
        )?;
        writeln!(f, "{OWN}rsp {:016x} ss {:04x} rbp {:016x}", self.rsp, self.ss, self.rbp)?;
        writeln!(f, "{OWN}rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", self.rax, self.rbx, self.rcx, self.rdx)?;
        writeln!(f, "{OWN}rsi {:016x} rdi {:016x} r8  {:016x} r9  {:016x}", self.rsi, self.rdi, self.r8, self.r9)?;
        writeln!(f, "{OWN}r10 {:016x} r11 {:016x} r12 {:016x} r13 {:016x}", self.r10, self.r11, self.r12, self.r13)?;
        write!(f, "{OWN}r14 {:016x} r15 {:016x}", self.r14, self.r15)
    }
}
