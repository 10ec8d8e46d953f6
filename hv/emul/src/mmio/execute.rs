//! Execution of decoded instructions.

use super::alu::{Binary, Computed, Unary};
use super::{Executed, Mmio, Op, Source};
use crate::memory::{Memory, read, write};
use crate::registers::Operand;
use crate::string_step::StringStep;
use crate::{Gpr, Registers, Segment, Width, address};
use addr::Gva;

const ACCUMULATOR: Operand = Operand::new(Gpr::RAX);

impl Source {
    #[inline]
    fn get<R: Registers + ?Sized>(self, registers: &R, width: Width) -> u64 {
        match self {
            Self::Register(operand) => operand.get(registers, width),
            Self::Immediate(value) => value & width.mask(),
        }
    }
}

impl Mmio {
    /// Executes the instruction, or one iteration of a string instruction. The caller advances RIP.
    ///
    /// No register changes on an error, or when a locked exchange fails because another CPU wrote the memory.
    #[inline]
    pub fn execute<R: Registers + ?Sized, M: Memory + ?Sized>(
        &self,
        registers: &mut R,
        memory: &mut M,
    ) -> Result<Executed, M::Error> {
        match self.op {
            Op::Load { to, to_width, signed } => {
                let value = read(memory, self.linear(registers), self.width)?;
                let value = if signed { self.width.sign_extend(value) } else { value };
                to.set(registers, to_width, value);
                Ok(Executed::Retired)
            }
            Op::Store(from) => {
                write(memory, self.linear(registers), self.width, from.get(registers, self.width))?;
                Ok(Executed::Retired)
            }
            _ => self.execute_rare(registers, memory),
        }
    }

    #[inline(never)]
    fn execute_rare<R: Registers + ?Sized, M: Memory + ?Sized>(
        &self,
        registers: &mut R,
        memory: &mut M,
    ) -> Result<Executed, M::Error> {
        let (width, rflags) = (self.width, registers.rflags());
        let at = self.linear(registers);
        match self.op {
            Op::Load { .. } | Op::Store(_) => self.execute(registers, memory),
            Op::BinaryToMemory(op, from) => {
                let from = from.get(registers, width);
                self.modify(registers, memory, at, op.stores(), |old| op.compute(width, old, from, rflags))
            }
            Op::BinaryToRegister(op, to) => {
                let (result, rflags) = op.compute(width, to.get(registers, width), read(memory, at, width)?, rflags);
                if op.stores() {
                    to.set(registers, width, result);
                }
                registers.set_rflags(rflags);
                Ok(Executed::Retired)
            }
            Op::Unary(op @ Unary::Set(_)) => {
                write(memory, at, width, op.compute(width, 0, rflags).0)?;
                Ok(Executed::Retired)
            }
            Op::Unary(op) => self.modify(registers, memory, at, true, |old| op.compute(width, old, rflags)),
            Op::Bit(op, from) => {
                let offset = from.get(registers, width);
                self.modify(registers, memory, at, op.stores(), |old| op.compute(width, old, offset, rflags))
            }
            Op::Exchange(with) => {
                let old = read(memory, at, width)?;
                if !self.replace(memory, at, old, with.get(registers, width))? {
                    return Ok(Executed::Again);
                }
                with.set(registers, width, old);
                Ok(Executed::Retired)
            }
            Op::ExchangeAdd(with) => {
                let old = read(memory, at, width)?;
                let (sum, rflags) = Binary::Add.compute(width, old, with.get(registers, width), rflags);
                if !self.replace(memory, at, old, sum)? {
                    return Ok(Executed::Again);
                }
                with.set(registers, width, old);
                registers.set_rflags(rflags);
                Ok(Executed::Retired)
            }
            Op::CompareExchange(new) => self.compare_exchange(registers, memory, at, new),
            Op::CompareExchange8b => self.compare_exchange_8b(registers, memory, at),
            Op::Lods(step) => self.iterate(registers, step, |registers| {
                let value = read(memory, at, width)?;
                ACCUMULATOR.set(registers, width, value);
                step.step(registers, Gpr::RSI, 1);
                Ok(())
            }),
            Op::Stos(step) => self.iterate(registers, step, |registers| {
                write(memory, at, width, ACCUMULATOR.get(registers, width))?;
                step.step(registers, Gpr::RDI, 1);
                Ok(())
            }),
            Op::Movs(step) => self.iterate(registers, step, |registers| {
                let to = step.offset(registers, Gpr::RDI);
                let to = address::linear(registers, self.address.bitness, Segment::Es, to);
                memory.prepare_write(to, width.bytes() as usize)?;
                let value = read(memory, at, width)?;
                write(memory, to, width, value)?;
                step.step(registers, Gpr::RSI, 1);
                step.step(registers, Gpr::RDI, 1);
                Ok(())
            }),
            Op::Cmps(step) => self.iterate(registers, step, |registers| {
                let to = step.offset(registers, Gpr::RDI);
                let to = address::linear(registers, self.address.bitness, Segment::Es, to);
                let (a, b) = (read(memory, at, width)?, read(memory, to, width)?);
                registers.set_rflags(Binary::Cmp.compute(width, a, b, rflags).1);
                step.step(registers, Gpr::RSI, 1);
                step.step(registers, Gpr::RDI, 1);
                Ok(())
            }),
            Op::Scas(step) => self.iterate(registers, step, |registers| {
                let (a, b) = (ACCUMULATOR.get(registers, width), read(memory, at, width)?);
                registers.set_rflags(Binary::Cmp.compute(width, a, b, rflags).1);
                step.step(registers, Gpr::RDI, 1);
                Ok(())
            }),
        }
    }

