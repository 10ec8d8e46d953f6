//! Port I/O.

use crate::address_space::Outcome;
use crate::debug_traps::{between_iterations, end_of_port, retire, retire_watched, traps_behind_port, watch_port};
use crate::exit::Io;
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::segments::segmentation;
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use addr::Gva;
use core::ops::ControlFlow;
use devices::{Effect, Size};
use emul::segmentation::Kind;
use emul::string_io::{self, Direction, StringIo};
use emul::{Bitness, Gpr, Memory, Registers};

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
        let changed = devices.interrupt_pending() || devices.has_message() || devices.take_deadline_moved();
        drop(devices);
        if effect == Effect::Wait {
            // The instruction is executed again when the vCPU has its next turn.
            return self.go(Flow::Yield);
        }
        vcpu.resume_at(next);
        if TRAPS {
            end_of_port(vcpu, io);
        }
        if changed {
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
            Ok(instruction) => self.string_elements(vcpu, &instruction, io, bitness, host),
            Err(trouble) => trouble.tell(vcpu),
        };
        self.devices_changed(vcpu, host);
        flow
    }

    fn string_elements(
        &mut self,
        vcpu: &mut T::Vcpu,
        instruction: &StringIo,
        io: Io,
        bitness: Bitness,
        host: &mut T::Host,
    ) -> Flow {
        let next = bitness.advance(vcpu.rip(), instruction.length());
        let Some(elements) = instruction.next(vcpu) else {
            retire(vcpu, next);
            return Flow::Resume;
        };
        let segmentation = segmentation(vcpu, bitness, instruction.segment());
        let kind = match instruction.direction() {
            Direction::In => Kind::Write,
            Direction::Out(_) => Kind::Read,
        };
        for _ in 0..elements.count.min(BATCH) {
            let at = match segmentation.check(instruction.offset(vcpu), instruction.width().bytes(), kind) {
                Ok(at) => at,
                Err(fault) => return Trouble::Segment(fault).tell(vcpu),
            };
            let mut outcome = Outcome::default();
            let (flow, hits) = match self.string_element(vcpu, instruction, io, at, &mut outcome) {
                Ok((Effect::Wait, _)) => return Flow::Yield,
                Ok((effect, hits)) => (flow(effect), hits | watch_port(vcpu, io)),
                Err(trouble) => return trouble.tell(vcpu),
            };
            let more = instruction.retire(vcpu, 1);
            match more {
                true => between_iterations(vcpu, hits),
                false => retire_watched(vcpu, next, hits),
            }
            for effect in outcome.effects() {
                self.carry_out(vcpu, effect, host);
            }
            if !more || flow != Flow::Resume || vcpu.injecting() {
                return flow;
            }
        }
        Flow::Resume
    }

    /// Moves one element between the port and memory at `at`, an address that has been checked. The effect of the port, and the
    /// breakpoints that are met in memory.
    fn string_element(
        &mut self,
        vcpu: &T::Vcpu,
        instruction: &StringIo,
        io: Io,
        at: Gva,
        outcome: &mut Outcome,
    ) -> Result<(Effect, u64), Trouble> {
        let vm = self.vm;
        let mut space = self.address_space(vcpu);
        let mut bytes = [0; 4];
        let element = &mut bytes[..instruction.width().bytes() as usize];
        let effect = match instruction.direction() {
            Direction::In => {
                // Whether memory takes the element has to be known before the port is read: reading may have effects.
                space.prepare_write(at, element.len())?;
                let value = vm.devices().read(io.port(), io.size()).to_le_bytes();
                element.copy_from_slice(&value[..element.len()]);
                space.write(at, element)?;
                Effect::Continue
            }
            Direction::Out(_) => {
                space.read(at, element)?;
                vm.devices().write(io.port(), io.size(), u32::from_le_bytes(bytes))
            }
        };
        *outcome = space.outcome;
        Ok((effect, space.watch.hits))
    }
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
