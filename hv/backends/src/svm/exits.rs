//! Why the guest was left, in the form that both vendors share (AMD64 APM vol. 2, appendix C).

use super::vcpu::SvmVcpu;
use super::vmcb::{self, event, exit_code};
use crate::translation::Translation;
use addr::{Gpa, Gva};
use vm::{Cr8, Exception, Exit, Gpr, Instruction, Io, NestedFault, PageFault, TaskSwitch, TaskSwitchSource};
use walk::ErrorCode;
use x86::irq::{INVALID_OPCODE_VECTOR, PAGE_FAULT_VECTOR};

/// #PF, where it is intercepted.
const PAGE_FAULT: u64 = exit_code::EXCEPTION_0 + PAGE_FAULT_VECTOR as u64;

/// #UD.
const UNDEFINED: u64 = exit_code::EXCEPTION_0 + INVALID_OPCODE_VECTOR as u64;

impl<T: Translation> SvmVcpu<T> {
    #[inline]
    pub(super) fn decode_exit(&self) -> Exit {
        let control = &self.vmcb.control;
        if self.has_foreign_cr3() {
            return Exit::ForeignCr3;
        }
        match control.exit_code {
            exit_code::CPUID => Exit::Cpuid,
            exit_code::VMMCALL => Exit::Hypercall,
            exit_code::IOIO => Exit::Io(Io::from_svm(control.exit_info1)),
            exit_code::MSR if control.exit_info1 == 0 => Exit::ReadMsr,
            exit_code::MSR => Exit::WriteMsr,
            exit_code::NPF if control.exit_info1 & vmcb::RESERVED_BIT == 0 => {
                Exit::NestedFault(decode_nested_fault(control.exit_info1, control.exit_info2))
            }
            PAGE_FAULT if self.translation.shadow().is_some() => {
                Exit::PageFault(PageFault::new(Gva::new(control.exit_info2), control.exit_info1 as u32))
            }
            // The other vendor's hypercall.
            UNDEFINED => Exit::Exception(Exception::new(INVALID_OPCODE_VECTOR, None)),
            exit_code::HLT => Exit::Halt,
            exit_code::INTR => Exit::ExternalInterrupt,
            exit_code::VINTR | exit_code::IRET => Exit::InterruptWindow,
            _ => self.rare_exit(),
        }
    }

    #[cold]
    fn rare_exit(&self) -> Exit {
        let control = &self.vmcb.control;
        match control.exit_code {
            exit_code::NPF => Exit::Misconfiguration(Gpa::new(control.exit_info2)),
            exit_code::READ_CR0
            | exit_code::READ_CR3
            | exit_code::READ_CR4
            | exit_code::WRITE_CR0
            | exit_code::WRITE_CR3
            | exit_code::WRITE_CR4
            | exit_code::CR0_SELECTIVE => Exit::ControlRegister,
            exit_code::INVLPG => Exit::Invlpg,
            exit_code::TASK_SWITCH => Exit::TaskSwitch(decode_task_switch(
                control.exit_info1,
                control.exit_info2,
                control.exit_interrupt_info,
            )),
            exit_code::WRITE_CR8 => Exit::Cr8(Cr8::new(true, self.cr8_operand())),
            exit_code::WRITE_DR0..=exit_code::WRITE_DR7 => Exit::DebugRegister,
            code @ exit_code::EXCEPTION_0..=exit_code::EXCEPTION_31 => {
                let vector = (code - exit_code::EXCEPTION_0) as u8;
                let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21);
                Exit::Exception(Exception::new(vector, has_error_code.then_some(control.exit_info1 as u32)))
            }
            exit_code::NMI => Exit::Nmi,
            exit_code::PAUSE => Exit::ExternalInterrupt,
            exit_code::INVD => Exit::Instruction(Instruction::Invd),
            exit_code::RDPMC => Exit::Instruction(Instruction::Rdpmc),
            exit_code::INT1 => Exit::Instruction(Instruction::Int1),
            exit_code::XSETBV => Exit::Instruction(Instruction::Xsetbv),
            exit_code::INVLPGA
            | exit_code::VMRUN
            | exit_code::VMLOAD..=exit_code::SKINIT
            | exit_code::MONITOR..=exit_code::MWAIT_CONDITIONAL => Exit::Instruction(Instruction::Undefined),
            exit_code::SHUTDOWN => Exit::Shutdown,
            code if code as u32 == exit_code::INVALID => Exit::InvalidState,
            _ => Exit::Unknown,
        }
    }

    /// Whether the processor left the shadow's tables. QEMU (as of 7.2) does not look at the intercept of task switches
    /// (`switch_tss_ra` in target/i386/tcg/seg_helper.c): there a guest that switches tasks loads the CR3 of its TSS, which the
    /// processor takes for a host-physical address. It has none of the guest's pages where the guest expects them, so that mostly
    /// the next access exits; where it does not, the host's next interrupt does.
    #[inline]
    fn has_foreign_cr3(&self) -> bool {
        self.translation.shadow().is_some_and(|shadow| self.vmcb.save.cr3 != shadow.root.raw())
    }

    /// The operand of a MOV to or from a control register, by decode assists (APM section 15.8.1).
    fn cr8_operand(&self) -> Option<Gpr> {
        let info = self.vmcb.control.exit_info1;
        (self.decode_assists && info & vmcb::MOV_CR != 0).then(|| Gpr::new(info as u8))
    }
}

