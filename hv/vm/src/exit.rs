//! VM exits as both vendors' hardware reports them, in one form.

use addr::{Gpa, Gva};
use core::fmt;
use devices::Size;
use emul::Gpr;
use walk::ErrorCode;
use x86::irq::{
    BREAKPOINT_VECTOR, DEBUG_VECTOR, DOUBLE_FAULT_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR,
    MACHINE_CHECK_VECTOR, OVERFLOW_VECTOR,
};

/// Why the processor left the guest, with what the hardware told about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// CPUID.
    Cpuid,
    /// VMMCALL on AMD, VMCALL on Intel.
    Hypercall,
    /// IN, OUT, INS or OUTS.
    Io(Io),
    /// RDMSR of an intercepted register.
    ReadMsr,
    /// WRMSR of an intercepted register.
    WriteMsr,
    /// MOV to or from CR8.
    Cr8(Cr8),
    /// Behind a MOV to CR8 that took it below what [`watch_cr8`](crate::Events::watch_cr8) was given.
    TaskPriority,
    /// MOV to DR0 to DR3 or DR7, of vCPUs whose processor must not carry it out.
    DebugRegister,
    /// HLT.
    Halt,
    /// A guest physical address that the nested tables do not translate for this access.
    NestedFault(NestedFault),
    /// The nested tables hold an invalid entry on the way to this guest physical address: a bug of the hypervisor.
    Misconfiguration(Gpa),
    /// #PF of a vCPU under shadow paging.
    PageFault(PageFault),
    /// Such a vCPU's access to CR0, CR3 or CR4, by whichever instruction; and with nested paging a write of CR0 or CR4 that the
    /// processor must not carry out.
    ControlRegister,
    /// Such a vCPU's INVLPG.
    Invlpg,
    /// A switch of tasks by hardware, which loads CR3: an exit of such a vCPU, and of all under VMX.
    TaskSwitch(TaskSwitch),
    /// The guest is in real mode, which the processor has not for guests ([`Vcpu::is_emulated`](crate::Vcpu::is_emulated)).
    Emulate,
    /// An exception in the guest that is intercepted.
    Exception(Exception),
    /// XSETBV, INVD and others that the guest's CPUID does not offer or that need no action.
    Instruction(Instruction),
    /// An interrupt for the host.
    ExternalInterrupt,
    /// An NMI for the host.
    Nmi,
    /// The guest can take an interrupt or an NMI now, as was asked for.
    InterruptWindow,
    /// A triple fault in the guest.
    Shutdown,
    /// Whatever the exit was, the processor has left a vCPU under shadow paging with a CR3 that is not the shadow's: it walked
    /// tables of the guest's choice since it loaded that.
    ForeignCr3,
    /// The processor refused to enter: the hypervisor set up a state that can't be.
    InvalidState,
    /// None of the above.
    Unknown,
}

/// Port I/O: the port, the width, the direction, and whether it is INS or OUTS.
///
/// Like the other payloads of [`Exit`] one word: an exit is then a pair of registers, and is never written to memory on its
/// way from the hardware to its handler.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Io(u64);

impl Io {
    const INPUT: u64 = 1 << 0;
    const STRING: u64 = 1 << 2;
    const SIZE_SHIFT: u32 = 4;
    const PORT_SHIFT: u32 = 16;

    /// An access of `size` to `port`.
    #[inline]
    pub const fn new(port: u16, size: Size, input: bool, string: bool) -> Self {
        let bits = if input { Self::INPUT } else { 0 } | if string { Self::STRING } else { 0 };
        Self((port as u64) << Self::PORT_SHIFT | (size as u64) << Self::SIZE_SHIFT | bits)
    }

    /// From SVM's EXITINFO1, which has these fields at these places and others between (AMD APM vol. 2, figure 15-2).
    #[inline]
    pub const fn from_svm(info: u64) -> Self {
        Self(info)
    }

