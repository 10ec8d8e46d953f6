//! Operands that the processor has not checked before the exit.

use crate::exit_handler::ExitHandler;
use crate::types::Types;
use crate::vcpu::{ControlRegisters, Vcpu};
use addr::Gva;
use arch::{CR0_AM, CR0_PE, CR4_LA57, RFLAGS_AC, RFLAGS_VM};
use emul::mmio::{MemoryOperand, Mmio};
use emul::segmentation::{Kind, Mode, SegmentFault, Segmentation};
use emul::{Address, Bitness, Segment, Width};

/// What accesses of the exiting instruction through `segment` are checked by.
pub(crate) fn segmentation<V: Vcpu>(vcpu: &mut V, bitness: Bitness, segment: Segment) -> Segmentation {
    let cache = vcpu.descriptor_cache(segment);
    let (ControlRegisters { cr0, cr4, cpl, .. }, rflags) = (vcpu.control(), vcpu.rflags());
    let mode = match bitness {
        Bitness::Bits64 => Mode::Long(if cr4 & CR4_LA57 == 0 { 48 } else { 57 }),
        _ if cr0 & CR0_PE == 0 || rflags & RFLAGS_VM != 0 => Mode::Real,
        _ => Mode::Protected,
    };
    let checks_alignment = cpl == 3 && cr0 & CR0_AM != 0 && rflags & RFLAGS_AC != 0;
    Segmentation { segment, cache, mode, checks_alignment }
}

impl<T: Types> ExitHandler<'_, T> {
    /// Checks both operands of MOVS and CMPS, before either is accessed. Of any other instruction the processor has checked the operand
    /// that exited.
    #[inline]
    pub(crate) fn check_operands(vcpu: &mut T::Vcpu, bitness: Bitness, instruction: &Mmio) -> Result<(), SegmentFault> {
        if instruction.has_two_operands() { Self::check_both(vcpu, bitness, instruction) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn check_both(vcpu: &mut T::Vcpu, bitness: Bitness, instruction: &Mmio) -> Result<(), SegmentFault> {
        for MemoryOperand { segment, offset, kind } in instruction.operands(vcpu).into_iter().flatten().flatten() {
            segmentation(vcpu, bitness, segment).check(offset, instruction.width().bytes(), kind)?;
        }
        Ok(())
    }

    /// The linear address of the two bytes of LMSW and SMSW, which exit before the processor comes to them.
    #[cold]
    #[inline(never)]
    pub(crate) fn checked_word(vcpu: &mut T::Vcpu, at: Address, kind: Kind) -> Result<Gva, SegmentFault> {
        let segmentation = segmentation(vcpu, Self::bitness(vcpu), at.segment());
        segmentation.check(at.offset(vcpu), Width::Word.bytes(), kind)
    }
}
