//! The handlers of one vCPU's exits.

use crate::context::Context;
use crate::debug_traps::{int1_ends_at, retire};
use crate::exit::{Event, Exception, Exit, ExitKind, Instruction};
use crate::flow::{Flow, Stop};
use crate::hypercall::{self, Call};
use crate::msr::{self, MsrError};
use crate::open_bus::OpenBus;
use crate::shared::{VcpuShared, Vm};
use crate::trouble::Trouble;
use crate::types::{Handle, Types};
use crate::vcpu::{ControlRegisters, Events, Stay, Vcpu};
use abi::reasons::SWITCHED_TASKS;
use addr::Gva;
use arch::{EFER_LMA, RFLAGS_AC};
use core::ops::ControlFlow;
use emul::{Bitness, DecodeError, Gpr, Known, Registers, Segment};
use walk::{Controls, Features, Fetched, Paging, PagingRef, Privilege};

/// Handles the exits of one vCPU: the vCPU's own state, and what it shares with the other vCPUs of its VM.
pub struct ExitHandler<'a, T: Types> {
    pub(crate) vm: &'a Vm<T::Sink, T::Clock>,
    pub(crate) context: &'a mut Context<Handle<T>>,
    pub(crate) memory: T::Memory,
    pub(crate) shared: &'a VcpuShared,
    left: Flow,
}

impl<'a, T: Types> ExitHandler<'a, T> {
    /// For the vCPU of `context`, one of `vm`'s. It accesses the VM's memory through `memory`.
    pub fn new(vm: &'a Vm<T::Sink, T::Clock>, context: &'a mut Context<Handle<T>>, memory: T::Memory) -> Self {
        Self { vm, shared: vm.shared(context.index), context, memory, left: Flow::Resume }
    }

    /// The memory.
    pub fn memory(&self) -> &T::Memory {
        &self.memory
    }

    /// The bytes at the guest's instruction pointer, for people: none where they can't be fetched.
    pub fn code(&self, vcpu: &T::Vcpu) -> Option<Fetched> {
        self.fetch(vcpu, Self::bitness(vcpu)).ok()
    }

    /// Handles one exit, after `stay`. On a break, [`left`](Self::left) tells why.
    ///
    /// Inlined into the loop, and with one place where instructions are skipped, so that a common exit calls nothing.
    #[inline(always)]
    pub fn handle(&mut self, vcpu: &mut T::Vcpu, exit: Exit, stay: Stay, host: &mut T::Host) -> ControlFlow<()> {
        // Each arm counts its own exit, so that the exit is matched once.
        let done = match exit {
            Exit::Cpuid => {
                self.context.stats.exited(ExitKind::Cpuid, stay);
                self.cpuid(vcpu)
            }
            Exit::Hypercall => {
                self.context.stats.exited(ExitKind::Hypercall, stay);
                if hypercall::call(vcpu, &mut self.memory) == Call::Unfinished {
                    return ControlFlow::Continue(());
                }
                Ok(T::Vcpu::HYPERCALL)
            }
            Exit::ReadMsr => {
                self.context.stats.exited(ExitKind::ReadMsr, stay);
                self.read_msr(vcpu)
            }
            Exit::WriteMsr => {
                self.context.stats.exited(ExitKind::WriteMsr, stay);
                self.write_msr(vcpu, host)
            }
            Exit::Io(io) if !io.is_string() => {
                self.context.stats.exited(if io.is_input() { ExitKind::IoIn } else { ExitKind::IoOut }, stay);
                return self.io(vcpu, io, host);
            }
            Exit::NestedFault(fault) => {
                self.context.stats.exited(ExitKind::NestedFault, stay);
                return self.nested_fault(vcpu, fault, host);
            }
            Exit::PageFault(fault) if vcpu.own_paging().is_some() => {
                self.context.stats.exited(ExitKind::PageFault, stay);
                return self.page_fault(vcpu, fault, host);
            }
            _ => return self.rare(vcpu, stay, host),
        };
        match done {
            Ok(known) => self.skip(vcpu, known),
            Err(event) => {
                Self::raise(vcpu, event);
                ControlFlow::Continue(())
            }
        }
    }

    // Out of the way of what common exits execute.
    #[cold]
    #[inline(never)]
    fn raise(vcpu: &mut T::Vcpu, event: Event) {
        vcpu.inject(event);
    }

