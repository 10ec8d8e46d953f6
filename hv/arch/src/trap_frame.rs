//! The registers of what an exception or an interrupt interrupted.

use abi::wire::OWN;
use core::fmt;

/// The general registers as an entry stub pushes them, the vector and the error code (0 where the processor pushes none), and what the
/// processor pushes in 64-bit mode (Intel SDM vol. 3, section 6.14.2): lowest address first. It is displayed as the hypervisor's own
/// lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct TrapFrame {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn each_register_is_shown_and_each_line_is_the_hypervisors() {
        let frame =
            TrapFrame { rip: 0xffff_ffff_8010_0000, cs: 8, r15: 0xabc, error_code: 0x11, ..TrapFrame::default() };
        let text = frame.to_string();
        assert!(text.lines().all(|line| line.starts_with(OWN)), "{text}");
        assert_eq!(text.lines().next(), Some("hv: rip ffffffff80100000 cs 0008 rflags 00000000 error 11"));
        assert!(text.ends_with("r15 0000000000000abc"), "{text}");
        assert_eq!(text.split_whitespace().filter(|word| *word != "hv:").count(), 2 * 21);
    }

    #[test]
    fn the_processors_part_is_behind_the_stubs() {
        use core::mem::offset_of;
        assert_eq!([offset_of!(TrapFrame, vector), offset_of!(TrapFrame, error_code)], [15 * 8, 16 * 8]);
        assert_eq!([offset_of!(TrapFrame, rip), offset_of!(TrapFrame, ss)], [17 * 8, 21 * 8]);
    }
}
