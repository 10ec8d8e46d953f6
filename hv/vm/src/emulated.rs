//! Code that the processor can't execute: real mode, where virtualization has none.

use crate::debug_traps::{int1_ends_at, raise_debug, retire, step_over_branch};
use crate::exit::{Event, Exit, Instruction};
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, NotEmulated, Place, Stop};
use crate::hypercall::{self, Call};
use crate::types::Types;
use crate::vcpu::{DebugRegisters, Emulated, Events, Vcpu};
use arch::msr::DEBUGCTL_BTF;
use arch::{DR6_BS, RFLAGS_TF};
use core::ops::ControlFlow;
use emul::{InstructionName, Registers};
use x86::irq::DOUBLE_FAULT_VECTOR;

/// So many instructions are carried out before the host's interrupts are looked at.
const BATCH: usize = 64;

impl<T: Types> ExitHandler<'_, T> {
    #[cold]
    pub(crate) fn emulate(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Flow {
        for _ in 0..BATCH {
            let steps = vcpu.rflags() & RFLAGS_TF != 0 && !vcpu.injecting() && self.steps_over_next(vcpu);
            let delivered = vcpu.injected_exception();
            let mut space = self.address_space(vcpu);
            let emulated = vcpu.emulate(&mut space);
            let (outcome, hits) = (space.outcome, space.watch.hits);
            // A trap comes before an interrupt that the instruction makes deliverable.
            if matches!(emulated, Ok(Emulated::Done | Emulated::Ready)) && !vcpu.injecting() {
                // INT n clears TF, and has no step behind it.
                let step = if steps && vcpu.rflags() & RFLAGS_TF != 0 { DR6_BS } else { 0 };
                if hits | step != 0 {
                    raise_debug(vcpu, hits | step);
                }
            }
            self.follow_up(vcpu, &outcome, host);
            let flow = match emulated {
                Ok(Emulated::Done) => continue,
                Ok(Emulated::Ready) => return Flow::Resume,
                Ok(Emulated::Exit { exit, next }) => self.emulated_exit(vcpu, exit, next, host),
                Ok(Emulated::Unable(why)) => Flow::Stop(Stop::Unhandled(why)),
                Ok(Emulated::Unknown) => self.unknown(vcpu),
                Err(trouble) => match delivered {
                    Some(vector) => Self::fault_in_delivery(vcpu, vector),
                    None => trouble.tell(vcpu),
                },
            };
            if flow != Flow::Resume {
                return flow;
            }
        }
        self.interrupted(vcpu, host)
    }

    /// Whether TF makes a step over the next instruction: with BTF over branches alone.
    fn steps_over_next(&self, vcpu: &T::Vcpu) -> bool {
        let bitness = Self::bitness(vcpu);
        vcpu.debugctl() & DEBUGCTL_BTF == 0
            || self.fetch(vcpu, bitness).is_ok_and(|fetched| step_over_branch(vcpu, fetched.bytes(), bitness) != 0)
    }

    /// The delivery of exception `vector` has met another fault: #DF, and behind that a shutdown (Intel SDM vol. 3, table 6-5).
    fn fault_in_delivery(vcpu: &mut T::Vcpu, vector: u8) -> Flow {
        if vector == DOUBLE_FAULT_VECTOR {
            return Flow::Stop(Stop::TripleFault);
        }
        vcpu.inject(Event::DOUBLE_FAULT);
        Flow::Resume
    }

    /// The VM ends, by the name of the instruction.
    fn unknown(&self, vcpu: &mut T::Vcpu) -> Flow {
        let bitness = Self::bitness(vcpu);
        match self.fetch(vcpu, bitness) {
            Ok(fetched) => {
                let name = InstructionName::new(fetched.bytes(), bitness);
                Flow::Stop(Stop::NotEmulated(NotEmulated { place: Place::RealMode, name }))
            }
            Err(trouble) => trouble.tell(vcpu),
        }
    }

    /// As for the exit itself, but where the instruction ends is known.
    fn emulated_exit(&mut self, vcpu: &mut T::Vcpu, exit: Exit, next: u64, host: &mut T::Host) -> Flow {
        let done = match exit {
            Exit::Cpuid => self.cpuid(vcpu),
            Exit::ReadMsr => self.read_msr(vcpu),
            Exit::WriteMsr => self.write_msr(vcpu, host),
            Exit::Hypercall => {
                if hypercall::call(vcpu, &mut self.memory) == Call::Unfinished {
                    return Flow::Resume;
                }
                Ok(T::Vcpu::HYPERCALL)
            }
            Exit::Halt => {
                retire(vcpu, next);
                return self.halted(vcpu);
            }
            Exit::Io(io) if io.is_string() => return self.string_io(vcpu, io, host),
            Exit::Instruction(Instruction::Int1) => {
                int1_ends_at(vcpu, next);
                return Flow::Resume;
            }
            Exit::Instruction(Instruction::Rdpmc) => Err(Event::GENERAL_PROTECTION),
            Exit::Io(io) => {
                return match self.trapping_port(vcpu, io, next, host) {
                    ControlFlow::Continue(()) => Flow::Resume,
                    ControlFlow::Break(()) => self.left(),
                };
            }
            _ => return Flow::Stop(Stop::Unhandled("an instruction that is not emulated here")),
        };
        match done {
            Ok(_) => retire(vcpu, next),
            Err(event) => vcpu.inject(event),
        }
        Flow::Resume
    }
}