/// EXITINFO1 and EXITINFO2 of a nested page fault (APM section 15.25.6): a page fault's error code, and where.
#[inline]
fn decode_nested_fault(error: u64, address: u64) -> NestedFault {
    let error = ErrorCode::from_bits_retain(error as u32);
    let (write, fetch) = (error.contains(ErrorCode::WRITE), error.contains(ErrorCode::FETCH));
    NestedFault::new(Gpa::new(address), write, fetch, error.contains(ErrorCode::PRESENT))
}

/// EXITINFO1 and EXITINFO2 of a switch of tasks (APM section 15.14.1), and the event whose delivery has led to it.
fn decode_task_switch(selector: u64, info: u64, interrupted: u64) -> TaskSwitch {
    const IRET: u64 = 1 << 36;
    const JUMP: u64 = 1 << 38;
    const ERROR_CODE_VALID: u64 = 1 << 44;
    const RESUME_FLAG: u64 = 1 << 48;
    let source = match interrupted & event::VALID != 0 {
        true if event::is_by_instruction(interrupted) => TaskSwitchSource::SoftwareInterrupt,
        true => TaskSwitchSource::Event,
        false if info & IRET != 0 => TaskSwitchSource::Iret,
        false if info & JUMP != 0 => TaskSwitchSource::Jump,
        false => TaskSwitchSource::Call,
    };
    let error_code = (info & ERROR_CODE_VALID != 0).then_some(info as u32);
    let switch = TaskSwitch::new(selector as u16, source, error_code).with_resume_flag(info & RESUME_FLAG != 0);
    if source == TaskSwitchSource::Event { switch.unless_by_int(interrupted as u8) } else { switch }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm::Size;

    #[test]
    fn task_switches_are_decoded_as_the_manual_draws_them() {
        let source = |info, interrupted| decode_task_switch(0x138, info, interrupted).source();
        assert_eq!(source(0, 0), TaskSwitchSource::Call);
        assert_eq!(source(1 << 36, 0), TaskSwitchSource::Iret);
        assert_eq!(source(1 << 38, 0), TaskSwitchSource::Jump);
        // INT 81h, INT3, an interrupt, an NMI, #NP.
        assert_eq!(source(0, 0x8000_0481), TaskSwitchSource::SoftwareInterrupt);
        assert_eq!(source(0, 0x8000_0303), TaskSwitchSource::SoftwareInterrupt);
        assert_eq!(source(0, 0x8000_0020), TaskSwitchSource::Event);
        assert_eq!(source(0, 0x8000_0202), TaskSwitchSource::Event);
        let fault = decode_task_switch(0x138, 1 << 44 | 1 << 48 | 0x148, 0x0148_8000_0b0b);
        assert_eq!((fault.selector(), fault.error_code(), fault.resume_flag()), (0x138, Some(0x148), Some(true)));
        assert_eq!((fault.source(), fault.vector_in_doubt()), (TaskSwitchSource::Event, Some(0xb)));
        assert_eq!(decode_task_switch(0x138, 0, 0x8000_0481).vector_in_doubt(), None);
        assert_eq!(decode_task_switch(0x138, 0, 0x8000_0481).resume_flag(), Some(false));
    }

    #[test]
    fn io_exits_are_decoded_as_the_manual_draws_them() {
        // IN AL, DX at port 3F8h; REP OUTSW at port 70h, with the address size and segment that it has besides.
        let io = Io::from_svm(0x03f8_0011);
        assert_eq!((io.port(), io.size(), io.is_input(), io.is_string()), (0x3f8, Size::Byte, true, false));
        let io = Io::from_svm(0x0070_0e2c);
        assert_eq!((io.port(), io.size(), io.is_input(), io.is_string()), (0x70, Size::Word, false, true));
    }

    #[test]
    fn nested_faults_are_decoded_as_page_faults() {
        let fault = decode_nested_fault(0x1_0000_0006, 0x1234_5678);
        assert_eq!(fault, NestedFault::new(Gpa::new(0x1234_5678), true, false, false));
    }
}
