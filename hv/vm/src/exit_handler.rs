//! What one vCPU's exits lead to.

#[cfg(doc)]
use crate::context::Activity;
use crate::context::Context;
use crate::exit::{Event, Exception, Exit, Instruction, Kind, NestedFault};
use crate::hypercall::{self, Call};
use crate::msr;
use crate::shared::{Door, Vm};
use crate::trouble::Trouble;
use crate::vcpu::{Stay, Vcpu};
use abi::hypercall::{Refused, TestCall};
use addr::{Gpa, Gva, Hpa};
use core::ops::ControlFlow;
use devices::{Clock, Nanoseconds, Sink};
use emul::{Bitness, Gpr, Known, Segment};
use sched::{Instant, Turn};
use shadow::NoMemory;
use walk::{Access, Controls, Features, Fetched, HandleMem, Paging, PagingRef, Privilege};

/// What became of a guest physical address that the nested tables did not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It does now: the instruction runs again.
    Retry,
    /// There is no memory.
    NotMemory,
    /// There would be memory, but the host has no frame left.
    OutOfMemory,
}

/// The VM's physical memory, as one vCPU uses it.
pub trait Memory: HandleMem {
    /// Gives the address of `fault` memory, if it has any.
    ///
    /// Where the host has no frame left it waits for what other CPUs have to give back: it is called with no lock held.
    fn fault(&mut self, fault: NestedFault) -> Resolved;
    /// Runs the guest by `enter`, which is told whether translations have to be flushed before the guest's next instruction.
    ///
    /// That this CPU is about to run the guest is known to others by then, so `enter` may look for what they have posted, and
    /// return without entering; a flush that it was told of is still owed.
    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R;
    /// A vCPU that has paging registers of its own has another context: tells the shadow of its tables. Where the processor's
    /// walks start from now on.
    fn load_shadow(&mut self, own: &shadow::Registers) -> Hpa {
        let _ = own;
        Hpa::new(0)
    }
    /// Such a vCPU met a page fault at `at`.
    ///
    /// # Errors
    /// The host has no frame left, and none to wait for.
    fn shadow_fault(&mut self, own: &shadow::Registers, at: Gva, access: Access) -> Result<shadow::Outcome, NoMemory> {
        let _ = (own, at, access);
        Ok(shadow::Outcome::Retry)
    }
    /// What is at `at` counts as one of the guest's tables, and is written by an instruction that can't be emulated: the guest may
    /// write it from now on, until the table is used again.
    fn unshadow(&mut self, at: Gpa) {
        let _ = at;
    }
    /// Such a vCPU ran INVLPG.
    fn shadow_invlpg(&mut self, at: Gva) {
        let _ = at;
    }
    /// Gives back what other CPUs have no more use for. To be called when the CPU was interrupted: a kick may ask for it.
    fn poll(&self) {}
    /// Carries out a test call, an operation on the VM's own tables, or a step of it. None: steps are left; the same
    /// call follows, as the guest's instruction runs again, behind the interrupts that wait. It waits for other CPUs: it is
    /// called with no lock held.
    fn test_call(&mut self, call: TestCall) -> Option<Result<u64, Refused>> {
        let _ = call;
        Some(Err(Refused::NoSuchCall))
    }
}

/// What the vCPU loop asks of the CPU that it runs on.
pub trait Host<V: Vcpu> {
    /// Serves the CPU's own interrupts.
    fn interrupted(&mut self, vcpu: &mut V) -> Turn;
    /// From when on an exit counts as an interrupt as well, by the host's TSC: a guest whose exits follow each other before the
    /// processor takes a pending interrupt would keep the CPU for ever.
    fn next_event(&self) -> Instant;
    /// Sees to it that the guest is left when its clock shows `deadline`.
    fn wake_at(&mut self, deadline: Option<Nanoseconds>);
    /// Makes the CPU of vCPU `vcpu` of the same VM leave its guest or its sleep, if it is away.
    fn kick(&mut self, vcpu: usize);
    /// What `ticks` of the TSC are in nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64;
}

/// Whether the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Resume,
    /// Not on this CPU, for now: what it waits for is in its [`Activity`].
    Yield,
    /// It does not.
    Stop(Stop),
}

