//! Real mode on a processor without unrestricted guest: instructions are carried out in software, up to the one that turns
//! protected mode on.

use super::control_registers::{check_cr0, check_cr4};
use super::unpaged::{NotDone, Pdptes};
use super::vcpu::VmxVcpu;
use crate::translation::Translation;
use crate::unswitched;
use arch::{CR0_PE, CR0_PG, CR0_TS, CR4_DE, DR6_DEFINED, DR7_DEFINED, MAX_INSTRUCTION, reset};
use emul::interpreter::{self, Exiting, StepResult};
use emul::segmentation::SegmentFault;
use emul::system::{StatusWord, System, write_gpr};
use emul::{Bitness, Memory, Width};
use vm::{
    DebugRegisters, Emulated, Event, Events, Exception, Exit, Gpr, Instruction, Interpreted, Io, Registers, Segment,
    Size, Vcpu,
};
use x86::controlregs::cr2;
use x86::irq::{GENERAL_PROTECTION_FAULT_VECTOR, INVALID_OPCODE_VECTOR};
use x86::vmx::vmcs::control;

/// LMSW and SMSW: PE, MP, EM and TS.
const STATUS_WORD: u64 = 15;

const EVENT_VECTOR: u64 = 0xff;

const fn size(width: Width) -> Size {
    match width {
        Width::Byte => Size::Byte,
        Width::Word => Size::Word,
        Width::Dword | Width::Qword => Size::Dword,
    }
}

/// As the processor would have reported it.
const fn exit(exiting: Exiting) -> Exit {
    match exiting {
        Exiting::Cpuid => Exit::Cpuid,
        Exiting::Rdmsr => Exit::ReadMsr,
        Exiting::Wrmsr => Exit::WriteMsr,
        Exiting::Halt => Exit::Halt,
        Exiting::Hypercall => Exit::Hypercall,
        Exiting::In { port, width } => Exit::Io(Io::new(port, size(width), true, false)),
        Exiting::Out { port, width } => Exit::Io(Io::new(port, size(width), false, false)),
        Exiting::String { port, width, input } => Exit::Io(Io::new(port, size(width), input, true)),
        Exiting::Rdpmc => Exit::Instruction(Instruction::Rdpmc),
        Exiting::Int1 => Exit::Instruction(Instruction::Int1),
        // It does not exit elsewhere.
        Exiting::Rdtsc => Exit::Unknown,
    }
}

impl<T: Translation> VmxVcpu<T> {
    pub(super) fn emulate_next<M: Memory>(&mut self, memory: &mut M) -> Result<Emulated, M::Error>
    where
        M::Error: From<SegmentFault>,
    {
        if core::mem::take(&mut self.needs_pdptes) {
            let (value, next) = (self.operand_of_exit(), self.behind());
            return self.emulate_cr0(value, next, memory);
        }
        if !self.is_real() {
            return Ok(Emulated::Ready);
        }
        if self.injecting() {
            return self.deliver(memory);
        }
        let (code, len) = self.fetch(memory)?;
        let bitness = if self.segment(Segment::Cs).default_big { Bitness::Bits32 } else { Bitness::Bits16 };
        match interpreter::step(&mut Interpreted(self), memory, &code[..len], bitness)? {
            StepResult::Done | StepResult::Iterated | StepResult::Again => Ok(Emulated::Done),
            StepResult::Fault(vector) => Ok(self.raise(vector)),
            StepResult::Exit { exit: Exiting::Rdtsc, next } => {
                let tsc = self.tsc();
                self.set_gpr(Gpr::RAX, tsc & 0xffff_ffff);
                self.set_gpr(Gpr::RDX, tsc >> 32);
                self.resume_at(next);
                Ok(Emulated::Done)
            }
            StepResult::Exit { exit: exiting, next } => Ok(Emulated::Exit { exit: exit(exiting), next }),
            StepResult::System { system, next } => self.emulate_system(system, next, memory),
            // Descriptors are for protected mode.
            StepResult::Unknown | StepResult::LoadSegment { .. } => Ok(Emulated::Unknown),
        }
    }

    /// As many of the bytes at RIP as there are.
    fn fetch<M: Memory>(&self, memory: &mut M) -> Result<([u8; MAX_INSTRUCTION], usize), M::Error> {
        let mut code = [0; MAX_INSTRUCTION];
        let at = addr::Gva::new(self.segment_base(Segment::Cs).wrapping_add(self.rip()) & 0xffff_ffff);
        let in_page = (addr::PAGE_SIZE - at.page_offset()) as usize;
        let (first, second) = code.split_at_mut(in_page.min(MAX_INSTRUCTION));
        memory.fetch(at, first)?;
        let len = match second.is_empty() || memory.fetch(at.wrapping_add(first.len() as u64), second).is_ok() {
            true => MAX_INSTRUCTION,
            false => first.len(),
        };
        Ok((code, len))
    }

    /// By the vector table, as real mode does.
    fn deliver<M: Memory>(&mut self, memory: &mut M) -> Result<Emulated, M::Error>
    where
        M::Error: From<SegmentFault>,
    {
        let vector = self.vmcs.read(control::VMENTRY_INTERRUPTION_INFO_FIELD) & EVENT_VECTOR;
        self.vmcs.write(control::VMENTRY_INTERRUPTION_INFO_FIELD, 0);
        let back = self.rip();
        Ok(match interpreter::interrupt(&mut Interpreted(self), memory, vector as u8, back)? {
            true => Emulated::Done,
            false => Emulated::Unable("an interrupt in real mode for which the vector table is too short"),
        })
    }

