//! Code that the processor can't execute: real mode, where virtualization has none.

use crate::debug_traps::{
    Steps, between_iterations, end_of_int, end_of_interpreted, end_of_ss_load, int1_ends_at, raise_debug, retire,
};
use crate::exit::{Event, Io};
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, NotEmulated, Place, Stop};
use crate::hypercall::{self, Call};
use crate::interpreted::Interpreted;
use crate::mmio::exception;
use crate::task_switch::TaskState;
use crate::trouble::{Trouble, second_fault, segment_exception};
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use core::ops::ControlFlow;
use devices::Size;
use emul::interpreter::{self, Exiting, StepResult};
use emul::segmentation::SegmentFault;
use emul::{Gpr, InstructionName, Known, Registers, Segment, Width};
use walk::Fetched;

/// So many instructions are carried out before the host's interrupts are looked at.
const BATCH: usize = 64;

impl<T: Types> ExitHandler<'_, T> {
    /// Carries out instructions, and delivers events, until the guest has left real mode.
    #[cold]
    pub(crate) fn emulate(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Flow {
        for _ in 0..BATCH {
            if !vcpu.is_emulated() {
                return Flow::Resume;
            }
            let flow = match vcpu.injected_vector() {
                Some(vector) => self.deliver_by_table(vcpu, vector, host),
                None => self.emulate_next(vcpu, host),
            };
            if flow != Flow::Resume {
                return flow;
            }
            // No exit tells when an interrupt or an NMI can be taken.
            self.deliver(vcpu);
        }
        self.interrupted(vcpu, host)
    }

    /// Delivers the event of `vector` by the vector table, as real mode does.
    fn deliver_by_table(&mut self, vcpu: &mut T::Vcpu, vector: u8, host: &mut T::Host) -> Flow {
        let (exception, back, extensions) = (vcpu.injected_exception(), vcpu.rip(), self.context.extensions);
        vcpu.complete_delivery();
        let mut space = self.address_space(vcpu);
        let delivered = interpreter::interrupt(&mut Interpreted(vcpu, extensions), &mut space, vector, back);
        let (outcome, hits) = (space.outcome, space.watch.hits);
        let flow = match (delivered, exception) {
            (Ok(()), _) => {
                if hits != 0 {
                    raise_debug(vcpu, hits);
                }
                Flow::Resume
            }
            (Err(Trouble::Segment(fault)), Some(first)) => match second_fault(first, segment_exception(fault)) {
                Some(event) => {
                    vcpu.inject(event);
                    Flow::Resume
                }
                None => Flow::Stop(Stop::TripleFault),
            },
            (Err(trouble), _) => trouble.tell(vcpu),
        };
        self.follow_up(vcpu, &outcome, host);
        flow
    }

    fn emulate_next(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Flow {
        let (bitness, steps, extensions) = (Self::bitness(vcpu), Steps::over_next(vcpu), self.context.extensions);
        let (fetched, length) = match self.fetch_in_limit(vcpu) {
            Ok(fetched) => fetched,
            Err(trouble) => return trouble.tell(vcpu),
        };
        let code = &fetched.bytes()[..length];
        let mut space = self.address_space(vcpu);
        let step = interpreter::step(&mut Interpreted(vcpu, extensions), &mut space, code, bitness);
        let (outcome, hits) = (space.outcome, space.watch.hits);
        let flow = match step {
            Ok(StepResult::Exit { exit, next }) => self.emulated_exit(vcpu, exit, next, host),
            // It is decoded once more: so that the handler has one caller, and is part of it.
            Ok(StepResult::System { .. }) => self.system(vcpu, host),
            Ok(StepResult::Truncated) => match fetched.then.filter(|_| length == fetched.bytes().len()) {
                Some(fault) => Trouble::Fault(fault).tell(vcpu),
                None => {
                    vcpu.inject(Event::GENERAL_PROTECTION);
                    Flow::Resume
                }
            },
            // Descriptors are for protected mode.
            Ok(StepResult::Unknown | StepResult::LoadSegment { .. } | StepResult::FarTransfer { .. }) => {
                let name = InstructionName::new(code, bitness);
                Flow::Stop(Stop::NotEmulated(NotEmulated { place: Place::RealMode, name }))
            }
            Ok(done) => {
                match done {
                    StepResult::Branched => end_of_interpreted(vcpu, steps, true, hits),
                    StepResult::LoadedSs => end_of_ss_load(vcpu, hits),
                    StepResult::Interrupted => end_of_int(vcpu, steps, hits),
                    StepResult::Iterated => between_iterations(vcpu, hits),
                    StepResult::Fault(vector) => vcpu.inject(exception(vector)),
                    StepResult::Again => {}
                    _ => end_of_interpreted(vcpu, steps, false, hits),
                }
                Flow::Resume
            }
            Err(trouble) => trouble.tell(vcpu),
        };
        // A trap comes before an interrupt that the instruction makes deliverable.
        self.follow_up(vcpu, &outcome, host);
        flow
    }

    /// The bytes at RIP, and how many of them the code segment has. #GP if it has none.
    fn fetch_in_limit(&self, vcpu: &T::Vcpu) -> Result<(Fetched, usize), Trouble> {
        let room = (u64::from(vcpu.segment(Segment::Cs).limit) + 1).saturating_sub(vcpu.rip());
        if room == 0 {
            return Err(SegmentFault::GeneralProtection.into());
        }
        let fetched = self.fetch(vcpu, Self::bitness(vcpu))?;
        let length = room.min(fetched.bytes().len() as u64) as usize;
        Ok((fetched, length))
    }

    /// As for the exit itself, but where the instruction ends is known.
    fn emulated_exit(&mut self, vcpu: &mut T::Vcpu, exit: Exiting, next: u64, host: &mut T::Host) -> Flow {
        let io = |port, width, is_input, is_string| Io::new(port, size(width), is_input, is_string);
        let done = match exit {
            Exiting::Cpuid => self.cpuid(vcpu),
            Exiting::Rdmsr => self.read_msr(vcpu),
            Exiting::Wrmsr => self.write_msr(vcpu, host),
            Exiting::Rdtsc => {
                let tsc = vcpu.tsc();
                vcpu.set_gpr(Gpr::RAX, tsc & 0xffff_ffff);
                vcpu.set_gpr(Gpr::RDX, tsc >> 32);
                Ok(Known::Rdtsc)
            }
            Exiting::Rdpmc => Err(Event::GENERAL_PROTECTION),
            Exiting::Hypercall => {
                if hypercall::call(vcpu, &mut self.memory) == Call::Unfinished {
                    return Flow::Resume;
                }
                Ok(T::Vcpu::HYPERCALL)
            }
            Exiting::Halt => {
                retire(vcpu, next);
                return self.halted(vcpu);
            }
            Exiting::Int1 => {
                int1_ends_at(vcpu, next);
                return Flow::Resume;
            }
            Exiting::In { port, width } => return self.emulated_port(vcpu, io(port, width, true, false), next, host),
            Exiting::Out { port, width } => return self.emulated_port(vcpu, io(port, width, false, false), next, host),
            Exiting::String { port, width, input } => return self.string_io(vcpu, io(port, width, input, true), host),
        };
        match done {
            Ok(_) => retire(vcpu, next),
            Err(event) => vcpu.inject(event),
        }
        Flow::Resume
    }

    fn emulated_port(&mut self, vcpu: &mut T::Vcpu, io: Io, next: u64, host: &mut T::Host) -> Flow {
        match self.trapping_port(vcpu, io, next, host) {
            ControlFlow::Continue(()) => Flow::Resume,
            ControlFlow::Break(()) => self.left(),
        }
    }
}

const fn size(width: Width) -> Size {
    match width {
        Width::Byte => Size::Byte,
        Width::Word => Size::Word,
        Width::Dword | Width::Qword => Size::Dword,
    }
}