    /// Writes `new` over the `old` that was read. False if another CPU wrote the memory meanwhile.
    fn replace<M: Memory + ?Sized>(&self, memory: &mut M, at: Gva, old: u64, new: u64) -> Result<bool, M::Error> {
        if self.locked {
            memory.compare_exchange(at, self.width, old, new)
        } else {
            write(memory, at, self.width, new).map(|()| true)
        }
    }

    /// Sets RFLAGS and, if `store`, memory to the result of `compute` on memory.
    fn modify<R: Registers + ?Sized, M: Memory + ?Sized>(
        &self,
        registers: &mut R,
        memory: &mut M,
        at: Gva,
        store: bool,
        compute: impl FnOnce(u64) -> Computed,
    ) -> Result<Executed, M::Error> {
        let old = read(memory, at, self.width)?;
        let (result, rflags) = compute(old);
        if store && !self.replace(memory, at, old, result)? {
            return Ok(Executed::Again);
        }
        registers.set_rflags(rflags);
        Ok(Executed::Retired)
    }

    /// CMPXCHG. If the comparison fails, memory is not written, whereas the processor writes the old value back.
    fn compare_exchange<R: Registers + ?Sized, M: Memory + ?Sized>(
        &self,
        registers: &mut R,
        memory: &mut M,
        at: Gva,
        new: Operand,
    ) -> Result<Executed, M::Error> {
        let old = read(memory, at, self.width)?;
        let expected = ACCUMULATOR.get(registers, self.width);
        let (difference, rflags) = Binary::Cmp.compute(self.width, expected, old, registers.rflags());
        if difference != 0 {
            ACCUMULATOR.set(registers, self.width, old);
        } else if !self.replace(memory, at, old, new.get(registers, self.width))? {
            return Ok(Executed::Again);
        }
        registers.set_rflags(rflags);
        Ok(Executed::Retired)
    }

    /// CMPXCHG8B: compares memory with EDX:EAX and stores ECX:EBX. Only ZF changes.
    fn compare_exchange_8b<R: Registers + ?Sized, M: Memory + ?Sized>(
        &self,
        registers: &mut R,
        memory: &mut M,
        at: Gva,
    ) -> Result<Executed, M::Error> {
        let half = |registers: &R, gpr| Operand::new(gpr).get(registers, Width::Dword);
        let pair = |registers: &R, high, low| (half(registers, high) << 32) | half(registers, low);
        let old = read(memory, at, self.width)?;
        let equal = old == pair(registers, Gpr::RDX, Gpr::RAX);
        if !equal {
            Operand::new(Gpr::RDX).set(registers, Width::Dword, old >> 32);
            ACCUMULATOR.set(registers, Width::Dword, old);
        } else if !self.replace(memory, at, old, pair(registers, Gpr::RCX, Gpr::RBX))? {
            return Ok(Executed::Again);
        }
        let zf = if equal { super::alu::ZF } else { 0 };
        registers.set_rflags((registers.rflags() & !super::alu::ZF) | zf);
        Ok(Executed::Retired)
    }

    /// Does one iteration, if RCX is not zero.
    fn iterate<R: Registers + ?Sized, E>(
        &self,
        registers: &mut R,
        step: StringStep,
        once: impl FnOnce(&mut R) -> Result<(), E>,
    ) -> Result<Executed, E> {
        if step.remaining(registers) == 0 {
            return Ok(Executed::Retired);
        }
        once(registers)?;
        Ok(if step.count(registers, 1) { Executed::Iterated } else { Executed::Retired })
    }
}
