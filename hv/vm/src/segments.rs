//! Operands that the processor has not checked before the exit.

use crate::exit_handler::ExitHandler;
use crate::types::Types;
use crate::vcpu::{ControlRegisters, Vcpu};
use addr::Gva;
use arch::{CR0_AM, CR0_PE, CR4_LA57, RFLAGS_AC, RFLAGS_VM};
use emul::mmio::Mmio;
use emul::segmentation::{Kind, Mode, SegmentFault, Segmentation};
use emul::{Address, Bitness, Registers, Segment, Width};

impl<T: Types> ExitHandler<'_, T> {
    /// What accesses of the exiting instruction through `segment` are checked by.
    pub(crate) fn segmentation(vcpu: &mut T::Vcpu, bitness: Bitness, segment: Segment) -> Segmentation {
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

    /// Checks both operands of MOVS, before either is accessed. Of any other instruction the processor has checked the operand that
    /// exited.
    pub(crate) fn check_moved(vcpu: &mut T::Vcpu, bitness: Bitness, instruction: &Mmio) -> Result<(), SegmentFault> {
        instruction
            .moved(vcpu)
            .map_or(Ok(()), |operands| Self::check_both(vcpu, bitness, instruction.width(), operands))
    }

    #[cold]
    #[inline(never)]
    fn check_both(
        vcpu: &mut T::Vcpu,
        bitness: Bitness,
        width: Width,
        operands: [(Segment, u64, Kind); 2],
    ) -> Result<(), SegmentFault> {
        for (segment, offset, kind) in operands {
            Self::segmentation(vcpu, bitness, segment).check(offset, width.bytes(), kind)?;
        }
        Ok(())
    }

    /// The linear address of the two bytes of LMSW and SMSW, which exit before the processor comes to them.
    #[cold]
    #[inline(never)]
    pub(crate) fn checked_word(vcpu: &mut T::Vcpu, at: Address, kind: Kind) -> Result<Gva, SegmentFault> {
        let segmentation = Self::segmentation(vcpu, Self::bitness(vcpu), at.segment());
        segmentation.check(at.offset(vcpu), Width::Word.bytes(), kind)
    }
}