    /// From the exit qualification of VMX (Intel SDM vol. 3, table 28-5): the same fields at other places, and the width less 1.
    #[inline]
    pub const fn from_vmx(qualification: u64) -> Self {
        const PORT: u64 = 0xffff << Io::PORT_SHIFT;
        let size = (qualification & 7) + 1;
        let (input, string) = (qualification >> 3 & Self::INPUT, qualification >> 2 & Self::STRING);
        Self(qualification & PORT | size << Self::SIZE_SHIFT | input | string)
    }

    /// The first port.
    #[inline]
    pub const fn port(self) -> u16 {
        (self.0 >> Self::PORT_SHIFT) as u16
    }

    /// 1, 2 or 4 bytes.
    #[inline]
    pub const fn size(self) -> Size {
        match self.0 >> Self::SIZE_SHIFT & 7 {
            1 => Size::Byte,
            2 => Size::Word,
            _ => Size::Dword,
        }
    }

    /// Whether the guest reads.
    #[inline]
    pub const fn is_input(self) -> bool {
        self.0 & Self::INPUT != 0
    }

    /// INS or OUTS.
    #[inline]
    pub const fn is_string(self) -> bool {
        self.0 & Self::STRING != 0
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.is_input() { "in" } else { "out" };
        let string = if self.is_string() { "s" } else { "" };
        write!(f, "{direction}{string} {:?} {:#x}", self.size(), self.port())
    }
}

/// A MOV to or from CR8, and the general register if the hardware tells it. One word, as [`Io`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr8(u64);

impl Cr8 {
    const WRITE: u64 = 1 << 8;
    const REGISTER_KNOWN: u64 = 1 << 9;

    /// A write or a read of CR8.
    pub const fn new(write: bool, gpr: Option<Gpr>) -> Self {
        let register = match gpr {
            Some(gpr) => Self::REGISTER_KNOWN | gpr.index() as u64,
            None => 0,
        };
        Self(if write { Self::WRITE } else { 0 } | register)
    }

    /// Whether CR8 is written.
    pub const fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// The other operand.
    pub const fn gpr(self) -> Option<Gpr> {
        if self.0 & Self::REGISTER_KNOWN != 0 { Some(Gpr::new(self.0 as u8)) } else { None }
    }
}

/// An access that EPT or NPT could not translate: where, and what the guest was doing. One word, as [`Io`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NestedFault(u64);

impl NestedFault {
    const WRITE: u64 = 1 << 63;
    const FETCH: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 61;
    /// Guest physical addresses have at most 52 bits.
    const ADDRESS: u64 = (1 << 52) - 1;

    /// A fault at `address`: by a write or not, by an instruction fetch or not, and whether there was a translation that
    /// forbade the access.
    #[inline]
    pub const fn new(address: Gpa, write: bool, fetch: bool, present: bool) -> Self {
        let bits = if write { Self::WRITE } else { 0 }
            | if fetch { Self::FETCH } else { 0 }
            | if present { Self::PRESENT } else { 0 };
        Self(address.raw() & Self::ADDRESS | bits)
    }

    /// Where.
    #[inline]
    pub const fn address(self) -> Gpa {
        Gpa::new(self.0 & Self::ADDRESS)
    }

    /// Whether the access was a write.
    #[inline]
    pub const fn is_write(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Whether it was an instruction fetch.
    #[inline]
    pub const fn is_fetch(self) -> bool {
        self.0 & Self::FETCH != 0
    }

    /// Whether a translation was there, and forbade the access.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
}

impl fmt::Debug for NestedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = [(self.is_write(), " write"), (self.is_fetch(), " fetch"), (self.is_present(), " present")];
        write!(f, "{}", self.address())?;
        what.iter().filter(|(is, _)| *is).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// An exception: its vector, and the error code that goes with it. One word, as [`Io`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exception(u64);

impl Exception {
    const HAS_ERROR_CODE: u64 = 1 << 8;
    const ERROR_CODE_SHIFT: u32 = 32;

