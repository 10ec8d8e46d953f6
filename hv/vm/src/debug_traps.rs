//! Debug exceptions of instructions that the processor does not carry out itself: single steps, breakpoints at ports and data, INT1
//! (Intel SDM vol. 3, chapter 18; AMD64 APM vol. 2, section 13.1).
//!
//! Each of them is a trap: it comes behind the instruction, or between two iterations of a repeated one, and before an interrupt. So it
//! is injected when the instruction is retired, and what is delivered later finds that an event is on its way already.

use crate::exit::{Event, Io};
use crate::exit_handler::ExitHandler;
use crate::flow::Flow;
use crate::types::Types;
use crate::vcpu::{Shadow, Vcpu};
use addr::Gva;
use arch::msr::DEBUGCTL_BTF;
use arch::{CR4_DE, DR6_BREAKPOINTS, DR6_BS, DR7_ENABLED, RFLAGS_RF, RFLAGS_TF};
use emul::mmio::Executed;
use emul::{Known, Registers};

/// Goes on at `next`, behind an instruction that has been carried out.
#[inline(always)]
pub fn retire<V: Vcpu>(vcpu: &mut V, next: u64) {
    vcpu.resume_at(next);
    if vcpu.rflags() as u32 & END_FLAGS != 0 {
        end_of_plain(vcpu);
    }
}

/// What there is to do behind an instruction if one of these is set.
const END_FLAGS: u32 = (RFLAGS_TF | RFLAGS_RF) as u32;

// A function of its own, so that common exits need no argument for it.
#[cold]
#[inline(never)]
fn end_of_plain<V: Vcpu>(vcpu: &mut V) {
    end_of_instruction(vcpu, 0);
}

/// The same, of an instruction that has met the breakpoints `hits` (bits of DR6).
#[inline(always)]
pub(crate) fn retire_watched<V: Vcpu>(vcpu: &mut V, next: u64, hits: u64) {
    vcpu.resume_at(next);
    if vcpu.rflags() as u32 & END_FLAGS != 0 || hits != 0 {
        end_of_instruction(vcpu, hits);
    }
}

/// RF is for one instruction (Intel SDM vol. 3, section 18.3.1.1).
#[cold]
#[inline(never)]
fn end_of_instruction<V: Vcpu>(vcpu: &mut V, hits: u64) {
    vcpu.set_rflags(vcpu.rflags() & !RFLAGS_RF);
    trap(vcpu, hits);
}

/// Behind an iteration of a repeated instruction, with others to come. A trap there pushes RF, so that the instruction does not meet
/// its own breakpoint again.
#[inline]
pub(crate) fn between_iterations<V: Vcpu>(vcpu: &mut V, hits: u64) {
    let rflags = vcpu.rflags();
    if rflags & RFLAGS_TF | hits != 0 {
        if hits | Steps::over_next(vcpu).behind(false) != 0 {
            vcpu.set_rflags(rflags | RFLAGS_RF);
        }
        trap(vcpu, hits);
    }
}

/// Which instructions TF makes steps over (Intel SDM vol. 3, sections 18.3.1.4 and 18.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steps {
    /// TF is clear.
    None,
    /// BTF is clear.
    All,
    /// Branches that are taken.
    Branches,
}

impl Steps {
    /// Over the instruction at RIP. One that changes TF itself is stepped over as TF was before it.
    #[inline]
    pub(crate) fn over_next<V: Vcpu>(vcpu: &V) -> Self {
        match vcpu.rflags() & RFLAGS_TF != 0 {
            false => Self::None,
            true if vcpu.debugctl() & DEBUGCTL_BTF == 0 => Self::All,
            true => Self::Branches,
        }
    }

    /// BS if there is a step behind the instruction, which has branched or not.
    const fn behind(self, has_branched: bool) -> u64 {
        match self {
            Self::All => DR6_BS,
            Self::Branches if has_branched => DR6_BS,
            Self::None | Self::Branches => 0,
        }
    }
}