    /// A fault at the current instruction, next.
    fn raise(&mut self, vector: u8) -> Emulated {
        self.inject(Event::Exception(Exception::new(vector, None)));
        Emulated::Done
    }

    fn emulate_system<M: Memory>(&mut self, system: System, next: u64, memory: &mut M) -> Result<Emulated, M::Error> {
        let cr0 = self.guest_cr0();
        match system {
            System::WriteCr { cr: 0, from } => return self.emulate_cr0(self.gpr(from) & 0xffff_ffff, next, memory),
            System::Clts => return self.emulate_cr0(cr0 & !CR0_TS, next, memory),
            System::Lmsw(from) => {
                // PE can be set, not cleared.
                let word = self.status_word(from, memory)?;
                return self.emulate_cr0(cr0 & !(STATUS_WORD & !CR0_PE) | word & STATUS_WORD, next, memory);
            }
            System::WriteCr { cr: 2, from } => self.set_cr2(self.gpr(from) & 0xffff_ffff),
            System::WriteCr { cr: 3, from } => self.set_guest_cr3(self.gpr(from) & 0xffff_ffff),
            System::WriteCr { cr: 4, from } => {
                let value = self.gpr(from) & 0xffff_ffff;
                if check_cr4(value, self.offered_cr4).is_err() {
                    return Ok(self.raise(GENERAL_PROTECTION_FAULT_VECTOR));
                }
                self.write_cr4(value);
            }
            System::ReadCr { cr: 0, to } => write_gpr(self, to, Width::Dword, cr0),
            // SAFETY: reading has no effect; the guest's is in the processor.
            System::ReadCr { cr: 2, to } => write_gpr(self, to, Width::Dword, unsafe { cr2() } as u64),
            System::ReadCr { cr: 3, to } => write_gpr(self, to, Width::Dword, self.guest_cr3()),
            System::ReadCr { cr: 4, to } => write_gpr(self, to, Width::Dword, self.guest_cr4()),
            System::Smsw { to: StatusWord::Register(to), width } => write_gpr(self, to, width, cr0),
            System::Smsw { to: StatusWord::Memory(to), .. } => {
                memory.write(to.linear(self), &(cr0 as u16).to_le_bytes())?;
            }
            System::Invlpg(_) => {}
            System::ReadDr { dr, to } => match self.debug_register(dr) {
                Some(dr) => write_gpr(self, to, Width::Dword, self.read_debug_register(dr)),
                None => return Ok(self.raise(INVALID_OPCODE_VECTOR)),
            },
            System::WriteDr { dr, from } => match self.debug_register(dr) {
                Some(dr) => self.write_debug_register(dr, self.gpr(from) & 0xffff_ffff),
                None => return Ok(self.raise(INVALID_OPCODE_VECTOR)),
            },
            _ => return Ok(Emulated::Unknown),
        }
        self.resume_at(next);
        Ok(Emulated::Done)
    }

    /// DR4 and DR5 stand for DR6 and DR7, unless CR4.DE is set (Intel SDM vol. 3, section 18.2.2).
    fn debug_register(&self, register: u8) -> Option<u8> {
        match register {
            4 | 5 if self.guest_cr4() & CR4_DE != 0 => None,
            4 | 5 => Some(register + 2),
            _ => Some(register),
        }
    }

    fn read_debug_register(&self, register: u8) -> u64 {
        match register {
            6 => self.dr6(),
            7 => self.dr7(),
            _ => self.breakpoints()[usize::from(register & 3)],
        }
    }

    fn write_debug_register(&mut self, register: u8, value: u64) {
        match register {
            6 => self.set_dr6(value & DR6_DEFINED | reset::DR6),
            7 => self.set_dr7(value & DR7_DEFINED | reset::DR7),
            _ => unswitched::set_breakpoint(register.into(), value),
        }
    }

    /// LMSW's operand.
    fn status_word<M: Memory>(&self, from: StatusWord, memory: &mut M) -> Result<u64, M::Error> {
        match from {
            StatusWord::Register(gpr) => Ok(self.gpr(gpr)),
            StatusWord::Memory(address) => {
                let mut bytes = [0; 2];
                memory.read(address.linear(self), &mut bytes)?;
                Ok(u16::from_le_bytes(bytes).into())
            }
        }
    }

    /// A write of `value` to CR0 by an instruction that ends at `next`.
    fn emulate_cr0<M: Memory>(&mut self, value: u64, next: u64, memory: &mut M) -> Result<Emulated, M::Error> {
        if self.translation.shadow().is_some() && value & CR0_PG != 0 {
            return Ok(Emulated::Unable("real mode turns protected mode and paging on at once, without nested paging"));
        }
        let done = check_cr0(value).map_err(NotDone::from).and_then(|()| self.change_mode(value, None));
        let done = match done {
            Err(NotDone::NeedsPdptes) => {
                let mut bytes = [0; 32];
                memory.read(addr::Gva::new(self.guest_cr3() & 0xffff_ffe0), &mut bytes)?;
                let pdptes = Pdptes::new(&bytes, self.physical_bits).map_err(NotDone::from);
                pdptes.and_then(|pdptes| self.change_mode(value, Some(pdptes)))
            }
            done => done,
        };
        match done {
            Ok(()) => self.resume_at(next),
            Err(_) => self.inject(Event::GENERAL_PROTECTION),
        }
        Ok(if self.is_real() { Emulated::Done } else { Emulated::Ready })
    }
}