    /// Exception `vector`, 0 to 31.
    #[inline]
    pub const fn new(vector: u8, error_code: Option<u32>) -> Self {
        match error_code {
            Some(code) => Self(vector as u64 | Self::HAS_ERROR_CODE | (code as u64) << Self::ERROR_CODE_SHIFT),
            None => Self(vector as u64),
        }
    }

    /// 0 to 31.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Whether the instruction runs again behind the handler, and does not find its own breakpoint then. #DB is counted among the
    /// traps, since RFLAGS.RF is not set for those that are faults either (Intel SDM vol. 3, section 18.3.1.1).
    #[inline]
    pub const fn is_fault(self) -> bool {
        const OTHERS: u32 = 1 << DEBUG_VECTOR
            | 1 << BREAKPOINT_VECTOR
            | 1 << OVERFLOW_VECTOR
            | 1 << DOUBLE_FAULT_VECTOR
            | 1 << MACHINE_CHECK_VECTOR;
        OTHERS >> (self.vector() & 31) & 1 == 0
    }

    /// What the processor pushes.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & Self::HAS_ERROR_CODE == 0 { None } else { Some((self.0 >> Self::ERROR_CODE_SHIFT) as u32) }
    }
}

impl fmt::Debug for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exception {} error {:?}", self.vector(), self.error_code())
    }
}

/// A page fault outside of long mode: its linear address, and the processor's error code. One word, as [`Io`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageFault(u64);

impl PageFault {
    /// A fault at `address`, of which 32 bits count.
    #[inline]
    pub const fn new(address: Gva, error_code: u32) -> Self {
        Self(address.raw() & 0xffff_ffff | (error_code as u64) << 32)
    }

    /// Where.
    #[inline]
    pub const fn address(self) -> Gva {
        Gva::new(self.0 & 0xffff_ffff)
    }

    /// Why; unknown bits are dropped.
    #[inline]
    pub const fn error_code(self) -> ErrorCode {
        ErrorCode::from_bits_truncate((self.0 >> 32) as u32)
    }
}

impl fmt::Debug for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.address(), self.error_code())
    }
}

/// What leads to a switch of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskSwitchSource {
    /// Far CALL.
    Call,
    /// IRET with RFLAGS.NT set.
    Iret,
    /// Far JMP.
    Jump,
    /// INT n, INT3, INTO or INT1, through a task gate.
    SoftwareInterrupt,
    /// An interrupt, an NMI or another exception, through a task gate.
    Event,
}

impl TaskSwitchSource {
    /// Whether the new task returns to the old one: the old one stays busy, and the new one is linked to it.
    pub const fn nests(self) -> bool {
        !matches!(self, Self::Iret | Self::Jump)
    }

    /// Whether the old task goes on behind an instruction.
    pub const fn is_instruction(self) -> bool {
        !matches!(self, Self::Event)
    }
}

/// A switch of tasks: the selector of the new task's TSS, what leads to it, and the error code that the new task gets. One word, as
/// [`Io`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TaskSwitch(u64);

impl TaskSwitch {
    const SOURCE_SHIFT: u32 = 16;
    const HAS_ERROR_CODE: u64 = 1 << 20;
    const TELLS_RESUME_FLAG: u64 = 1 << 21;
    const RESUME_FLAG: u64 = 1 << 22;
    const HAS_VECTOR: u64 = 1 << 23;
    const VECTOR_SHIFT: u32 = 24;
    const ERROR_CODE_SHIFT: u32 = 32;

    /// A switch to the TSS of `selector`.
    pub const fn new(selector: u16, source: TaskSwitchSource, error_code: Option<u32>) -> Self {
        let error_code = match error_code {
            Some(code) => Self::HAS_ERROR_CODE | (code as u64) << Self::ERROR_CODE_SHIFT,
            None => 0,
        };
        Self(selector as u64 | (source as u64) << Self::SOURCE_SHIFT | error_code)
    }

    /// The same, with what RFLAGS.RF is in the old task's TSS, where [`rflags`](crate::Registers::rflags) does not tell.
    #[must_use]
    pub const fn with_resume_flag(self, set: bool) -> Self {
        Self(self.0 | Self::TELLS_RESUME_FLAG | if set { Self::RESUME_FLAG } else { 0 })
    }

