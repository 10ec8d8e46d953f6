//! What a backend's virtual CPU offers the handlers.

use crate::cpuid::Leaf;
use crate::exit::{Event, Exit};
use crate::task_switch::TaskState;
use addr::Hpa;
use arch::{DR7_GD, RFLAGS_RF, RFLAGS_TF};
use core::fmt;
use emul::interpreter::{Area, Table, TableRegister, VectorInstruction};
use emul::segmentation::DescriptorCache;
use emul::{Gpr, Known, Registers, Segment};
use x86::irq::DEBUG_VECTOR;

/// What the hidden part of a segment register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentState {
    /// The selector, as the guest sees it.
    pub selector: u16,
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u32,
    /// D/B: 32-bit code or stack.
    pub default_big: bool,
    /// L: 64-bit code.
    pub long: bool,
}

/// The registers that say how the guest's addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct ControlRegisters {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
}

/// Where a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As a boot protocol enters the boot vCPU. A vCPU with shadow paging can't start in 64-bit mode.
    Boot(arch::Entry),
    /// In real mode, at the first byte of this 4 KiB page: after INIT, and a SIPI with this vector.
    Sipi(u8),
}

/// Model-specific registers that live in the backend's guest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub enum StateMsr {
    Efer,
    Pat,
}

/// Time stamps around the last stay in the guest, in ticks of the host's TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stay {
    /// The last thing before the entry.
    pub entry: u64,
    /// The first thing after the exit.
    pub exit: u64,
}

/// What an instruction in an interrupt shadow is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// STI.
    Sti,
    /// MOV or POP to SS, which holds back traps as well.
    MovSs,
}

/// What debug exceptions come of, and tell.
pub trait DebugRegisters {
    /// DR6.
    fn dr6(&self) -> u64;
    /// Sets it.
    fn set_dr6(&mut self, dr6: u64);
    /// DR7.
    fn dr7(&self) -> u64;
    /// Sets it.
    fn set_dr7(&mut self, dr7: u64);
    /// IA32_DEBUGCTL: LBR and BTF.
    fn debugctl(&self) -> u64;
    /// Sets it. Not every processor steps by it.
    fn set_debugctl(&mut self, debugctl: u64);
    /// DR0 to DR3.
    fn breakpoints(&self) -> [u64; 4];
    /// What the hardware has held back until the end of the current instruction, which is carried out here, as bits of DR6: a
    /// breakpoint that a load of SS has met. The hardware forgets it.
    fn take_pending_traps(&mut self) -> u64 {
        0
    }
}

/// Interrupts, NMIs and exceptions on their way into the guest.
pub trait Events: Registers + DebugRegisters {
    /// Whether an external interrupt could be taken at the current instruction.
    fn interruptible(&self) -> bool;
    /// Whether the current instruction is in the interrupt shadow of an STI or a load of SS.
    fn in_interrupt_shadow(&self) -> bool;
    /// Delivers `event` at the next entry. At most one an entry.
    ///
    /// The handler of a #DB may access the debug registers (Intel SDM vol. 3, section 18.2.4): GD is cleared. So are LBR and BTF (sections
    /// 18.4.2 and 18.4.3), which neither an exit for a #DB nor its injection does. A fault pushes RF, so
    /// that the instruction does not meet its own breakpoint again (section 18.3.1.1); injection pushes what RFLAGS is (section
    /// 27.6.1.1).
    #[inline]
    fn inject(&mut self, event: Event) {
        if let Event::Exception(exception) = event {
            let rflags = self.rflags();
            if rflags & RFLAGS_TF != 0 {
                self.forget_pending_step();
            }
            if exception.is_fault() {
                self.set_rflags(rflags | RFLAGS_RF);
            } else if exception.vector() == DEBUG_VECTOR {
                self.set_dr7(self.dr7() & !DR7_GD);
                self.set_debugctl(0);
            }
        }
        self.set_event(event);
    }
    /// Forgets a single step that the hardware holds pending at an instruction with TF, which ends in a handler or in another task: these
    /// would begin with the step. Where TF makes steps over all instructions, this ends the interrupt shadow as well, in which the
    /// hardware wants the step to be pending then.
    fn forget_pending_step(&mut self) {}
    /// As [`inject`](Self::inject), and nothing besides.
    fn set_event(&mut self, event: Event);
    /// Whether something is to be delivered at the next entry already.
    fn injecting(&self) -> bool;
    /// Whether that is an event of which the last exit cut the delivery short. For a handler that has injected none yet.
    fn redelivering(&self) -> bool {
        self.injecting()
    }
    /// The exception that is to be delivered at the next entry already.
    fn injected_exception(&self) -> Option<u8>;
    /// The vector of the event that is to be delivered at the next entry already, for backends that report [`Exit::Emulate`].
    fn injected_vector(&self) -> Option<u8> {
        None
    }
    /// Asks for an exit as soon as an interrupt can be taken, or no longer.
    fn request_window(&mut self, wanted: bool);
    /// Whether the exit that [`request_window`](Self::request_window) asked for may come late: the guest has to be left now and then, so
    /// that it is asked for again.
    fn window_may_be_late(&self) -> bool {
        false
    }

