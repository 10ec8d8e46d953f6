//! One VM as its exits see it, and the loop that runs a vCPU of it.

use crate::cpuid::Table;
use crate::exit::{Event, Exception, Exit, Instruction, Io, NestedFault};
use crate::open_bus::OpenBus;
use crate::stats::Stats;
use crate::trouble::Trouble;
use crate::vcpu::{INTERRUPT_FLAG, Vcpu};
use crate::{hypercall, msr};
use addr::Gva;
use devices::{Clock, Outcome, Sink, Size};
use emul::string_io::{self, Direction, StringIo};
use emul::{Bitness, Gpr, Known, Segment, mmio};
use walk::{Access, Controls, Features, FetchCache, Fetched, Paging, Privilege, SetAccessedDirty, SlotMem};

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

/// The VM's physical memory.
pub trait Memory: SlotMem {
    /// Gives the address of `fault` memory, if it has any.
    fn fault(&self, fault: NestedFault) -> Resolved;
    /// Does what can wait until the guest sleeps.
    fn idle(&self) {}
    /// Runs the guest by `enter`, which is told whether translations have to be flushed before the guest's next instruction.
    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R;
}

/// What the vCPU loop asks of the machine it runs on.
pub trait Host<V: Vcpu> {
    /// Serves the host's own interrupts; false if the VM has run for long enough.
    fn interrupted(&mut self, vcpu: &mut V) -> bool;
    /// Waits for an interrupt of the host; false as above.
    fn idle(&mut self, vcpu: &mut V) -> bool;
}

/// Whether the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Resume,
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
    /// HLT with interrupts off: nothing can wake the guest.
    Halted,
    /// The host has no frame left for it.
    OutOfMemory,
    /// The guest ran past its limit.
    Limit,
    /// An exit that can't be handled, and why not.
    Unhandled(&'static str),
}

/// One VM, as its handlers see it.
pub struct Machine<M: Memory, S, C> {
    memory: M,
    devices: devices::Machine<S, C>,
    cpuid: Table,
    features: Features,
    code: FetchCache<M::Slot>,
    stats: Stats,
}

const RFLAGS_AC: u64 = 1 << 18;
const EFER_LMA: u64 = 1 << 10;

/// CPUID's answers that walks of the guest's tables depend on.
fn walk_features(cpuid: &Table) -> Features {
    let basic = cpuid.get(1, 0);
    let extended = cpuid.get(0x8000_0001, 0);
    let widths = cpuid.get(0x8000_0008, 0);
    let is_amd = cpuid.get(0, 0).ebx == u32::from_le_bytes(*b"Auth");
    Features {
        maxphyaddr: (widths.eax as u8).clamp(36, 52),
        pages_1g: extended.edx & 1 << 26 != 0,
        pse36: basic.edx & 1 << 17 != 0,
        pml4e_bit8_reserved: is_amd,
    }
}

impl<M: Memory, S: Sink, C: Clock> Machine<M, S, C> {
    /// A VM of this memory and these devices, on a processor that `cpuid` describes to it.
    pub fn new(memory: M, devices: devices::Machine<S, C>, cpuid: Table) -> Self {
        let features = walk_features(&cpuid);
        Self { memory, devices, cpuid, features, code: FetchCache::new(), stats: Stats::default() }
    }

    /// What the exits have cost.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The bytes at the guest's instruction pointer, for people: none where they can't be fetched.
    pub fn code<V: Vcpu>(&self, vcpu: &V) -> Option<Fetched> {
        self.fetch(vcpu, Self::bitness(vcpu)).ok()
    }

    /// Where the guest's console output goes.
    pub fn console(&mut self) -> &mut S {
        self.devices.sink()
    }

    /// Takes the VM apart: its memory is left.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Handles one exit.
    ///
    /// Inlined into the loop, and with one place where instructions are skipped, so that a common exit calls nothing.
    #[inline(always)]
    pub fn handle<V: Vcpu>(&mut self, vcpu: &mut V, exit: Exit) -> Flow {
        let done = match exit {
            Exit::Cpuid => self.cpuid(vcpu),
            Exit::Hypercall => {
                hypercall::call(vcpu);
                Ok(V::HYPERCALL)
            }
            Exit::ReadMsr => Self::read_msr(vcpu),
            Exit::WriteMsr => Self::write_msr(vcpu),
            Exit::Io(io) if !io.is_string() => return self.io(vcpu, io),
            Exit::NestedFault(fault) => return self.nested_fault(vcpu, fault),
            _ => return self.rare(vcpu),
        };
        match done {
            Ok(known) => self.skip(vcpu, known),
            Err(event) => {
                vcpu.inject(event);
                Flow::Resume
            }
        }
    }