/// Why a VM has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest wrote this to the exit port: 0 is success.
    Exited(u32),
    /// A triple fault.
    TripleFault,
    /// The guest asked for a reset, which ends a VM here.
    Reset,
    /// No vCPU runs, and none can be woken.
    Halted,
    /// The host has no frame left for it.
    OutOfMemory,
    /// The guest ran past its limit.
    Limit,
    /// The nested tables have an entry that makes no sense on the way to this address.
    Misconfigured(Gpa),
    /// An exit that can't be handled, and why not.
    Unhandled(&'static str),
}

/// One vCPU's handlers: what is its own, and what it shares.
pub struct ExitHandler<'a, M: Memory, S, C> {
    pub(crate) vm: &'a Vm<S, C>,
    pub(crate) context: &'a mut Context<M::Handle>,
    pub(crate) memory: M,
    pub(crate) door: &'a Door,
    left: Flow,
}

const RFLAGS_AC: u64 = 1 << 18;
const EFER_LMA: u64 = 1 << 10;

impl<'a, M: Memory, S: Sink, C: Clock + Clone> ExitHandler<'a, M, S, C> {
    /// The handlers of `context`, one of `vm`'s vCPUs, which sees its memory through `memory`.
    pub fn new(vm: &'a Vm<S, C>, context: &'a mut Context<M::Handle>, memory: M) -> Self {
        Self { vm, door: vm.door(context.index), context, memory, left: Flow::Resume }
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The bytes at the guest's instruction pointer, for people: none where they can't be fetched.
    pub fn code<V: Vcpu>(&self, vcpu: &V) -> Option<Fetched> {
        self.fetch(vcpu, Self::bitness(vcpu)).ok()
    }

    /// Handles one exit, after `stay`. On a break, [`left`](Self::left) tells why.
    ///
    /// Inlined into the loop, and with one place where instructions are skipped, so that a common exit calls nothing.
    #[inline(always)]
    pub fn handle<V: Vcpu>(
        &mut self,
        vcpu: &mut V,
        exit: Exit,
        stay: Stay,
        host: &mut impl Host<V>,
    ) -> ControlFlow<()> {
        // Each is booked in its own arm: what the exit is has to be found out but once.
        let done = match exit {
            Exit::Cpuid => {
                self.context.stats.exited(Kind::Cpuid, stay);
                self.cpuid(vcpu)
            }
            Exit::Hypercall => {
                self.context.stats.exited(Kind::Hypercall, stay);
                if hypercall::call(vcpu, &mut self.memory) == Call::Unfinished {
                    return ControlFlow::Continue(());
                }
                Ok(V::HYPERCALL)
            }
            Exit::ReadMsr => {
                self.context.stats.exited(Kind::ReadMsr, stay);
                self.read_msr(vcpu)
            }
            Exit::WriteMsr => {
                self.context.stats.exited(Kind::WriteMsr, stay);
                self.write_msr(vcpu, host)
            }
            Exit::Io(io) if !io.is_string() => {
                self.context.stats.exited(if io.is_input() { Kind::IoIn } else { Kind::IoOut }, stay);
                return self.io(vcpu, io, host);
            }
            Exit::NestedFault(fault) => {
                self.context.stats.exited(Kind::NestedFault, stay);
                return self.nested_fault(vcpu, fault, host);
            }
            Exit::PageFault(fault) if vcpu.own_paging().is_some() => {
                self.context.stats.exited(Kind::PageFault, stay);
                return self.page_fault(vcpu, fault, host);
            }
            _ => return self.rare(vcpu, stay, host),
        };
        match done {
            Ok(known) => self.skip(vcpu, known),
            Err(event) => {
                vcpu.inject(event);
                ControlFlow::Continue(())
            }
        }
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
    fn rare<V: Vcpu>(&mut self, vcpu: &mut V, stay: Stay, host: &mut impl Host<V>) -> ControlFlow<()> {
        let exit = vcpu.exit();
        self.context.stats.exited(exit.kind(), stay);
        let flow = match exit {
            Exit::ExternalInterrupt | Exit::Nmi => self.interrupted(vcpu, host),
            Exit::Halt => self.halt(vcpu),
            Exit::Cr8(cr8) => self.cr8(vcpu, cr8),
            Exit::Emulate => self.emulate(vcpu, host),
            Exit::Io(io) => self.string_io(vcpu, io, host),
            Exit::ControlRegister | Exit::Invlpg => self.system(vcpu),
            Exit::TaskSwitch => Flow::Stop(Stop::Unhandled("a switch of tasks by hardware, which is not emulated")),
            Exit::Exception(exception) => self.exception(vcpu, exception),
            Exit::Instruction(Instruction::Invd) => return self.skip(vcpu, Known::Invd),
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
            Exit::InvalidState => Flow::Stop(Stop::Unhandled("the processor refused the guest's state")),
            _ => Flow::Stop(Stop::Unhandled("an exit that was not asked for")),
        };
        self.go(flow)
    }

    #[inline(always)]
    pub(crate) fn cpuid<V: Vcpu>(&self, vcpu: &mut V) -> Result<Known, Event> {
        let leaf = self.context.cpuid.get(vcpu.gpr(Gpr::RAX) as u32, vcpu.gpr(Gpr::RCX) as u32);
        vcpu.set_cpuid(leaf);
        Ok(Known::Cpuid)
    }

    #[inline(always)]
    pub(crate) fn read_msr<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<Known, Event> {
        let register = vcpu.gpr(Gpr::RCX) as u32;
        let value = msr::read(vcpu, register).or_else(|msr::Refused| self.read_apic_msr(register));
        let value = value.map_err(|msr::Refused| Event::GENERAL_PROTECTION)?;
        vcpu.set_gpr(Gpr::RAX, value & 0xffff_ffff);
        vcpu.set_gpr(Gpr::RDX, value >> 32);
        Ok(Known::Rdmsr)
    }

    #[inline(always)]
    pub(crate) fn write_msr<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) -> Result<Known, Event> {
        let register = vcpu.gpr(Gpr::RCX) as u32;
        let value = vcpu.gpr(Gpr::RDX) << 32 | vcpu.gpr(Gpr::RAX) & 0xffff_ffff;
        if vcpu.own_paging().is_some() && register == x86::msr::IA32_EFER {
            return self.write_own_efer(vcpu, value);
        }
        let written = msr::write(vcpu, register, value);
        let written = written.or_else(|msr::Refused| self.write_apic_msr(vcpu, register, value, host));
        written.map_err(|msr::Refused| Event::GENERAL_PROTECTION)?;
        Ok(Known::Wrmsr)
    }
}

/// Where the exiting instruction ends.
impl<M: Memory, S: Sink, C: Clock + Clone> ExitHandler<'_, M, S, C> {
    pub(crate) fn controls<V: Vcpu>(vcpu: &V) -> Controls {
        let control = vcpu.control();
        Controls { cr0: control.cr0, cr3: control.cr3, cr4: control.cr4, efer: control.efer }
    }

