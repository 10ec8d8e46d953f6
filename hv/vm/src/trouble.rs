//! Why an instruction of the guest could not be carried out for it, and what becomes of the guest then.

use crate::exit::{Event, Exception};
use crate::flow::{Flow, Stop};
use crate::vcpu::Vcpu;
use emul::DecodeError;
use emul::segmentation::SegmentFault;
use walk::Fault;
use x86::irq::{
    ALIGNMENT_CHECK_VECTOR, DIVIDE_ERROR_VECTOR, DOUBLE_FAULT_VECTOR, GENERAL_PROTECTION_FAULT_VECTOR,
    INVALID_TSS_VECTOR, PAGE_FAULT_VECTOR, SEGMENT_NOT_PRESENT_VECTOR, STACK_SEGEMENT_FAULT_VECTOR,
};

/// Something came between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The guest's own tables, or where they lead.
    Fault(Fault),
    /// The segment of an operand, or what is checked with it.
    Segment(SegmentFault),
    /// The guest's own code.
    Decode(DecodeError),
    /// It can't be carried out, and why not.
    Unable(&'static str),
}

/// Other vCPUs have made a switch of tasks impossible in the midst of it.
pub(crate) const HALF_DONE: &str = "other vCPUs have changed page tables in the midst of a switch of tasks";

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<SegmentFault> for Trouble {
    fn from(fault: SegmentFault) -> Self {
        Self::Segment(fault)
    }
}

impl From<DecodeError> for Trouble {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl Trouble {
    /// Gives the guest what the processor would have given it.
    pub(crate) fn tell(self, vcpu: &mut impl Vcpu) -> Flow {
        match self {
            Self::Fault(Fault::Page { error_code, address }) => {
                vcpu.set_cr2(address.raw());
                vcpu.inject(Event::Exception(Exception::new(PAGE_FAULT_VECTOR, Some(error_code.bits()))));
            }
            Self::Fault(Fault::NonCanonical) => vcpu.inject(Event::GENERAL_PROTECTION),
            Self::Segment(fault) => vcpu.inject(Event::Exception(segment_exception(fault))),
            Self::Decode(DecodeError::Invalid) => vcpu.inject(Event::UNDEFINED),
            // Another of the guest's CPUs is changing its tables or its code: the processor has another look.
            Self::Fault(Fault::Contended) | Self::Decode(DecodeError::Unexpected) => {}
            Self::Decode(DecodeError::Truncated) => {
                return Flow::Stop(Stop::Unhandled("the exiting instruction's bytes can't all be fetched"));
            }
            Self::Unable(why) => return Flow::Stop(Stop::Unhandled(why)),
            Self::Fault(Fault::Unbacked(_)) => {
                return Flow::Stop(Stop::Unhandled("the exiting instruction or its operand is not in memory"));
            }
        }
        Flow::Resume
    }
}

/// What the processor raises of a fault that the segmentation finds.
pub(crate) const fn segment_exception(fault: SegmentFault) -> Exception {
    let vector = match fault {
        SegmentFault::Stack => STACK_SEGEMENT_FAULT_VECTOR,
        SegmentFault::GeneralProtection => GENERAL_PROTECTION_FAULT_VECTOR,
        SegmentFault::Alignment => ALIGNMENT_CHECK_VECTOR,
    };
    Exception::new(vector, Some(0))
}

/// What `exception` becomes during the delivery of exception `first`; none: a shutdown (Intel SDM vol. 3, table 6-5).
pub(crate) fn second_fault(first: u8, exception: Exception) -> Option<Event> {
    let is_contributory = |vector| {
        matches!(
            vector,
            DIVIDE_ERROR_VECTOR
                | INVALID_TSS_VECTOR
                | SEGMENT_NOT_PRESENT_VECTOR
                | STACK_SEGEMENT_FAULT_VECTOR
                | GENERAL_PROTECTION_FAULT_VECTOR
        )
    };
    let vector = exception.vector();
    let is_page_fault = vector == PAGE_FAULT_VECTOR;
    match first {
        DOUBLE_FAULT_VECTOR if is_contributory(vector) || is_page_fault => None,
        PAGE_FAULT_VECTOR if is_contributory(vector) || is_page_fault => Some(Event::DOUBLE_FAULT),
        _ if is_contributory(first) && is_contributory(vector) => Some(Event::DOUBLE_FAULT),
        _ => Some(Event::Exception(exception)),
    }
}