/// Behind an instruction that is no branch, and leaves TF alone.
fn trap<V: Vcpu>(vcpu: &mut V, hits: u64) {
    let steps = Steps::over_next(vcpu);
    raise_traps(vcpu, steps, steps.behind(false) | hits);
}

/// Raises `status`, if that is any.
fn raise_traps<V: Vcpu>(vcpu: &mut V, steps: Steps, status: u64) {
    if status != 0 {
        raise_debug(vcpu, status);
    } else if steps != Steps::None {
        // Bochs's VMX holds a step pending at each exit of an instruction with TF, whatever BTF is.
        vcpu.forget_pending_step();
    }
}

/// Behind an instruction that was interpreted, of which `steps` was found before it: RIP and the flags are as it leaves them.
pub(crate) fn end_of_interpreted<V: Vcpu>(vcpu: &mut V, steps: Steps, has_branched: bool, hits: u64) {
    vcpu.set_rflags(vcpu.rflags() & !RFLAGS_RF);
    raise_traps(vcpu, steps, steps.behind(has_branched) | hits);
}

/// The same, of an INT that has gone to its handler, where TF is clear: there is no step behind it, and one that a load of SS before it
/// has left pending is not the handler's.
pub(crate) fn end_of_int<V: Vcpu>(vcpu: &mut V, steps: Steps, hits: u64) {
    vcpu.set_rflags(vcpu.rflags() & !RFLAGS_RF);
    raise_traps(vcpu, steps, hits);
}

/// The same, of one that has loaded SS, behind which there is no step.
pub(crate) fn end_of_ss_load<V: Vcpu>(vcpu: &mut V, hits: u64) {
    vcpu.set_rflags(vcpu.rflags() & !RFLAGS_RF);
    if hits == 0 {
        vcpu.begin_interrupt_shadow(Shadow::MovSs);
    } else {
        raise_debug(vcpu, hits);
    }
}

/// What is to be done behind an instruction that ends at `next`, or behind one iteration of it.
#[inline]
pub(crate) fn executed<V: Vcpu>(vcpu: &mut V, executed: Executed, next: u64, hits: u64) {
    match executed {
        Executed::Retired => retire_watched(vcpu, next, hits),
        Executed::Iterated => between_iterations(vcpu, hits),
        Executed::Again => {}
    }
}

/// Raises #DB, with `status` in DR6, and what the hardware has held back until the end of this instruction.
#[cold]
#[inline(never)]
pub(crate) fn raise_debug<V: Vcpu>(vcpu: &mut V, status: u64) {
    let status = status | vcpu.take_pending_traps();
    vcpu.set_dr6(vcpu.dr6() & !DR6_BREAKPOINTS | status);
    vcpu.inject(Event::DEBUG);
}

/// Raises what the hardware has held back until the end of an instruction that was carried out here, if that is more than a step: an
/// entry would raise it, but not before an interrupt, and there is no entry while the vCPU sleeps.
///
/// A step that the hardware holds pending is forgotten. So the instruction has to be retired first, which raises the step: the order in
/// [`ExitHandler::task_priority_fell`].
pub(crate) fn raise_held_back<V: Vcpu>(vcpu: &mut V) {
    if vcpu.injecting() || vcpu.in_interrupt_shadow() {
        return;
    }
    let status = vcpu.take_pending_traps();
    if status != 0 {
        raise_debug(vcpu, status);
    }
}

/// What a breakpoint waits for: R/W of DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Write = 0b01,
    Port = 0b10,
    Read = 0b11,
}