    /// Asks again what the exit was, so that the common ones need not keep it in memory.
    #[cold]
    fn rare<V: Vcpu>(&mut self, vcpu: &mut V) -> Flow {
        match vcpu.exit() {
            Exit::Io(io) => self.string_io(vcpu, io),
            Exit::Exception(exception) => self.exception(vcpu, exception),
            Exit::Instruction(Instruction::Invd) => self.skip(vcpu, Known::Invd),
            Exit::Instruction(Instruction::Xsetbv | Instruction::Undefined) => {
                vcpu.inject(Event::UNDEFINED);
                Flow::Resume
            }
            Exit::InterruptWindow => {
                vcpu.request_window(false);
                self.deliver(vcpu);
                Flow::Resume
            }
            Exit::Shutdown => Flow::Stop(Stop::TripleFault),
            Exit::InvalidState => Flow::Stop(Stop::Unhandled("the processor refused the guest's state")),
            _ => Flow::Stop(Stop::Unhandled("an exit that was not asked for")),
        }
    }

    #[inline(always)]
    fn cpuid<V: Vcpu>(&self, vcpu: &mut V) -> Result<Known, Event> {
        let leaf = self.cpuid.get(vcpu.gpr(Gpr::RAX) as u32, vcpu.gpr(Gpr::RCX) as u32);
        vcpu.set_gpr(Gpr::RAX, leaf.eax.into());
        vcpu.set_gpr(Gpr::RBX, leaf.ebx.into());
        vcpu.set_gpr(Gpr::RCX, leaf.ecx.into());
        vcpu.set_gpr(Gpr::RDX, leaf.edx.into());
        Ok(Known::Cpuid)
    }

    #[inline(always)]
    fn read_msr<V: Vcpu>(vcpu: &mut V) -> Result<Known, Event> {
        let value = msr::read(vcpu, vcpu.gpr(Gpr::RCX) as u32).map_err(|msr::Refused| Event::GENERAL_PROTECTION)?;
        vcpu.set_gpr(Gpr::RAX, value & 0xffff_ffff);
        vcpu.set_gpr(Gpr::RDX, value >> 32);
        Ok(Known::Rdmsr)
    }

    #[inline(always)]
    fn write_msr<V: Vcpu>(vcpu: &mut V) -> Result<Known, Event> {
        let value = vcpu.gpr(Gpr::RDX) << 32 | vcpu.gpr(Gpr::RAX) & 0xffff_ffff;
        msr::write(vcpu, vcpu.gpr(Gpr::RCX) as u32, value).map_err(|msr::Refused| Event::GENERAL_PROTECTION)?;
        Ok(Known::Wrmsr)
    }
}

/// Where the exiting instruction ends.
impl<M: Memory, S: Sink, C: Clock> Machine<M, S, C> {
    fn controls<V: Vcpu>(vcpu: &V) -> Controls {
        let control = vcpu.control();
        Controls { cr0: control.cr0, cr3: control.cr3, cr4: control.cr4, efer: control.efer }
    }

    fn privilege<V: Vcpu>(vcpu: &V) -> Privilege {
        match vcpu.control().cpl {
            3 => Privilege::User,
            _ => Privilege::Supervisor { ac: vcpu.rflags() & RFLAGS_AC != 0 },
        }
    }

    fn bitness<V: Vcpu>(vcpu: &V) -> Bitness {
        let code = vcpu.segment(Segment::Cs);
        match (vcpu.control().efer & EFER_LMA != 0 && code.long, code.default_big) {
            (true, _) => Bitness::Bits64,
            (false, true) => Bitness::Bits32,
            (false, false) => Bitness::Bits16,
        }
    }