    /// CR8, where the processor keeps it and the guest's accesses do not exit. None: each exits ([`Exit::Cr8`]).
    #[inline]
    fn cr8(&self) -> Option<u64> {
        None
    }
    /// The processor's CR8 is `value` from now on, and no exit is asked for ([`watch_cr8`](Self::watch_cr8)).
    fn set_cr8(&mut self, value: u64) {
        let _ = value;
    }
    /// Asks for an exit when the guest takes CR8 below `class`, or no longer. It comes before the MOV ([`Exit::Cr8`]), which may then
    /// write any value, or behind it ([`Exit::TaskPriority`]). CR8 is not below `class` yet. After [`request_window`](Self::request_window), which
    /// may need such exits as well.
    fn watch_cr8(&mut self, class: Option<u8>) {
        let _ = class;
    }

    /// Whether the #DB that has just exited is the end of a single step of the backend's own, behind which it asked for an exit.
    fn ends_own_step(&mut self) -> bool {
        false
    }
    /// Whether an NMI is being handled, from its delivery to the next IRET, or is to be delivered at the next entry.
    fn handles_nmi(&self) -> bool;
    /// Whether an NMI could be taken at the current instruction: none is being handled, from its delivery to the next IRET.
    fn takes_nmi(&self) -> bool;
    /// Asks for an exit as soon as an NMI can be taken, or no longer. After [`request_window`](Self::request_window), which may
    /// be about the same window.
    fn request_nmi_window(&mut self, wanted: bool);
}

/// One virtual CPU: its registers as instructions name them ([`Registers`]), and what the processor keeps besides. The
/// handlers know the vendor by nothing else.
pub trait Vcpu: Registers + Events + TaskState {
    /// The instruction behind [`Exit::Hypercall`].
    const HYPERCALL: Known;

    /// Loads the vCPU on its physical CPU. The caller does so before any other call, if another vCPU was made, loaded or dropped
    /// on this CPU since.
    fn load(&mut self);
    /// What INIT does to the registers, and then where `start` has the vCPU begin. What is pending for it is forgotten.
    fn reset(&mut self, start: Start);
    /// What RESET does: the vCPU is as it was made, and begins at `start`.
    fn power_on(&mut self, start: Start);
    /// Enters the guest and stays until the next exit.
    fn enter(&mut self);
    /// Why the guest was left.
    fn exit(&self) -> Exit;
    /// Whether the guest is in real mode, and the processor has none for guests: behind [`Exit::Emulate`], for backends that report it.
    fn is_emulated(&self) -> bool {
        false
    }
    /// Has the next entry drop every translation of the guest's memory.
    fn flush(&mut self);
    /// Takes the guest's state that the host can't work with out of the processor, and lets the host take its pending interrupts
    /// and NMIs. The next [`enter`](Self::enter) loads that state again.
    fn put(&mut self);
    /// Has each stay in the guest end after so many ticks of the TSC, where the processor has a timer for that. It is for
    /// emulators that keep the host's interrupts back while the guest has its own off.
    fn limit_stay(&mut self, ticks: u64) {
        let _ = ticks;
    }
    /// When the guest was last entered and left.
    fn stay(&self) -> Stay;

    /// EAX, EBX, ECX and EDX as CPUID leaves them, with the upper halves clear.
    #[inline]
    fn set_cpuid(&mut self, leaf: Leaf) {
        self.set_gpr(Gpr::RAX, leaf.eax.into());
        self.set_gpr(Gpr::RBX, leaf.ebx.into());
        self.set_gpr(Gpr::RCX, leaf.ecx.into());
        self.set_gpr(Gpr::RDX, leaf.edx.into());
    }