    /// The same, by the event of `vector`, unless the gate of that vector leads elsewhere: then it is by INT n.
    #[must_use]
    pub const fn unless_by_int(self, vector: u8) -> Self {
        Self(self.0 | Self::HAS_VECTOR | (vector as u64) << Self::VECTOR_SHIFT)
    }

    /// Of the new task's TSS.
    pub const fn selector(self) -> u16 {
        self.0 as u16
    }

    /// What leads to it.
    pub const fn source(self) -> TaskSwitchSource {
        match self.0 >> Self::SOURCE_SHIFT & 7 {
            0 => TaskSwitchSource::Call,
            1 => TaskSwitchSource::Iret,
            2 => TaskSwitchSource::Jump,
            3 => TaskSwitchSource::SoftwareInterrupt,
            _ => TaskSwitchSource::Event,
        }
    }

    /// What is pushed on the new task's stack.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & Self::HAS_ERROR_CODE == 0 { None } else { Some((self.0 >> Self::ERROR_CODE_SHIFT) as u32) }
    }

    /// The vector whose gate has to be looked at.
    pub const fn vector_in_doubt(self) -> Option<u8> {
        if self.0 & Self::HAS_VECTOR == 0 { None } else { Some((self.0 >> Self::VECTOR_SHIFT) as u8) }
    }

    /// What RFLAGS.RF is in the old task's TSS, if the hardware tells.
    pub const fn resume_flag(self) -> Option<bool> {
        if self.0 & Self::TELLS_RESUME_FLAG == 0 { None } else { Some(self.0 & Self::RESUME_FLAG != 0) }
    }
}

impl fmt::Debug for TaskSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {:#x} by {:?} error {:?}", self.selector(), self.source(), self.error_code())
    }
}

/// Instructions that exit and are answered alike by every guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Instruction {
    /// INVD: done as WBINVD would be, that is not at all, since the caches are the host's.
    Invd,
    /// INT1: a trap.
    Int1,
    /// XSETBV: not offered.
    Xsetbv,
    /// RDPMC: no counter is offered (Intel SDM vol. 2, RDPMC: #GP for one that is not there).
    Rdpmc,
    /// What the guest's CPUID does not offer: MONITOR, MWAIT, the vendor's virtualization.
    Undefined,
}

/// Something to deliver to the guest at the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// An NMI.
    Nmi,
    /// An exception, as a fault at the current instruction.
    Exception(Exception),
}

/// Exceptions that handlers raise.
impl Event {
    /// #DB.
    pub const DEBUG: Self = Self::Exception(Exception::new(DEBUG_VECTOR, None));
    /// #UD.
    pub const UNDEFINED: Self = Self::Exception(Exception::new(INVALID_OPCODE_VECTOR, None));
    /// #DF.
    pub const DOUBLE_FAULT: Self = Self::Exception(Exception::new(DOUBLE_FAULT_VECTOR, Some(0)));
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::Exception(Exception::new(GENERAL_PROTECTION_FAULT_VECTOR, Some(0)));
}

/// What exits are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "each names the variant of `Exit` that it counts")]
pub enum ExitKind {
    Cpuid,
    Hypercall,
    IoIn,
    IoOut,
    IoString,
    ReadMsr,
    WriteMsr,
    Cr8,
    DebugRegister,
    Halt,
    NestedFault,
    Misconfiguration,
    PageFault,
    ControlRegister,
    Invlpg,
    TaskSwitch,
    Emulate,
    Exception,
    Instruction,
    ExternalInterrupt,
    Nmi,
    InterruptWindow,
    Shutdown,
    ForeignCr3,
    InvalidState,
    Unknown,
    /// None: what comes before the first exit.
    Start,
}

impl ExitKind {
    /// How many kinds there are.
    pub const COUNT: usize = Self::Unknown as usize + 1;