    /// Why the last handler broke.
    pub fn left(&self) -> Flow {
        self.left
    }

    /// What `flow` means to the loop.
    #[inline]
    pub(crate) fn go(&mut self, flow: Flow) -> ControlFlow<()> {
        self.left = flow;
        match flow {
            Flow::Resume => ControlFlow::Continue(()),
            Flow::Yield | Flow::Stop(_) => ControlFlow::Break(()),
        }
    }

    /// Asks again what the exit was, so that the common ones need not keep it in memory.
    #[cold]
    fn rare(&mut self, vcpu: &mut T::Vcpu, stay: Stay, host: &mut T::Host) -> ControlFlow<()> {
        let exit = vcpu.exit();
        self.context.stats.exited(exit.kind(), stay);
        let flow = match exit {
            Exit::ExternalInterrupt | Exit::Nmi => self.interrupted(vcpu, host),
            Exit::Halt => self.halt(vcpu),
            Exit::Cr8(cr8) => self.cr8(vcpu, cr8),
            Exit::TaskPriority => self.task_priority_fell(vcpu),
            Exit::Emulate => self.emulate(vcpu, host),
            Exit::Io(io) => self.string_io(vcpu, io, host),
            Exit::ControlRegister | Exit::DebugRegister | Exit::Invlpg => self.system(vcpu, host),
            Exit::TaskSwitch(switch) => self.task_switch(vcpu, switch, host),
            Exit::Exception(exception) => self.exception(vcpu, exception),
            Exit::Instruction(Instruction::Invd) => return self.skip(vcpu, Known::Invd),
            Exit::Instruction(Instruction::Int1) => self.int1(vcpu),
            Exit::Instruction(Instruction::Rdpmc) => {
                vcpu.inject(Event::GENERAL_PROTECTION);
                Flow::Resume
            }
            Exit::Instruction(Instruction::Xsetbv | Instruction::Undefined) => {
                vcpu.inject(Event::UNDEFINED);
                Flow::Resume
            }
            Exit::InterruptWindow => {
                vcpu.request_window(false);
                vcpu.request_nmi_window(false);
                self.deliver(vcpu);
                Flow::Resume
            }
            Exit::Misconfiguration(at) => Flow::Stop(Stop::Misconfigured(at)),
            Exit::Shutdown => Flow::Stop(Stop::TripleFault),
            Exit::ForeignCr3 => Flow::Stop(Stop::Unhandled(SWITCHED_TASKS)),
            Exit::InvalidState => Flow::Stop(Stop::Unhandled("the processor refused the guest's state")),
            _ => Flow::Stop(Stop::Unhandled("an exit that was not asked for")),
        };
        self.go(flow)
    }

    #[inline(always)]
    pub(crate) fn cpuid(&self, vcpu: &mut T::Vcpu) -> Result<Known, Event> {
        let leaf = self.context.cpuid.get(vcpu.gpr(Gpr::RAX) as u32, vcpu.gpr(Gpr::RCX) as u32);
        vcpu.set_cpuid(leaf);
        Ok(Known::Cpuid)
    }

    #[inline(always)]
    pub(crate) fn read_msr(&mut self, vcpu: &mut T::Vcpu) -> Result<Known, Event> {
        let register = vcpu.gpr(Gpr::RCX) as u32;
        let value = match msr::read(vcpu, register) {
            Some(value) => value,
            None => self.read_rare_msr(vcpu, register).map_err(|refused| self.refuse(register, refused))?,
        };
        vcpu.set_gpr(Gpr::RAX, value & 0xffff_ffff);
        vcpu.set_gpr(Gpr::RDX, value >> 32);
        Ok(Known::Rdmsr)
    }