    /// The linear address of the instruction: in 64-bit mode CS has no base.
    fn code_address<V: Vcpu>(vcpu: &V, bitness: Bitness) -> Gva {
        match bitness {
            Bitness::Bits64 => Gva::new(vcpu.rip()),
            _ => Gva::new(vcpu.segment(Segment::Cs).base.wrapping_add(vcpu.rip()) & 0xffff_ffff),
        }
    }

    /// On whose behalf instructions are fetched: AC makes no difference to that.
    fn fetch_privilege<V: Vcpu>(vcpu: &V) -> Privilege {
        match vcpu.control().cpl {
            3 => Privilege::User,
            _ => Privilege::Supervisor { ac: false },
        }
    }

    /// Goes on behind the exiting instruction, which the exit says is a `known` one.
    #[inline(always)]
    fn skip<V: Vcpu>(&mut self, vcpu: &mut V, known: Known) -> Flow {
        if let Some(rip) = vcpu.next_rip() {
            vcpu.resume_at(rip);
            return Flow::Resume;
        }
        let bitness = Self::bitness(vcpu);
        let at = Self::code_address(vcpu, bitness);
        let first =
            self.code.fetch_u32(&self.memory, &Self::controls(vcpu), &self.features, at, Self::fetch_privilege(vcpu));
        match first.and_then(|first| known.length(first)) {
            Some(length) => {
                vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                Flow::Resume
            }
            None => self.skip_decoded(vcpu, known, bitness),
        }
    }

    /// The instruction has prefixes, or lies in two pages.
    #[cold]
    fn skip_decoded<V: Vcpu>(&mut self, vcpu: &mut V, known: Known, bitness: Bitness) -> Flow {
        match self.fetch(vcpu, bitness).and_then(|bytes| known.decode(bytes.bytes(), bitness).map_err(Into::into)) {
            Ok(length) => {
                vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                Flow::Resume
            }
            Err(trouble) => trouble.tell(vcpu),
        }
    }

    /// The bytes of the exiting instruction.
    fn fetch<V: Vcpu>(&self, vcpu: &V, bitness: Bitness) -> Result<Fetched, Trouble> {
        let at = Self::code_address(vcpu, bitness);
        Ok(walk::fetch(&self.memory, &self.paging(vcpu), at, Self::fetch_privilege(vcpu))?)
    }

    fn paging<V: Vcpu>(&self, vcpu: &V) -> Paging {
        Paging { controls: Self::controls(vcpu), pdptes: None, features: self.features }
    }
}

/// Ports, interrupts, and what else the devices have to do with.
impl<M: Memory, S: Sink, C: Clock> Machine<M, S, C> {
    #[inline]
    fn io<V: Vcpu>(&mut self, vcpu: &mut V, io: Io) -> Flow {
        let rax = vcpu.gpr(Gpr::RAX);
        let flow = if io.is_input() {
            let value = self.devices.read(io.port(), io.size());
            vcpu.set_gpr(Gpr::RAX, merge(rax, value, io.size()));
            Flow::Resume
        } else {
            self.write_port(io.port(), io.size(), rax as u32)
        };
        match vcpu.io_next_rip() {
            Some(rip) => {
                vcpu.resume_at(rip);
                self.deliver(vcpu);
                flow
            }
            None => Flow::Stop(Stop::Unhandled("port I/O without the next instruction's address")),
        }
    }

    #[inline]
    fn write_port(&mut self, port: u16, size: Size, value: u32) -> Flow {
        match self.devices.write(port, size, value) {
            Outcome::Continue => Flow::Resume,
            Outcome::Exit(value) => Flow::Stop(Stop::Exited(value)),
            Outcome::Reset => Flow::Stop(Stop::Reset),
        }
    }