    /// Names, by number.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "cpuid",
        "hypercall",
        "io-in",
        "io-out",
        "io-string",
        "rdmsr",
        "wrmsr",
        "cr8",
        "dr-access",
        "hlt",
        "nested-fault",
        "misconfiguration",
        "page-fault",
        "cr-access",
        "invlpg",
        "task-switch",
        "emulated",
        "exception",
        "instruction",
        "interrupt",
        "nmi",
        "window",
        "shutdown",
        "foreign-cr3",
        "invalid",
        "unknown",
    ];
}

impl Exit {
    /// What this exit is counted as.
    #[inline]
    pub const fn kind(&self) -> ExitKind {
        match self {
            Self::Cpuid => ExitKind::Cpuid,
            Self::Hypercall => ExitKind::Hypercall,
            Self::Io(io) => match (io.is_string(), io.is_input()) {
                (true, _) => ExitKind::IoString,
                (false, true) => ExitKind::IoIn,
                (false, false) => ExitKind::IoOut,
            },
            Self::ReadMsr => ExitKind::ReadMsr,
            Self::WriteMsr => ExitKind::WriteMsr,
            Self::Cr8(_) | Self::TaskPriority => ExitKind::Cr8,
            Self::DebugRegister => ExitKind::DebugRegister,
            Self::Halt => ExitKind::Halt,
            Self::NestedFault(_) => ExitKind::NestedFault,
            Self::Misconfiguration(_) => ExitKind::Misconfiguration,
            Self::PageFault(_) => ExitKind::PageFault,
            Self::ControlRegister => ExitKind::ControlRegister,
            Self::Invlpg => ExitKind::Invlpg,
            Self::TaskSwitch(_) => ExitKind::TaskSwitch,
            Self::Emulate => ExitKind::Emulate,
            Self::Exception(_) => ExitKind::Exception,
            Self::Instruction(_) => ExitKind::Instruction,
            Self::ExternalInterrupt => ExitKind::ExternalInterrupt,
            Self::Nmi => ExitKind::Nmi,
            Self::InterruptWindow => ExitKind::InterruptWindow,
            Self::Shutdown => ExitKind::Shutdown,
            Self::ForeignCr3 => ExitKind::ForeignCr3,
            Self::InvalidState => ExitKind::InvalidState,
            Self::Unknown => ExitKind::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_switch_is_one_word() {
        use TaskSwitchSource::{Call, Event, Iret, Jump, SoftwareInterrupt};
        for (source, nests, is_instruction) in [
            (Call, true, true),
            (Iret, false, true),
            (Jump, false, true),
            (SoftwareInterrupt, true, true),
            (Event, true, false),
        ] {
            for error in [None, Some(0), Some(0xffff_fffe)] {
                let switch = TaskSwitch::new(0xfff8, source, error).with_resume_flag(error.is_some());
                assert_eq!((switch.selector(), switch.source(), switch.error_code()), (0xfff8, source, error));
                assert_eq!((switch.resume_flag(), switch.vector_in_doubt()), (Some(error.is_some()), None));
                let in_doubt = switch.unless_by_int(0xff);
                assert_eq!((in_doubt.selector(), in_doubt.source(), in_doubt.error_code()), (0xfff8, source, error));
                assert_eq!(in_doubt.vector_in_doubt(), Some(0xff));
                assert_eq!((source.nests(), source.is_instruction()), (nests, is_instruction));
            }
        }
    }

    #[test]
    fn io_is_the_same_from_both_vendors() {
        // IN AL, DX at port 3F8h; REP OUTSW at port 70h; OUT 80h, EAX.
        for (svm, vmx) in [(0x03f8_0011, 0x03f8_0008), (0x0070_0e2c, 0x0070_0031), (0x0080_0040, 0x0080_0043)] {
            let (svm, vmx) = (Io::from_svm(svm), Io::from_vmx(vmx));
            let fields = |io: Io| (io.port(), io.size(), io.is_input(), io.is_string());
            assert_eq!(fields(svm), fields(vmx));
        }
        assert_eq!(Io::from_vmx(0x0070_0031).size(), Size::Word);
    }
}
