//! Code that the processor can't execute: real mode, where virtualization has none.

use crate::debug_traps::{raise_debug, retire};
use crate::exit::Exit;
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::hypercall::{self, Call};
use crate::trouble::Trouble;
use crate::types::Types;
use crate::vcpu::{Emulated, Events, Vcpu};
use addr::Gva;
use arch::{DR6_BS, RFLAGS_TF};
use core::ops::ControlFlow;
use emul::{Registers, Width, real};
use walk::{Operands, Paging, PhysMem, Privilege};

/// So many instructions are carried out before the host's interrupts are looked at.
const BATCH: usize = 64;

impl<T: Types> ExitHandler<'_, T> {
    #[cold]
    pub(crate) fn emulate(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Flow {
        for _ in 0..BATCH {
            let mut memory = Linear { paging: self.paging(vcpu), memory: &self.memory };
            let steps = vcpu.rflags() & RFLAGS_TF != 0 && !vcpu.injecting();
            let emulated = vcpu.emulate(&mut memory);
            // INT n clears TF, and has no step behind it.
            if steps
                && matches!(emulated, Ok(Emulated::Done | Emulated::Ready))
                && vcpu.rflags() & RFLAGS_TF != 0
                && !vcpu.injecting()
            {
                raise_debug(vcpu, DR6_BS);
            }
            let flow = match emulated {
                Ok(Emulated::Done) => continue,
                Ok(Emulated::Ready) => return Flow::Resume,
                Ok(Emulated::Exit { exit, next }) => self.emulated_exit(vcpu, exit, next, host),
                Ok(Emulated::Unable(why)) => Flow::Stop(Stop::Unhandled(why)),
                Err(trouble) => trouble.tell(vcpu),
            };
            if flow != Flow::Resume {
                return flow;
            }
        }
        self.interrupted(vcpu, host)
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

/// The guest's memory while its paging is off: linear addresses are physical ones.
struct Linear<'a, M> {
    memory: &'a M,
    paging: Paging,
}

const KERNEL: Privilege = Privilege::Supervisor { ac: false };

impl<M: PhysMem> Linear<'_, M> {
    const fn operands(&self) -> Operands<'_, M> {
        Operands { mem: self.memory, paging: &self.paging, privilege: KERNEL }
    }
}

impl<M: PhysMem> real::Memory for Linear<'_, M> {
    type Error = Trouble;

    fn read(&mut self, at: Gva, bytes: &mut [u8]) -> Result<(), Trouble> {
        Ok(self.operands().load(at, bytes)?)
    }

    fn write(&mut self, at: Gva, bytes: &[u8]) -> Result<(), Trouble> {
        Ok(self.operands().store(at, bytes)?)
    }

    fn compare_exchange(&mut self, at: Gva, width: Width, old: u64, new: u64) -> Result<bool, Trouble> {
        let bytes = width.bytes() as usize;
        Ok(self.operands().compare_exchange(at, &old.to_le_bytes()[..bytes], &new.to_le_bytes()[..bytes])?)
    }
}