    /// Goes on at `rip`, past the exiting instruction: an interrupt shadow ends with it.
    fn resume_at(&mut self, rip: u64);
    /// Whether the nested fault that has just exited was of an access to the guest's own page tables, and not to what they lead to.
    fn faulted_in_walk(&self) -> bool {
        false
    }
    /// The instruction at RIP is in an interrupt shadow from now on. No event is on its way.
    fn begin_interrupt_shadow(&mut self, shadow: Shadow);
    /// Loads GDTR or IDTR.
    fn load_table(&mut self, table: Table, register: TableRegister);
    /// Executes an instruction on the vCPU's x87, MMX and SSE registers, which are in the processor. Nothing that could raise an exception
    /// is asked for. RFLAGS behind it, of which some instructions read and write the arithmetic flags.
    fn execute_vector(&mut self, instruction: VectorInstruction, area: &mut Area) -> u64;
    /// Where the exiting instruction ends, if the hardware says.
    fn next_rip(&self) -> Option<u64>;
    /// As [`next_rip`](Self::next_rip), for port I/O, of which some hardware says it alone.
    fn io_next_rip(&self) -> Option<u64> {
        self.next_rip()
    }
    /// DR0 to DR3 or DR7 is `value` from now on: behind [`Exit::DebugRegister`] and [`Exit::Emulate`], for backends that report one of
    /// them.
    fn set_debug_register(&mut self, register: u8, value: u64) {
        let _ = (register, value);
    }
    /// The registers that govern translation.
    fn control(&self) -> ControlRegisters;
    /// The guest's own paging registers, where the processor has others in their place and walks a shadow of the guest's
    /// tables. None with nested paging, where [`control`](Self::control) tells all.
    #[inline]
    fn own_paging(&self) -> Option<&shadow::Registers> {
        None
    }
    /// The same, to be changed; [`apply_paging`](Self::apply_paging) follows.
    #[inline]
    fn own_paging_mut(&mut self) -> Option<&mut shadow::Registers> {
        None
    }
    /// The guest's own paging registers were changed: the processor gets what they ask for, and starts its walks at `root` from
    /// the next entry on, or where it did.
    fn apply_paging(&mut self, root: Option<Hpa>) {
        let _ = root;
    }
    /// Sets CR0 of a vCPU with nested paging, after a write that exited or a switch of tasks. The caller has checked the value. Long mode becomes
    /// active, or inactive, with paging. `pdptes` are PAE's, if that comes on and the processor [holds](Self::holds_pdptes) them.
    fn set_cr0(&mut self, cr0: u64, pdptes: Option<[u64; 4]>) {
        let _ = (cr0, pdptes);
    }
    /// Sets CR4 of a vCPU with nested paging, after a write that exited. The caller has checked the value. Translations go as the
    /// change demands.
    fn set_cr4(&mut self, cr4: u64) {
        let _ = cr4;
    }
    /// Whether the processor has loaded PAE's PDPTEs with CR3, and holds them while memory changes: with EPT. `control` is what
    /// [`control`](Self::control) tells.
    #[inline]
    fn holds_pdptes(&self, control: &ControlRegisters) -> bool {
        let _ = control;
        false
    }
    /// What it holds then.
    fn held_pdptes(&self) -> [u64; 4] {
        [0; 4]
    }
    /// A segment register with its hidden part.
    fn segment(&self, register: Segment) -> SegmentState;
    /// All of the hidden part, by which accesses are checked. Some hardware has to save it first.
    fn descriptor_cache(&mut self, register: Segment) -> DescriptorCache;
    /// CR2.
    fn cr2(&self) -> u64;
    /// Sets CR2, as a page fault does.
    fn set_cr2(&mut self, address: u64);
    /// A register of the guest state.
    fn state_msr(&self, msr: StateMsr) -> u64;
    /// Sets a register of the guest state; the value was checked.
    fn set_state_msr(&mut self, msr: StateMsr, value: u64);
    /// The guest's TSC.
    fn tsc(&self) -> u64;
    /// Sets the guest's TSC so many ticks forward, modulo 2^64.
    fn adjust_tsc(&mut self, ticks: u64);

    /// Writes the exit's reason and the guest's registers, for people.
    ///
    /// # Errors
    /// Those of `out`.
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
