//! Execution of decoded instructions.

use super::alu::{Binary, Computed, Unary};
use super::{Bus, Executed, MemoryRef, Mmio, Op, Source};
use crate::registers::Operand;
use crate::string_step::StringStep;
use crate::{Gpr, Registers, Segment, Width, address};

const ACCUMULATOR: Operand = Operand::new(Gpr::RAX);

impl Source {
    #[inline]
    fn get<R: Registers>(self, registers: &R, width: Width) -> u64 {
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
    pub fn execute<R: Registers, B: Bus>(&self, registers: &mut R, bus: &mut B) -> Result<Executed, B::Error> {
        match self.op {
            Op::Load { to, to_width, signed } => {
                let value = self.read(bus)?;
                let value = if signed { self.width.sign_extend(value) } else { value };
                to.set(registers, to_width, value);
                Ok(Executed::Retired)
            }
            Op::Store(from) => {
                bus.write(MemoryRef::Operand, self.width, from.get(registers, self.width))?;
                Ok(Executed::Retired)
            }
            _ => self.execute_rare(registers, bus),
        }
    }

    #[inline(never)]
    fn execute_rare<R: Registers, B: Bus>(&self, registers: &mut R, bus: &mut B) -> Result<Executed, B::Error> {
        let (width, rflags) = (self.width, registers.rflags());
        match self.op {
            Op::Load { .. } | Op::Store(_) => self.execute(registers, bus),
            Op::BinaryToMemory(op, from) => {
                let from = from.get(registers, width);
                self.modify(registers, bus, op.stores(), |old| op.compute(width, old, from, rflags))
            }
            Op::BinaryToRegister(op, to) => {
                let (result, rflags) = op.compute(width, to.get(registers, width), self.read(bus)?, rflags);
                if op.stores() {
                    to.set(registers, width, result);
                }
                registers.set_rflags(rflags);
                Ok(Executed::Retired)
            }
            Op::Unary(op @ Unary::Set(_)) => {
                bus.write(MemoryRef::Operand, width, op.compute(width, 0, rflags).0)?;
                Ok(Executed::Retired)
            }
            Op::Unary(op) => self.modify(registers, bus, true, |old| op.compute(width, old, rflags)),
            Op::Bit(op, from) => {
                let offset = from.get(registers, width);
                self.modify(registers, bus, op.stores(), |old| op.compute(width, old, offset, rflags))
            }
            Op::Exchange(with) => {
                let old = self.read(bus)?;
                if !self.replace(bus, old, with.get(registers, width))? {
                    return Ok(Executed::Again);
                }
                with.set(registers, width, old);
                Ok(Executed::Retired)
            }
            Op::ExchangeAdd(with) => {
                let old = self.read(bus)?;
                let (sum, rflags) = Binary::Add.compute(width, old, with.get(registers, width), rflags);
                if !self.replace(bus, old, sum)? {
                    return Ok(Executed::Again);
                }
                with.set(registers, width, old);
                registers.set_rflags(rflags);
                Ok(Executed::Retired)
            }
            Op::CompareExchange(new) => self.compare_exchange(registers, bus, new),
            Op::CompareExchange8b => self.compare_exchange_8b(registers, bus),
            Op::Lods(step) => self.iterate(registers, step, |registers| {
                let value = self.read(bus)?;
                ACCUMULATOR.set(registers, width, value);
                step.step(registers, Gpr::RSI, 1);
                Ok(())
            }),
            Op::Stos(step) => self.iterate(registers, step, |registers| {
                bus.write(MemoryRef::Operand, width, ACCUMULATOR.get(registers, width))?;
                step.step(registers, Gpr::RDI, 1);
                Ok(())
            }),
            Op::Movs(step) => self.iterate(registers, step, |registers| {
                let to = step.offset(registers, Gpr::RDI);
                let to = address::linear(registers, self.address.bitness, Segment::Es, to);
                let value = bus.read(MemoryRef::Linear(self.address.linear(registers)), width)? & width.mask();
                bus.write(MemoryRef::Linear(to), width, value)?;
                step.step(registers, Gpr::RSI, 1);
                step.step(registers, Gpr::RDI, 1);
                Ok(())
            }),
        }
    }

    #[inline]
    fn read<B: Bus>(&self, bus: &mut B) -> Result<u64, B::Error> {
        Ok(bus.read(MemoryRef::Operand, self.width)? & self.width.mask())
    }

    /// Writes `new` over the `old` that was read. False if another CPU wrote the memory meanwhile.
    fn replace<B: Bus>(&self, bus: &mut B, old: u64, new: u64) -> Result<bool, B::Error> {
        if self.locked {
            bus.compare_exchange(MemoryRef::Operand, self.width, old, new)
        } else {
            bus.write(MemoryRef::Operand, self.width, new).map(|()| true)
        }
    }

    /// Sets RFLAGS and, if `store`, memory to the result of `compute` on memory.
    fn modify<R: Registers, B: Bus>(
        &self,
        registers: &mut R,
        bus: &mut B,
        store: bool,
        compute: impl FnOnce(u64) -> Computed,
    ) -> Result<Executed, B::Error> {
        let old = self.read(bus)?;
        let (result, rflags) = compute(old);
        if store && !self.replace(bus, old, result)? {
            return Ok(Executed::Again);
        }
        registers.set_rflags(rflags);
        Ok(Executed::Retired)
    }

    /// CMPXCHG. If the comparison fails, memory is not written, whereas the processor writes the old value back.
    fn compare_exchange<R: Registers, B: Bus>(
        &self,
        registers: &mut R,
        bus: &mut B,
        new: Operand,
    ) -> Result<Executed, B::Error> {
        let old = self.read(bus)?;
        let expected = ACCUMULATOR.get(registers, self.width);
        let (difference, rflags) = Binary::Cmp.compute(self.width, expected, old, registers.rflags());
        if difference != 0 {
            ACCUMULATOR.set(registers, self.width, old);
        } else if !self.replace(bus, old, new.get(registers, self.width))? {
            return Ok(Executed::Again);
        }
        registers.set_rflags(rflags);
        Ok(Executed::Retired)
    }

    /// CMPXCHG8B: compares memory with EDX:EAX and stores ECX:EBX. Only ZF changes.
    fn compare_exchange_8b<R: Registers, B: Bus>(&self, registers: &mut R, bus: &mut B) -> Result<Executed, B::Error> {
        let half = |registers: &R, gpr| Operand::new(gpr).get(registers, Width::Dword);
        let pair = |registers: &R, high, low| (half(registers, high) << 32) | half(registers, low);
        let old = self.read(bus)?;
        let equal = old == pair(registers, Gpr::RDX, Gpr::RAX);
        if !equal {
            Operand::new(Gpr::RDX).set(registers, Width::Dword, old >> 32);
            ACCUMULATOR.set(registers, Width::Dword, old);
        } else if !self.replace(bus, old, pair(registers, Gpr::RCX, Gpr::RBX))? {
            return Ok(Executed::Again);
        }
        let zf = if equal { super::alu::ZF } else { 0 };
        registers.set_rflags((registers.rflags() & !super::alu::ZF) | zf);
        Ok(Executed::Retired)
    }

    /// Does one iteration, if RCX is not zero.
    fn iterate<R: Registers, E>(
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
