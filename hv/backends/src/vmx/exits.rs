//! Why the guest was left, in the form that both vendors share (Intel SDM vol. 3, appendix C).

use super::events::{EVENT_ERROR_CODE, EVENT_TYPE, EVENT_VECTOR, TYPE_INT1, TYPE_NMI};
use super::reason::{self, CrAccess};
use super::switch;
use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use addr::{Gpa, Gva};
use vm::{Cr8, Exception, Exit, Gpr, Instruction, Io, PageFault, TaskSwitch};
use x86::irq::PAGE_FAULT_VECTOR;
use x86::vmx::vmcs::ro;

impl<T: Translation> VmxVcpu<T> {
    #[inline(always)]
    pub(super) fn decode_exit(&self) -> Exit {
        match self.reason {
            reason::CPUID => Exit::Cpuid,
            reason::VMCALL => Exit::Hypercall,
            reason::IO => Exit::Io(Io::from_vmx(self.qualification())),
            reason::RDMSR => Exit::ReadMsr,
            reason::WRMSR => Exit::WriteMsr,
            reason::EPT_VIOLATION => {
                let address = self.vmcs.read(ro::GUEST_PHYSICAL_ADDR_FULL);
                Exit::NestedFault(reason::nested_fault(self.qualification(), address))
            }
            reason::HLT => Exit::Halt,
            reason::EXTERNAL_INTERRUPT => Exit::ExternalInterrupt,
            reason::INTERRUPT_WINDOW => Exit::InterruptWindow,
            _ => self.rare_exit(),
        }
    }

    #[cold]
    fn rare_exit(&self) -> Exit {
        match self.reason {
            reason::EXCEPTION_OR_NMI => self.exception_exit(),
            reason::EPT_MISCONFIGURATION => {
                Exit::Misconfiguration(Gpa::new(self.vmcs.read(ro::GUEST_PHYSICAL_ADDR_FULL)))
            }
            reason::CONTROL_REGISTER => self.control_register_exit(),
            reason::NOT_ENTERED => Exit::Emulate,
            reason::INVLPG => Exit::Invlpg,
            reason::TASK_SWITCH => Exit::TaskSwitch(self.task_switch_exit()),
            reason::TPR_BELOW_THRESHOLD => Exit::TaskPriority,
            reason::NMI_WINDOW => Exit::InterruptWindow,
            // The host has a look at its interrupts, which is what the timer is for.
            reason::PREEMPTION_TIMER => Exit::ExternalInterrupt,
            reason::INVD => Exit::Instruction(Instruction::Invd),
            reason::RDPMC => Exit::Instruction(Instruction::Rdpmc),
            reason::XSETBV => Exit::Instruction(Instruction::Xsetbv),
            reason::GETSEC
            | reason::VMCLEAR..=reason::VMXON
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID => Exit::Instruction(Instruction::Undefined),
            reason::TRIPLE_FAULT => Exit::Shutdown,
            switch::ENTRY_REFUSED => Exit::InvalidState,
            failed if failed & reason::ENTRY_FAILED != 0 => Exit::InvalidState,
            _ => Exit::Unknown,
        }
    }

    /// With nested paging those of other control registers are not reported, but for changes of the mode.
    fn control_register_exit(&self) -> Exit {
        match reason::cr_access(self.qualification()) {
            CrAccess::Write { cr: 8, gpr } => Exit::Cr8(Cr8::new(true, Some(Gpr::new(gpr)))),
            CrAccess::Read { cr: 8, gpr } => Exit::Cr8(Cr8::new(false, Some(Gpr::new(gpr)))),
            _ => Exit::ControlRegister,
        }
    }

    fn task_switch_exit(&self) -> TaskSwitch {
        let interrupted = self.vmcs.read(ro::IDT_VECTORING_INFO);
        let error_code = self.vmcs.read(ro::IDT_VECTORING_ERR_CODE) as u32;
        reason::task_switch(self.qualification(), interrupted, error_code)
    }

    fn exception_exit(&self) -> Exit {
        let info = self.vmcs.read(ro::VMEXIT_INTERRUPTION_INFO);
        if info & EVENT_TYPE == TYPE_NMI {
            return Exit::Nmi;
        }
        if info & EVENT_TYPE == TYPE_INT1 {
            return Exit::Instruction(Instruction::Int1);
        }
        let error_code = self.vmcs.read(ro::VMEXIT_INTERRUPTION_ERR_CODE) as u32;
        if info & EVENT_VECTOR == u64::from(PAGE_FAULT_VECTOR) && self.translation.shadow().is_some() {
            return Exit::PageFault(PageFault::new(Gva::new(self.qualification()), error_code));
        }
        let error_code = (info & EVENT_ERROR_CODE != 0).then_some(error_code);
        Exit::Exception(Exception::new((info & EVENT_VECTOR) as u8, error_code))
    }
}