    #[inline(always)]
    pub(crate) fn write_msr(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Result<Known, Event> {
        let register = vcpu.gpr(Gpr::RCX) as u32;
        let value = vcpu.gpr(Gpr::RDX) << 32 | vcpu.gpr(Gpr::RAX) & 0xffff_ffff;
        if vcpu.own_paging().is_some() && register == x86::msr::IA32_EFER {
            return self.write_own_efer(vcpu, value);
        }
        let written = match msr::write(vcpu, register, value, self.context.offered_efer) {
            Err(MsrError::Unknown) => self.write_rare_msr(vcpu, register, value, host),
            written => written,
        };
        written.map_err(|refused| self.refuse(register, refused))?;
        Ok(Known::Wrmsr)
    }

    /// The access to `register` ends in #GP.
    #[cold]
    fn refuse(&mut self, register: u32, refused: MsrError) -> Event {
        if refused == MsrError::Unknown {
            self.context.stats.wanted_msrs.count(register);
        }
        Event::GENERAL_PROTECTION
    }
}

/// The exiting instruction: its mode, its address, its bytes, and where it ends.
impl<T: Types> ExitHandler<'_, T> {
    pub(crate) fn controls(vcpu: &T::Vcpu) -> Controls {
        controls(&vcpu.control())
    }

    pub(crate) fn privilege(vcpu: &T::Vcpu) -> Privilege {
        match vcpu.control().cpl {
            3 => Privilege::User,
            _ => Privilege::Supervisor { ac: vcpu.rflags() & RFLAGS_AC != 0 },
        }
    }

    pub(crate) fn bitness(vcpu: &T::Vcpu) -> Bitness {
        let code = vcpu.segment(Segment::Cs);
        match (vcpu.control().efer & EFER_LMA != 0 && code.long, code.default_big) {
            (true, _) => Bitness::Bits64,
            (false, true) => Bitness::Bits32,
            (false, false) => Bitness::Bits16,
        }
    }

    /// The linear address of the instruction: in 64-bit mode CS has no base.
    pub(crate) fn code_address(vcpu: &T::Vcpu, bitness: Bitness) -> Gva {
        match bitness {
            Bitness::Bits64 => Gva::new(vcpu.rip()),
            _ => Gva::new(vcpu.segment(Segment::Cs).base.wrapping_add(vcpu.rip()) & 0xffff_ffff),
        }
    }

    /// The privilege of instruction fetches, to which RFLAGS.AC makes no difference.
    pub(crate) fn fetch_privilege(vcpu: &T::Vcpu) -> Privilege {
        match vcpu.control().cpl {
            3 => Privilege::User,
            _ => Privilege::Supervisor { ac: false },
        }
    }

    /// Goes on behind the exiting instruction, which the exit says is a `known` one.
    #[inline(always)]
    pub(crate) fn skip(&mut self, vcpu: &mut T::Vcpu, known: Known) -> ControlFlow<()> {
        if let Some(rip) = vcpu.next_rip() {
            retire(vcpu, rip);
            return ControlFlow::Continue(());
        }
        let bitness = Self::bitness(vcpu);
        let at = Self::code_address(vcpu, bitness);
        let first = self.first_bytes(vcpu, at);
        match first.and_then(|first| known.length(first)) {
            Some(length) => {
                retire(vcpu, bitness.advance(vcpu.rip(), length));
                ControlFlow::Continue(())
            }
            None => self.skip_decoded(vcpu, known, bitness),
        }
    }

    /// The instruction has prefixes, or lies in two pages.
    #[cold]
    fn skip_decoded(&mut self, vcpu: &mut T::Vcpu, known: Known, bitness: Bitness) -> ControlFlow<()> {
        let flow = match self
            .fetch(vcpu, bitness)
            .and_then(|bytes| known.decode(bytes.bytes(), bitness).map_err(Into::into))
        {
            Ok(length) => {
                retire(vcpu, bitness.advance(vcpu.rip(), length));
                Flow::Resume
            }
            // What the instruction did has made an interrupt deliverable, and another vCPU has unmapped the code since. The guest meets
            // the fault when it returns from the interrupt, which would be lost if the fault came on top.
            Err(_) if vcpu.injecting() => Flow::Resume,
            Err(trouble) => trouble.tell(vcpu),
        };
        self.go(flow)
    }

    /// The bytes of the exiting instruction.
    pub(crate) fn fetch(&self, vcpu: &T::Vcpu, bitness: Bitness) -> Result<Fetched, Trouble> {
        let at = Self::code_address(vcpu, bitness);
        Ok(walk::fetch(&OpenBus(&self.memory), &self.paging(vcpu), at, Self::fetch_privilege(vcpu))?)
    }

