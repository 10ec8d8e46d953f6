//! Debug exceptions of instructions that the processor does not carry out itself (Intel SDM vol. 3, chapter 18; AMD64 APM vol. 2,
//! section 13.1).

use crate::exit::Event;
use crate::exit_handler::ExitHandler;
use crate::flow::Flow;
use crate::types::Types;
use crate::vcpu::{Events, Vcpu};
use arch::DR6_BREAKPOINTS;
use emul::{Known, Registers};

/// Raises #DB, with `status` in DR6.
#[cold]
#[inline(never)]
pub(crate) fn raise_debug(vcpu: &mut impl Vcpu, status: u64) {
    vcpu.set_dr6(vcpu.dr6() & !DR6_BREAKPOINTS | status);
    vcpu.inject(Event::DEBUG);
}

impl<T: Types> ExitHandler<'_, T> {
    /// INT1: a trap, whose #DB has no cause in DR6.
    pub(crate) fn int1(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        let bitness = Self::bitness(vcpu);
        let next = match vcpu.next_rip() {
            Some(next) => Ok(next),
            None => self.fetch(vcpu, bitness).and_then(|bytes| {
                let length = Known::Int1.decode(bytes.bytes(), bitness)?;
                Ok(bitness.advance(vcpu.rip(), length))
            }),
        };
        match next {
            Ok(next) => {
                vcpu.resume_at(next);
                vcpu.inject(Event::DEBUG);
                Flow::Resume
            }
            Err(trouble) => trouble.tell(vcpu),
        }
    }
}
