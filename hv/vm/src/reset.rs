//! A reset of the guest's machine, after which the VM begins anew.
//!
//! ```text
//!   an exit asks for it ──▶ Vm::end ──▶ each vCPU leaves its guest ──▶ ExitHandler::leave_for_reset
//!                                                                               │ the last one
//!   boot vCPU ◀── Vm::begin_anew ◀── the host: memory as at the start ◀── Vm::all_have_left
//! ```
//!
//! Where it ends the VM instead, which is the default, none of this happens.

use crate::exit_handler::ExitHandler;
use crate::flow::Stop;
use crate::host::Host;
use crate::shared::Vm;
use crate::types::Types;
use crate::vcpu::{Start, Vcpu};
use core::sync::atomic::{AtomicU64, Ordering};
use devices::{Clock, Sink};

/// Of a VM that begins anew when it is reset: how often it was, and whether it is being reset now.
pub(crate) struct Resets(AtomicU64);

/// In the upper half of the word, the number of resets.
const ONE_RESET: u64 = 1 << 32;

impl Resets {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// In the lower half of the word: 0 between two resets; during one, 1 and the number of vCPUs that have not left their guest.
    fn state(&self) -> u64 {
        self.0.load(Ordering::Acquire) % ONE_RESET
    }

    /// Begins one. False if one has begun already.
    fn begin(&self, vcpus: usize) -> bool {
        let count = self.0.load(Ordering::Acquire) / ONE_RESET;
        let begun = (count + 1) * ONE_RESET + vcpus as u64 + 1;
        self.0.compare_exchange(count * ONE_RESET, begun, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A vCPU has left its guest. Whether it is the last.
    fn leave(&self) -> bool {
        (self.0.fetch_sub(1, Ordering::AcqRel) - 1) % ONE_RESET == 1
    }

    fn finish(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<S: Sink, C: Clock + Clone> Vm<S, C> {
    /// The VM begins anew when it is reset, and does not end.
    #[must_use]
    pub fn with_restart(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// Whether the machine is being reset: no vCPU may enter its guest.
    #[inline]
    pub fn is_resetting(&self) -> bool {
        self.resets.state() != 0
    }

    /// How often the machine was reset.
    pub fn resets(&self) -> u64 {
        self.resets.0.load(Ordering::Acquire) / ONE_RESET
    }

    /// Whether all vCPUs have left the guest for the reset.
    pub fn all_have_left(&self) -> bool {
        self.resets.state() == 1
    }

    /// Ends the VM for this reason, or has it begin anew. False if an earlier reason has.
    pub(crate) fn end_or_reset(&self, why: Stop, kick: impl FnMut(usize)) -> bool {
        if !self.restarts || !why.is_reset() {
            return self.end(why, kick);
        }
        let begins = self.stopped().is_none() && self.resets.begin(self.vcpus());
        if begins {
            self.raise_all(kick);
        }
        begins
    }

    /// The host has made the guest's memory what it was at the start, and [all vCPUs have left](Self::all_have_left): the devices are
    /// reset, nothing is posted any more, and the boot vCPU may enter its guest.
    pub fn begin_anew(&self) {
        let mut devices = self.devices();
        devices.reset();
        self.posted().for_each(apic::Posted::discard);
        self.set_legacy(devices.interrupt_pending());
        drop(devices);
        self.count_boot_vcpu_alone();
        self.resets.finish();
    }
}

impl<T: Types> ExitHandler<'_, T> {
    /// The vCPU, which is loaded, leaves its guest for a reset, unless it has: it begins at `start`, when the VM does. The requests to
    /// it are cleared.
    pub fn leave_for_reset(&mut self, vcpu: &mut T::Vcpu, start: Start, host: &mut T::Host) {
        self.shared.request.clear();
        let resets = self.vm.resets();
        if core::mem::replace(&mut self.context.resets, resets) == resets {
            // The VM may have begun anew just now: then the request is of its new life.
            if !self.vm.is_resetting() {
                self.shared.request.raise();
            }
            return;
        }
        vcpu.power_on(start);
        self.load_own_paging(vcpu);
        self.context.reset(&self.shared.posted);
        if self.vm.resets.leave() && self.vm.raise_request(0) {
            host.kick(0);
        }
    }
}

impl Stop {
    /// Whether a PC's machine is reset: also by a triple fault, which makes its processor shut down.
    pub const fn is_reset(self) -> bool {
        matches!(self, Self::Reset | Self::TripleFault)
    }
}