    /// What `decode` makes of the exiting instruction. Where it needs bytes of a page that isn't there (another vCPU has just taken it
    /// away), the guest gets that page's fault. For instructions of which nothing is done yet.
    #[inline]
    pub(crate) fn decoded<R>(
        &self,
        vcpu: &T::Vcpu,
        bitness: Bitness,
        decode: impl FnOnce(&[u8]) -> Result<R, DecodeError>,
    ) -> Result<R, Trouble> {
        let fetched = self.fetch(vcpu, bitness)?;
        decode(fetched.bytes()).map_err(|error| match (error, fetched.then) {
            (DecodeError::Truncated, Some(fault)) => Trouble::Fault(fault),
            _ => Trouble::Decode(error),
        })
    }

    /// The first four bytes of the exiting instruction, if they can be had at once.
    #[inline(always)]
    pub(crate) fn first_bytes(&mut self, vcpu: &T::Vcpu, at: Gva) -> Option<u32> {
        let Context { code, features, .. } = &mut *self.context;
        let paging = paging_ref(vcpu, features)?;
        code.fetch_u32(&self.memory, paging, at, Self::fetch_privilege(vcpu))
    }

    /// What walks of the guest's tables go by.
    pub(crate) fn paging(&self, vcpu: &T::Vcpu) -> Paging {
        match vcpu.own_paging() {
            Some(own) => *own.paging(),
            None => {
                let (control, features) = (vcpu.control(), self.context.features);
                Paging {
                    controls: controls(&control),
                    pdptes: vcpu.holds_pdptes(&control).then(|| vcpu.held_pdptes()),
                    features,
                }
            }
        }
    }
}

#[inline(always)]
const fn controls(control: &ControlRegisters) -> Controls {
    Controls { cr0: control.cr0, cr3: control.cr3, cr4: control.cr4, efer: control.efer }
}

/// What fetches through the cache go by; `features` are the vCPU's. None where the processor holds PDPTEs: to read them costs more than
/// the cache saves those few guests, and any other guest would pay for the choice.
#[inline(always)]
pub(crate) fn paging_ref<'a, V: Vcpu>(vcpu: &'a V, features: &'a Features) -> Option<PagingRef<'a>> {
    match vcpu.own_paging() {
        Some(own) => Some(own.paging().into()),
        None => {
            let control = vcpu.control();
            (!vcpu.holds_pdptes(&control)).then(|| PagingRef::new(controls(&control), None, features))
        }
    }
}

/// Exceptions that are intercepted.
impl<T: Types> ExitHandler<'_, T> {
    /// The intercepted exceptions go to the guest, but for a #UD that is the other vendor's hypercall, or INT1 (QEMU, as of 7.2, has
    /// none).
    fn exception(&mut self, vcpu: &mut T::Vcpu, exception: Exception) -> Flow {
        if exception.vector() == x86::irq::INVALID_OPCODE_VECTOR
            && let Some((known, next)) = self.undefined_here(vcpu)
        {
            if known == Known::Int1 {
                int1_ends_at(vcpu, next);
            } else if hypercall::call(vcpu, &mut self.memory) == Call::Done {
                retire(vcpu, next);
            }
            return Flow::Resume;
        }
        let is_debug = exception.vector() == x86::irq::DEBUG_VECTOR;
        if !(is_debug && vcpu.ends_own_step()) {
            vcpu.inject(Event::Exception(exception));
        }
        if is_debug {
            // What waited for the end of a step of the backend's own is delivered, or gets another window.
            self.deliver(vcpu);
        }
        Flow::Resume
    }

    /// Which of the instructions that the processor does not have the guest has nevertheless executed, and where it ends. Their usual
    /// encoding is compared, as at other exits of a known instruction.
    fn undefined_here(&mut self, vcpu: &T::Vcpu) -> Option<(Known, u64)> {
        const UNDEFINED: [Known; 3] = [Known::Vmcall, Known::Vmmcall, Known::Int1];
        let bitness = Self::bitness(vcpu);
        let at = Self::code_address(vcpu, bitness);
        let usual = self
            .first_bytes(vcpu, at)
            .and_then(|first| UNDEFINED.into_iter().find_map(|known| Some((known, known.length(first)?))));
        let (known, length) = match usual {
            Some(found) => found,
            None => {
                let bytes = self.fetch(vcpu, bitness).ok()?;
                UNDEFINED.into_iter().find_map(|known| Some((known, known.decode(bytes.bytes(), bitness).ok()?)))?
            }
        };
        Some((known, bitness.advance(vcpu.rip(), length)))
    }
}