/// The breakpoints, as bits of DR6, that an access to `bytes` from `at` on meets.
pub(crate) fn breakpoints_met(dr7: u64, addresses: [u64; 4], access: Access, at: u64, bytes: u64) -> u64 {
    let mut met = 0;
    for (number, address) in (0..).zip(addresses) {
        let waits_for = dr7 >> (16 + 4 * number) & 3;
        // LEN: 1, 2, 8 and 4 bytes.
        let length = [1, 2, 8, 4][(dr7 >> (18 + 4 * number) & 3) as usize];
        let start = address & !(length - 1);
        let is_enabled = dr7 >> (2 * number) & 3 != 0;
        let is_of_kind = waits_for == access as u64 || access == Access::Write && waits_for == Access::Read as u64;
        // Both ranges may wrap.
        let overlaps = at.wrapping_sub(start) < length || start.wrapping_sub(at) < bytes;
        if is_enabled && is_of_kind && overlaps {
            met |= 1 << number;
        }
    }
    met
}

/// Whether [`end_of_port`] has anything to do. This is asked before the access, so that the usual one has no more of it than that.
#[inline(always)]
pub(crate) fn traps_behind_port<V: Vcpu>(vcpu: &V) -> bool {
    vcpu.rflags() as u32 & END_FLAGS != 0 || vcpu.dr7() as u8 & DR7_ENABLED as u8 != 0
}

/// Behind the access `io` to a port.
pub(crate) fn end_of_port<V: Vcpu>(vcpu: &mut V, io: Io) {
    end_of_instruction(vcpu, watch_port(vcpu, io));
}

/// The breakpoints that an access to a port meets. They are there with CR4.DE alone.
pub(crate) fn watch_port<V: Vcpu>(vcpu: &V, io: Io) -> u64 {
    if vcpu.dr7() & DR7_ENABLED == 0 || vcpu.control().cr4 & CR4_DE == 0 {
        return 0;
    }
    breakpoints_met(vcpu.dr7(), vcpu.breakpoints(), Access::Port, io.port().into(), io.size() as u64)
}

/// Notes which breakpoints the accesses of one instruction to memory meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    dr7: u64,
    addresses: [u64; 4],
    /// As bits of DR6.
    pub(crate) hits: u64,
}

impl Watch {
    /// Of one instruction.
    #[inline]
    pub(crate) fn new<V: Vcpu>(vcpu: &V) -> Self {
        let dr7 = vcpu.dr7() & (DR7_ENABLED | 0xffff << 16);
        let addresses = if dr7 & DR7_ENABLED == 0 { [0; 4] } else { vcpu.breakpoints() };
        Self { dr7, addresses, hits: 0 }
    }

    /// So many bytes of memory were read.
    #[inline]
    pub(crate) fn read(&mut self, at: Gva, bytes: usize) {
        self.note(Access::Read, at, bytes);
    }

    /// So many bytes of memory were written.
    #[inline]
    pub(crate) fn write(&mut self, at: Gva, bytes: usize) {
        self.note(Access::Write, at, bytes);
    }

    #[inline]
    fn note(&mut self, access: Access, at: Gva, bytes: usize) {
        if self.dr7 & DR7_ENABLED != 0 {
            self.meet(access, at, bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn meet(&mut self, access: Access, at: Gva, bytes: usize) {
        self.hits |= breakpoints_met(self.dr7, self.addresses, access, at.raw(), bytes as u64);
    }
}

/// Behind an INT1 that ends at `next`.
pub(crate) fn int1_ends_at<V: Vcpu>(vcpu: &mut V, next: u64) {
    vcpu.resume_at(next);
    vcpu.set_rflags(vcpu.rflags() & !RFLAGS_RF);
    vcpu.inject(Event::DEBUG);
}

impl<T: Types> ExitHandler<'_, T> {
    /// INT1: a trap, whose #DB has no cause in DR6.
    pub(crate) fn int1(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        let bitness = Self::bitness(vcpu);
        let next = match vcpu.next_rip() {
            Some(next) => Ok(next),
            None => self
                .decoded(vcpu, bitness, |bytes| Known::Int1.decode(bytes, bitness))
                .map(|length| bitness.advance(vcpu.rip(), length)),
        };
        match next {
            Ok(next) => {
                int1_ends_at(vcpu, next);
                Flow::Resume
            }
            Err(trouble) => trouble.tell(vcpu),
        }
    }
}