    pub(crate) fn privilege<V: Vcpu>(vcpu: &V) -> Privilege {
        match vcpu.control().cpl {
            3 => Privilege::User,
            _ => Privilege::Supervisor { ac: vcpu.rflags() & RFLAGS_AC != 0 },
        }
    }

    pub(crate) fn bitness<V: Vcpu>(vcpu: &V) -> Bitness {
        let code = vcpu.segment(Segment::Cs);
        match (vcpu.control().efer & EFER_LMA != 0 && code.long, code.default_big) {
            (true, _) => Bitness::Bits64,
            (false, true) => Bitness::Bits32,
            (false, false) => Bitness::Bits16,
        }
    }

    /// The linear address of the instruction: in 64-bit mode CS has no base.
    pub(crate) fn code_address<V: Vcpu>(vcpu: &V, bitness: Bitness) -> Gva {
        match bitness {
            Bitness::Bits64 => Gva::new(vcpu.rip()),
            _ => Gva::new(vcpu.segment(Segment::Cs).base.wrapping_add(vcpu.rip()) & 0xffff_ffff),
        }
    }

    /// On whose behalf instructions are fetched: AC makes no difference to that.
    pub(crate) fn fetch_privilege<V: Vcpu>(vcpu: &V) -> Privilege {
        match vcpu.control().cpl {
            3 => Privilege::User,
            _ => Privilege::Supervisor { ac: false },
        }
    }

