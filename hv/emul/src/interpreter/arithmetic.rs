//! Arithmetic on registers, and all of it that has no [`mmio`](crate::mmio) form.

use super::{DONE, Done, Execution, Extension, StepResult, fault};
use crate::mmio::alu::{self, AF, ARITHMETIC, Binary, Bit, CF, OF, Shift, Unary, ZF, flag, of_result};
use crate::segmentation::{Kind, SegmentFault};
use crate::{Gpr, Width};
use iced_x86::Mnemonic;

const DIVIDE: Option<StepResult> = Some(StepResult::Fault(fault::DIVIDE));

impl<E: From<SegmentFault>> Execution<'_, E> {
    pub(super) fn arithmetic(&mut self) -> Done<E> {
        match self.instruction.mnemonic() {
            Mnemonic::Mul => self.multiply_accumulator(|width, a, b| {
                let product = u128::from(a) * u128::from(b);
                (product, product >> width.bits() != 0)
            }),
            Mnemonic::Imul if self.instruction.op_count() == 1 => self.multiply_accumulator(signed_product),
            Mnemonic::Imul => self.multiply(),
            Mnemonic::Div => self.divide(|width, dividend, divisor| {
                let quotient = dividend.checked_div(divisor.into())?;
                (quotient >> width.bits() == 0).then_some((quotient as u64, (dividend % u128::from(divisor)) as u64))
            }),
            Mnemonic::Idiv => self.divide(signed_quotient),
            Mnemonic::Bsf => self.scan(u64::trailing_zeros),
            Mnemonic::Bsr => self.scan(u64::ilog2),
            // The prefix means nothing to other processors (Intel SDM vol. 2, TZCNT and LZCNT).
            Mnemonic::Tzcnt if !self.has(Extension::Bmi1) => self.scan(u64::trailing_zeros),
            Mnemonic::Lzcnt if !self.has(Extension::Lzcnt) => self.scan(u64::ilog2),
            Mnemonic::Popcnt if !self.has(Extension::Popcnt) => Ok(Some(StepResult::Fault(fault::UNDEFINED))),
            Mnemonic::Tzcnt | Mnemonic::Lzcnt | Mnemonic::Popcnt => self.count_bits(),
            Mnemonic::Shld | Mnemonic::Shrd => self.double_shift(),
            Mnemonic::Cmpxchg => self.compare_exchange(),
            Mnemonic::Xadd => self.exchange_add(),
            Mnemonic::Daa | Mnemonic::Das | Mnemonic::Aaa | Mnemonic::Aas => Ok(self.adjust_decimal()),
            Mnemonic::Aam | Mnemonic::Aad => Ok(self.adjust_product()),
            _ => self.computed(),
        }
    }

    /// Instructions of one destination that `alu` computes.
    fn computed(&mut self) -> Done<E> {
        let (mnemonic, rflags) = (self.instruction.mnemonic(), self.processor.rflags());
        let (binary, bit) = (Binary::of(mnemonic), Bit::of(mnemonic));
        let (shift, unary) = (Shift::of(mnemonic), Unary::of(mnemonic));
        if binary.is_none() && bit.is_none() && shift.is_none() && unary.is_none() {
            return Ok(None);
        }
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let source = match self.instruction.op_count() {
            1 => 0,
            _ => {
                let Some(from) = self.place(1, Kind::Read)? else { return Ok(None) };
                self.get(from, if shift.is_some() { Width::Byte } else { width })?
            }
        };
        let old = self.get(to, width)?;
        let ((result, rflags), stores) = if let Some(op) = binary {
            (op.compute(width, old, source, rflags), op.stores())
        } else if let Some(op) = bit {
            (op.compute(width, old, source, rflags), op.stores())
        } else if let Some(op) = shift {
            (op.compute(width, old, source, rflags), true)
        } else {
            (unary.map_or((old, rflags), |op| op.compute(width, old, rflags)), true)
        };
        if stores {
            self.put(to, width, result)?;
        }
        self.processor.set_rflags(rflags);
        Ok(DONE)
    }

    /// MUL, and IMUL with one operand: `compute` gives the product of both, and whether its upper half counts.
    fn multiply_accumulator(&mut self, compute: impl FnOnce(Width, u64, u64) -> (u128, bool)) -> Done<E> {
        let (Some(width), Some(from)) = (self.width(0), self.place(0, Kind::Read)?) else { return Ok(None) };
        let (product, overflows) = compute(width, self.gpr(Gpr::RAX, width), self.get(from, width)?);
        let (low, high) = (product as u64 & width.mask(), (product >> width.bits()) as u64 & width.mask());
        if width == Width::Byte {
            self.set_gpr(Gpr::RAX, Width::Word, high << 8 | low);
        } else {
            self.set_gpr(Gpr::RAX, width, low);
            self.set_gpr(Gpr::RDX, width, high);
        }
        self.set_product_flags(width, low, overflows);
        Ok(DONE)
    }

    /// IMUL with two or three operands.
    fn multiply(&mut self) -> Done<E> {
        let first = if self.instruction.op_count() == 3 { 1 } else { 0 };
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let (Some(a), Some(b)) = (self.place(first, Kind::Read)?, self.place(first + 1, Kind::Read)?) else {
            return Ok(None);
        };
        let (product, overflows) = signed_product(width, self.get(a, width)?, self.get(b, width)?);
        let low = product as u64 & width.mask();
        self.put(to, width, low)?;
        self.set_product_flags(width, low, overflows);
        Ok(DONE)
    }

    /// CF and OF; the manuals leave the others undefined.
    fn set_product_flags(&mut self, width: Width, low: u64, overflows: bool) {
        let rflags = self.processor.rflags() & !ARITHMETIC;
        self.processor.set_rflags(rflags | of_result(width, low) & !ZF | flag(overflows, CF | OF));
    }

    /// DIV and IDIV: `compute` gives quotient and remainder, or None where there is no quotient of `width`. All flags are undefined.
    fn divide(&mut self, compute: impl FnOnce(Width, u128, u64) -> Option<(u64, u64)>) -> Done<E> {
        let (Some(width), Some(from)) = (self.width(0), self.place(0, Kind::Read)?) else { return Ok(None) };
        let divisor = self.get(from, width)?;
        let (low, high) = match width {
            Width::Byte => (self.gpr(Gpr::RAX, width), self.gpr(Gpr::RAX, Width::Word) >> 8),
            _ => (self.gpr(Gpr::RAX, width), self.gpr(Gpr::RDX, width)),
        };
        let dividend = u128::from(high) << width.bits() | u128::from(low);
        let Some((quotient, remainder)) = compute(width, dividend, divisor) else { return Ok(DIVIDE) };
        let (quotient, remainder) = (quotient & width.mask(), remainder & width.mask());
        if width == Width::Byte {
            self.set_gpr(Gpr::RAX, Width::Word, remainder << 8 | quotient);
        } else {
            self.set_gpr(Gpr::RAX, width, quotient);
            self.set_gpr(Gpr::RDX, width, remainder);
        }
        Ok(DONE)
    }

    /// BSF and BSR, which leave their destination alone if there is no bit. All flags but ZF are undefined.
    fn scan(&mut self, find: fn(u64) -> u32) -> Done<E> {
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let Some(from) = self.place(1, Kind::Read)? else { return Ok(None) };
        let value = self.get(from, width)?;
        if value != 0 {
            self.put(to, width, find(value).into())?;
        }
        let rflags = self.processor.rflags() & !ZF;
        self.processor.set_rflags(rflags | flag(value == 0, ZF));
        Ok(DONE)
    }

    fn count_bits(&mut self) -> Done<E> {
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let Some(from) = self.place(1, Kind::Read)? else { return Ok(None) };
        let value = self.get(from, width)?;
        let mnemonic = self.instruction.mnemonic();
        let result = match mnemonic {
            Mnemonic::Tzcnt => value.trailing_zeros().min(width.bits()),
            Mnemonic::Lzcnt => value.leading_zeros() - (64 - width.bits()),
            _ => value.count_ones(),
        };
        let flags = match mnemonic {
            Mnemonic::Popcnt => flag(value == 0, ZF),
            _ => flag(value == 0, CF) | flag(result == 0, ZF),
        };
        self.put(to, width, result.into())?;
        let rflags = self.processor.rflags() & !ARITHMETIC;
        self.processor.set_rflags(rflags | flags);
        Ok(DONE)
    }

    /// SHLD and SHRD.
    fn double_shift(&mut self) -> Done<E> {
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let (Some(from), Some(count)) = (self.place(1, Kind::Read)?, self.place(2, Kind::Read)?) else {
            return Ok(None);
        };
        let (old, fill) = (self.get(to, width)?, self.get(from, width)?);
        let count = self.get(count, Width::Byte)?;
        let is_left = self.instruction.mnemonic() == Mnemonic::Shld;
        let (result, rflags) = alu::double_shift(width, is_left, old, fill, count, self.processor.rflags());
        self.put(to, width, result)?;
        self.processor.set_rflags(rflags);
        Ok(DONE)
    }

    /// CMPXCHG of registers.
    fn compare_exchange(&mut self) -> Done<E> {
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let Some(new) = self.place(1, Kind::Read)? else { return Ok(None) };
        let (old, expected) = (self.get(to, width)?, self.gpr(Gpr::RAX, width));
        let (difference, rflags) = Binary::Cmp.compute(width, expected, old, self.processor.rflags());
        let new = self.get(new, width)?;
        if difference == 0 {
            self.put(to, width, new)?;
        } else {
            self.set_gpr(Gpr::RAX, width, old);
        }
        self.processor.set_rflags(rflags);
        Ok(DONE)
    }

    /// XADD of registers, which may be one: then it has the sum.
    fn exchange_add(&mut self) -> Done<E> {
        let (Some(width), Some(to)) = (self.width(0), self.place(0, Kind::Write)?) else { return Ok(None) };
        let Some(with) = self.place(1, Kind::Write)? else { return Ok(None) };
        let (a, b) = (self.get(to, width)?, self.get(with, width)?);
        let (sum, rflags) = Binary::Add.compute(width, a, b, self.processor.rflags());
        self.put(with, width, a)?;
        self.put(to, width, sum)?;
        self.processor.set_rflags(rflags);
        Ok(DONE)
    }

    /// DAA, DAS, AAA and AAS (Intel SDM vol. 2).
    fn adjust_decimal(&mut self) -> Option<StepResult> {
        let rflags = self.processor.rflags();
        let (carry, auxiliary) = (rflags & CF != 0, rflags & AF != 0);
        let ax = self.gpr(Gpr::RAX, Width::Word);
        let al = ax & 0xff;
        let low = al & 15 > 9 || auxiliary;
        let mnemonic = self.instruction.mnemonic();
        let (ax, flags) = match mnemonic {
            Mnemonic::Aaa | Mnemonic::Aas => {
                let adjusted = match (low, mnemonic) {
                    (false, _) => ax,
                    (true, Mnemonic::Aaa) => ax.wrapping_add(0x106),
                    (true, _) => ax.wrapping_sub(0x106),
                };
                (adjusted & 0xff0f, flag(low, AF | CF))
            }
            _ => {
                let high = al > 0x99 || carry;
                let amount = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
                let is_add = mnemonic == Mnemonic::Daa;
                let adjusted = if is_add { al.wrapping_add(amount) } else { al.wrapping_sub(amount) } & 0xff;
                // A borrow of the lower digit is one of the whole (DAS).
                let borrows = !is_add && low && al < 6;
                let flags = flag(high || borrows, CF) | flag(low, AF) | of_result(Width::Byte, adjusted);
                (ax & 0xff00 | adjusted, flags)
            }
        };
        self.set_gpr(Gpr::RAX, Width::Word, ax);
        self.processor.set_rflags(rflags & !ARITHMETIC | flags);
        DONE
    }

    /// AAM, which divides AL by its immediate, and AAD, which multiplies AH by it.
    fn adjust_product(&mut self) -> Option<StepResult> {
        let (ax, base) = (self.gpr(Gpr::RAX, Width::Word), u64::from(self.instruction.immediate8()));
        let (ah, al) = (ax >> 8, ax & 0xff);
        let ax = match self.instruction.mnemonic() {
            Mnemonic::Aam if base == 0 => return DIVIDE,
            Mnemonic::Aam => ((al / base) << 8) | (al % base),
            _ => (al + ah * base) & 0xff,
        };
        self.set_gpr(Gpr::RAX, Width::Word, ax);
        let rflags = self.processor.rflags() & !ARITHMETIC;
        self.processor.set_rflags(rflags | of_result(Width::Byte, ax & 0xff));
        DONE
    }
}

fn signed(width: Width, value: u64) -> i128 {
    width.sign_extend(value).cast_signed().into()
}

fn signed_product(width: Width, a: u64, b: u64) -> (u128, bool) {
    let product = signed(width, a) * signed(width, b);
    let low = signed(width, product as u64);
    (product.cast_unsigned(), low != product)
}

fn signed_quotient(width: Width, dividend: u128, divisor: u64) -> Option<(u64, u64)> {
    let unused = 128 - 2 * width.bits();
    let dividend = (dividend << unused).cast_signed() >> unused;
    let divisor = signed(width, divisor);
    let quotient = dividend.checked_div(divisor)?;
    let remainder = dividend.checked_rem(divisor)?;
    (signed(width, quotient as u64) == quotient).then_some((quotient as u64, remainder as u64))
}