    /// INS and OUTS: as many elements as lie in one page are moved in one exit.
    fn string_io<V: Vcpu>(&mut self, vcpu: &mut V, io: Io) -> Flow {
        let bitness = Self::bitness(vcpu);
        let decoded = self.fetch(vcpu, bitness).and_then(|bytes| Ok(string_io::decode(bytes.bytes(), bitness)?));
        let instruction = match decoded {
            Ok(instruction) => instruction,
            Err(trouble) => return trouble.tell(vcpu),
        };
        let Some(elements) = instruction.next(vcpu) else {
            return self.string_done(vcpu, &instruction, bitness);
        };
        let mut flow = Flow::Resume;
        for element in 0..elements.count {
            let at = elements.at.wrapping_add(element * instruction.width().bytes());
            flow = match self.string_element(vcpu, &instruction, io, at) {
                Ok(flow) => flow,
                Err(trouble) => return trouble.tell(vcpu),
            };
            if !instruction.retire(vcpu, 1) {
                return match self.string_done(vcpu, &instruction, bitness) {
                    Flow::Resume => flow,
                    stop => stop,
                };
            }
            if flow != Flow::Resume {
                break;
            }
        }
        flow
    }

    fn string_done<V: Vcpu>(&mut self, vcpu: &mut V, instruction: &StringIo, bitness: Bitness) -> Flow {
        vcpu.resume_at(bitness.advance(vcpu.rip(), instruction.length()));
        self.deliver(vcpu);
        Flow::Resume
    }

    /// Moves one element between the port and memory at `at`.
    fn string_element<V: Vcpu>(&mut self, vcpu: &V, instruction: &StringIo, io: Io, at: Gva) -> Result<Flow, Trouble> {
        let paging = self.paging(vcpu);
        let privilege = Self::privilege(vcpu);
        let mut bytes = [0; 4];
        let element = &mut bytes[..instruction.width().bytes() as usize];
        match instruction.direction() {
            Direction::In => {
                // Whether memory takes the element has to be known before the port is read: reading may have effects.
                // Of a second page, its start is what a fault tells.
                for byte in [at, at.wrapping_add(element.len() as u64 - 1).align_down(addr::PAGE_SIZE)] {
                    let access = Access { kind: walk::Kind::Write, privilege };
                    walk::translate(&self.memory, &paging, byte, access, SetAccessedDirty::No)?;
                }
                let value = self.devices.read(io.port(), io.size()).to_le_bytes();
                element.copy_from_slice(&value[..element.len()]);
                walk::write(&self.memory, &paging, at, privilege, element)?;
                Ok(Flow::Resume)
            }
            Direction::Out(_) => {
                walk::read(&self.memory, &paging, at, privilege, element)?;
                Ok(self.write_port(io.port(), io.size(), u32::from_le_bytes(bytes)))
            }
        }
    }

    /// Hands the guest an interrupt if one is pending, now or as soon as it takes one.
    #[inline]
    fn deliver<V: Vcpu>(&mut self, vcpu: &mut V) {
        if self.devices.interrupt_pending() {
            self.deliver_pending(vcpu);
        }
    }

    #[cold]
    fn deliver_pending<V: Vcpu>(&mut self, vcpu: &mut V) {
        self.leave_shadowed_halt(vcpu);
        let deliverable = vcpu.interruptible();
        if deliverable {
            vcpu.inject(Event::Interrupt(self.devices.acknowledge_interrupt()));
        }
        vcpu.request_window(!deliverable || self.devices.interrupt_pending());
    }

    /// STI; HLT with an interrupt pending wakes at once. Not every processor keeps the shadow across an entry (QEMU's VMRUN
    /// does not): the interrupt would be taken before the HLT, which then sleeps for ever. So the HLT is carried out here.
    fn leave_shadowed_halt<V: Vcpu>(&mut self, vcpu: &mut V) {
        if !vcpu.shadowed() || vcpu.rflags() & INTERRUPT_FLAG == 0 || vcpu.injecting() {
            return;
        }
        let bitness = Self::bitness(vcpu);
        if let Ok(bytes) = self.fetch(vcpu, bitness)
            && let Ok(length) = Known::Hlt.decode(bytes.bytes(), bitness)
        {
            vcpu.resume_at(bitness.advance(vcpu.rip(), length));
        }
    }

    #[inline]
    fn nested_fault<V: Vcpu>(&mut self, vcpu: &mut V, fault: NestedFault) -> Flow {
        match self.memory.fault(fault) {
            Resolved::Retry => Flow::Resume,
            Resolved::NotMemory if fault.is_fetch() => {
                Flow::Stop(Stop::Unhandled("an instruction fetch from an address that has no memory"))
            }
            Resolved::NotMemory if vcpu.injecting() => {
                Flow::Stop(Stop::Unhandled("the delivery of an event reached an address that has no memory"))
            }
            Resolved::NotMemory => self.no_memory(vcpu).unwrap_or_else(|trouble| trouble.tell(vcpu)),
            Resolved::OutOfMemory => Flow::Stop(Stop::OutOfMemory),
        }
    }

