//! Port I/O.

use crate::debug_traps::{
    Watch, between_iterations, end_of_port, retire, retire_watched, traps_behind_port, watch_port,
};
use crate::exit::Io;
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use addr::Gva;
use core::ops::ControlFlow;
use devices::{Effect, Size};
use emul::mmio::MemoryRef;
use emul::segmentation::Kind;
use emul::string_io::{self, Direction, StringIo};
use emul::{Bitness, Gpr, Registers};
use walk::{Access, SetAccessedDirty};

/// So many elements of a string are moved in one exit at most: the host's events wait meanwhile.
const BATCH: u64 = 64;

impl<T: Types> ExitHandler<'_, T> {
    #[inline]
    pub(crate) fn io(&mut self, vcpu: &mut T::Vcpu, io: Io, host: &mut T::Host) -> ControlFlow<()> {
        match vcpu.io_next_rip() {
            Some(next) if traps_behind_port(vcpu) => self.trapping_port(vcpu, io, next, host),
            Some(next) => self.port::<false>(vcpu, io, next, host),
            None => self.go(Flow::Stop(Stop::Unhandled("port I/O without the next instruction's address"))),
        }
    }

    /// IN or OUT with debug traps.
    #[cold]
    #[inline(never)]
    pub(crate) fn trapping_port(
        &mut self,
        vcpu: &mut T::Vcpu,
        io: Io,
        next: u64,
        host: &mut T::Host,
    ) -> ControlFlow<()> {
        self.port::<true>(vcpu, io, next, host)
    }

    /// IN or OUT, which ends at `next`. `TRAPS`: there may be a debug trap behind it.
    #[inline(always)]
    pub(crate) fn port<const TRAPS: bool>(
        &mut self,
        vcpu: &mut T::Vcpu,
        io: Io,
        next: u64,
        host: &mut T::Host,
    ) -> ControlFlow<()> {
        let rax = vcpu.gpr(Gpr::RAX);
        let mut devices = self.vm.devices();
        let effect = if io.is_input() {
            let value = devices.read(io.port(), io.size());
            vcpu.set_gpr(Gpr::RAX, merge(rax, value, io.size()));
            Effect::Continue
        } else {
            devices.write(io.port(), io.size(), rax as u32)
        };
        let pending = devices.interrupt_pending() || devices.has_message();
        drop(devices);
        if effect == Effect::Wait {
            // The instruction is executed again when the vCPU has its next turn.
            return self.go(Flow::Yield);
        }
        vcpu.resume_at(next);
        if TRAPS {
            end_of_port(vcpu, io);
        }
        if pending || devices::changes_deadline(io.port()) {
            self.devices_changed(vcpu, host);
        }
        match effect {
            Effect::Continue => ControlFlow::Continue(()),
            last => self.go(flow(last)),
        }
    }

    /// INS and OUTS: of the elements that lie in one page a batch is moved in one exit.
    pub(crate) fn string_io(&mut self, vcpu: &mut T::Vcpu, io: Io, host: &mut T::Host) -> Flow {
        let bitness = Self::bitness(vcpu);
        let flow = match self.decoded(vcpu, bitness, |bytes| string_io::decode(bytes, bitness)) {
            Ok(instruction) => self.string_elements(vcpu, &instruction, io, bitness),
            Err(trouble) => trouble.tell(vcpu),
        };
        self.devices_changed(vcpu, host);
        flow
    }

    fn string_elements(&mut self, vcpu: &mut T::Vcpu, instruction: &StringIo, io: Io, bitness: Bitness) -> Flow {
        let next = bitness.advance(vcpu.rip(), instruction.length());
        let Some(elements) = instruction.next(vcpu) else {
            retire(vcpu, next);
            return Flow::Resume;
        };
        let segmentation = Self::segmentation(vcpu, bitness, instruction.segment());
        let kind = match instruction.direction() {
            Direction::In => Kind::Write,
            Direction::Out(_) => Kind::Read,
        };
        for _ in 0..elements.count.min(BATCH) {
            let at = match segmentation.check(instruction.offset(vcpu), instruction.width().bytes(), kind) {
                Ok(at) => at,
                Err(fault) => return Trouble::Segment(fault).tell(vcpu),
            };
            let flow = match self.string_element(vcpu, instruction, io, at) {
                Ok(Effect::Wait) => return Flow::Yield,
                Ok(effect) => flow(effect),
                Err(trouble) => return trouble.tell(vcpu),
            };
            let hits = watch_string(vcpu, instruction, io, at);
            let more = instruction.retire(vcpu, 1);
            match more {
                true => between_iterations(vcpu, hits),
                false => retire_watched(vcpu, next, hits),
            }
            if !more || flow != Flow::Resume || vcpu.injecting() {
                return flow;
            }
        }
        Flow::Resume
    }

    /// Moves one element between the port and memory at `at`, an address that has been checked.
    fn string_element(&mut self, vcpu: &T::Vcpu, instruction: &StringIo, io: Io, at: Gva) -> Result<Effect, Trouble> {
        let paging = self.paging(vcpu);
        let privilege = Self::privilege(vcpu);
        let mut bytes = [0; 4];
        let element = &mut bytes[..instruction.width().bytes() as usize];
        match instruction.direction() {
            Direction::In => {
                // Whether memory takes the element has to be known before the port is read: reading may have effects.
                // If the element crosses into a second page that faults, CR2 holds the first byte of that page.
                for byte in [at, at.wrapping_add(element.len() as u64 - 1).align_down(addr::PAGE_SIZE)] {
                    let access = Access { kind: walk::AccessKind::Write, privilege };
                    walk::translate(&self.memory, &paging, byte, access, SetAccessedDirty::No)?;
                }
                let value = self.vm.devices().read(io.port(), io.size()).to_le_bytes();
                element.copy_from_slice(&value[..element.len()]);
                walk::write(&self.memory, &paging, at, privilege, element)?;
                Ok(Effect::Continue)
            }
            Direction::Out(_) => {
                walk::read(&self.memory, &paging, at, privilege, element)?;
                Ok(self.vm.devices().write(io.port(), io.size(), u32::from_le_bytes(bytes)))
            }
        }
    }
}

/// The breakpoints that an element at `at` meets, in memory and at the port.
#[inline]
fn watch_string<V: Vcpu>(vcpu: &V, instruction: &StringIo, io: Io, at: Gva) -> u64 {
    let mut watch = Watch::new(vcpu, at);
    match instruction.direction() {
        Direction::In => watch.write(MemoryRef::Operand, instruction.width()),
        Direction::Out(_) => watch.read(MemoryRef::Operand, instruction.width()),
    }
    watch.hits | watch_port(vcpu, io)
}

/// What a write to a port means for the VM.
const fn flow(effect: Effect) -> Flow {
    match effect {
        Effect::Continue => Flow::Resume,
        Effect::Exit(value) => Flow::Stop(Stop::Exited(value)),
        Effect::Reset => Flow::Stop(Stop::Reset),
        Effect::PowerOff => Flow::Stop(Stop::PoweredOff),
        Effect::Wait => Flow::Yield,
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