    /// Goes on behind the exiting instruction, which the exit says is a `known` one.
    #[inline(always)]
    pub(crate) fn skip<V: Vcpu>(&mut self, vcpu: &mut V, known: Known) -> ControlFlow<()> {
        if let Some(rip) = vcpu.next_rip() {
            vcpu.resume_at(rip);
            return ControlFlow::Continue(());
        }
        let bitness = Self::bitness(vcpu);
        let at = Self::code_address(vcpu, bitness);
        let first = self.first_bytes(vcpu, at);
        match first.and_then(|first| known.length(first)) {
            Some(length) => {
                vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                ControlFlow::Continue(())
            }
            None => self.skip_decoded(vcpu, known, bitness),
        }
    }

    /// The instruction has prefixes, or lies in two pages.
    #[cold]
    fn skip_decoded<V: Vcpu>(&mut self, vcpu: &mut V, known: Known, bitness: Bitness) -> ControlFlow<()> {
        let flow = match self
            .fetch(vcpu, bitness)
            .and_then(|bytes| known.decode(bytes.bytes(), bitness).map_err(Into::into))
        {
            Ok(length) => {
                vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                Flow::Resume
            }
            Err(trouble) => trouble.tell(vcpu),
        };
        self.go(flow)
    }

    /// The bytes of the exiting instruction.
    pub(crate) fn fetch<V: Vcpu>(&self, vcpu: &V, bitness: Bitness) -> Result<Fetched, Trouble> {
        let at = Self::code_address(vcpu, bitness);
        Ok(walk::fetch(&self.memory, &self.paging(vcpu), at, Self::fetch_privilege(vcpu))?)
    }

    /// The first four bytes of the exiting instruction, if they can be had at once.
    #[inline(always)]
    pub(crate) fn first_bytes<V: Vcpu>(&mut self, vcpu: &V, at: Gva) -> Option<u32> {
        let Context { code, features, .. } = &mut *self.context;
        code.fetch_u32(&self.memory, paging_ref(vcpu, features), at, Self::fetch_privilege(vcpu))
    }

    /// What walks of the guest's tables go by.
    pub(crate) fn paging<V: Vcpu>(&self, vcpu: &V) -> Paging {
        match vcpu.own_paging() {
            Some(own) => *own.paging(),
            None => Paging { controls: Self::controls(vcpu), pdptes: None, features: self.context.features },
        }
    }
}

/// What fetches go by; `features` are the vCPU's.
#[inline(always)]
pub(crate) fn paging_ref<'a, V: Vcpu>(vcpu: &'a V, features: &'a Features) -> PagingRef<'a> {
    match vcpu.own_paging() {
        Some(own) => own.paging().into(),
        None => {
            let control = vcpu.control();
            let controls = Controls { cr0: control.cr0, cr3: control.cr3, cr4: control.cr4, efer: control.efer };
            PagingRef::new(controls, None, features)
        }
    }
}

/// Exceptions that are intercepted.
impl<M: Memory, S: Sink, C: Clock + Clone> ExitHandler<'_, M, S, C> {
    /// The intercepted exceptions go to the guest, but for a #UD that is the other vendor's hypercall.
    fn exception<V: Vcpu>(&mut self, vcpu: &mut V, exception: Exception) -> Flow {
        const UNDEFINED: u8 = 6;
        if exception.vector() == UNDEFINED {
            let bitness = Self::bitness(vcpu);
            if let Ok(bytes) = self.fetch(vcpu, bitness) {
                for known in [Known::Vmcall, Known::Vmmcall] {
                    if let Ok(length) = known.decode(bytes.bytes(), bitness) {
                        if hypercall::call(vcpu, &mut self.memory) == Call::Done {
                            vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                        }
                        return Flow::Resume;
                    }
                }
            }
        }
        vcpu.inject(Event::Exception(exception));
        Flow::Resume
    }
}