    /// Carries out an instruction whose operand nothing answers.
    #[cold]
    fn no_memory<V: Vcpu>(&mut self, vcpu: &mut V) -> Result<Flow, Trouble> {
        let bitness = Self::bitness(vcpu);
        let bytes = self.fetch(vcpu, bitness)?;
        let Ok(instruction) = mmio::decode(bytes.bytes(), bitness) else {
            return Ok(Flow::Stop(Stop::Unhandled(
                "an instruction that is not emulated, on an address that has no memory",
            )));
        };
        let mut bus = OpenBus { memory: &self.memory, paging: self.paging(vcpu), privilege: Self::privilege(vcpu) };
        if instruction.execute(vcpu, &mut bus)? == mmio::Outcome::Retired {
            vcpu.resume_at(bitness.advance(vcpu.rip(), instruction.length()));
        }
        Ok(Flow::Resume)
    }

    /// The intercepted exceptions go to the guest, but for a #UD that is the other vendor's hypercall.
    fn exception<V: Vcpu>(&mut self, vcpu: &mut V, exception: Exception) -> Flow {
        const UNDEFINED: u8 = 6;
        if exception.vector() == UNDEFINED {
            let bitness = Self::bitness(vcpu);
            if let Ok(bytes) = self.fetch(vcpu, bitness) {
                for known in [Known::Vmcall, Known::Vmmcall] {
                    if let Ok(length) = known.decode(bytes.bytes(), bitness) {
                        hypercall::call(vcpu);
                        vcpu.resume_at(bitness.advance(vcpu.rip(), length));
                        return Flow::Resume;
                    }
                }
            }
        }
        vcpu.inject(Event::Exception(exception));
        Flow::Resume
    }

    /// The host's own interrupts; time has passed for the guest's devices too.
    #[cold]
    fn interrupted<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) -> Flow {
        if !host.interrupted(vcpu) {
            return Flow::Stop(Stop::Limit);
        }
        self.devices.advance();
        self.deliver(vcpu);
        Flow::Resume
    }

    /// HLT: waits until an interrupt wakes the guest.
    fn halt<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) -> Flow {
        if vcpu.rflags() & INTERRUPT_FLAG == 0 {
            return Flow::Stop(Stop::Halted);
        }
        let flow = self.skip(vcpu, Known::Hlt);
        if flow != Flow::Resume || vcpu.injecting() {
            return flow;
        }
        while !self.devices.interrupt_pending() {
            self.memory.idle();
            if !host.idle(vcpu) {
                return Flow::Stop(Stop::Limit);
            }
            self.devices.advance();
        }
        self.deliver(vcpu);
        flow
    }
}

/// RAX after IN: 8 and 16 bits leave the rest alone, 32 bits clear it.
#[inline]
const fn merge(rax: u64, value: u32, size: Size) -> u64 {
    match size {
        Size::Dword => value as u64,
        _ => rax & !(size.ones() as u64) | value as u64,
    }
}

/// Runs a vCPU until its VM ends.
pub fn run<V: Vcpu, M: Memory, S: Sink, C: Clock>(
    vcpu: &mut V,
    machine: &mut Machine<M, S, C>,
    host: &mut impl Host<V>,
) -> Stop {
    loop {
        machine.memory.guest(|flush| {
            if flush {
                vcpu.flush();
            }
            vcpu.enter();
        });
        let stay = vcpu.stay();
        let exit = vcpu.exit();
        let flow = match exit {
            Exit::ExternalInterrupt | Exit::Nmi => machine.interrupted(vcpu, host),
            Exit::Halt => machine.halt(vcpu, host),
            _ => machine.handle(vcpu, exit),
        };
        // Booked only now: what the exit was stays in registers while it is handled.
        machine.stats.exited(exit.kind(), stay);
        if let Flow::Stop(stop) = flow {
            machine.stats.ended();
            return stop;
        }
    }
}
