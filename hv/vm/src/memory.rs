//! The VM's physical memory.

use crate::exit::NestedFault;
use abi::hypercall::{Refused, TestCall};
use addr::{Gfn, Gpa, Gva, Hpa};
use shadow::NoMemory;
use walk::{Access, HandleMem};

/// What became of a guest physical address that the nested tables did not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The tables translate it now: the guest's instruction runs again.
    Retry,
    /// The VM has no memory there.
    NotMemory,
    /// The VM has memory there, but the host has no frame left for it.
    OutOfMemory,
}

/// The VM's physical memory, as one vCPU uses it.
pub trait Memory: HandleMem {
    /// Maps the page of `fault`'s address, if the VM has memory there.
    ///
    /// Without a free frame it waits for other CPUs to return deferred ones, so the caller must hold no lock.
    fn fault(&mut self, fault: NestedFault) -> Resolved;
    /// Runs the guest by `enter`. The argument of `enter` tells whether translations have to be flushed before the guest's next
    /// instruction.
    ///
    /// Before `enter` is called, this CPU is announced to the others as about to run the guest. So `enter` may check for pending
    /// requests and return without entering; a flush that it was told of is then told again by the next call.
    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R;
    /// Switches to the shadow tables for `own`, the paging registers of a vCPU under shadow paging. Returns the root for the
    /// processor's walks.
    fn load_shadow(&mut self, own: &shadow::Registers) -> Hpa {
        let _ = own;
        Hpa::new(0)
    }
    /// Resolves a page fault at `at` of a vCPU under shadow paging.
    ///
    /// # Errors
    /// The host has no frame left, and other CPUs have none to return.
    fn shadow_fault(
        &mut self,
        own: &shadow::Registers,
        at: Gva,
        access: Access,
    ) -> Result<shadow::FaultOutcome, NoMemory> {
        let _ = (own, at, access);
        Ok(shadow::FaultOutcome::Retry)
    }
    /// Drops the shadow of the guest's table at `at`, because an instruction that can't be emulated writes it. The guest may
    /// write the page until it is next used as a table.
    fn unshadow(&mut self, at: Gpa) {
        let _ = at;
    }
    /// Carries out INVLPG of a vCPU under shadow paging.
    fn shadow_invlpg(&mut self, at: Gva) {
        let _ = at;
    }
    /// The registers of `vcpu`'s local APIC are at `page` from now on, and no longer where they were before: where that is memory, each
    /// access of any vCPU has to exit as if there were none, while software finds the memory as before. The caller must hold no lock.
    fn hide(&mut self, vcpu: usize, page: Option<Gfn>) {
        let _ = (vcpu, page);
    }
    /// Returns deferred frames that no CPU uses any more. The handlers call it after each interrupt of the CPU, because a kick
    /// may ask for it.
    fn poll(&self) {}
    /// Carries out a test call, an operation on the VM's own tables, or one step of it. None means that steps are
    /// left: the guest's instruction runs again, after pending interrupts were served, and calls with the same arguments.
    ///
    /// It waits for other CPUs, so the caller must hold no lock.
    fn test_call(&mut self, call: TestCall) -> Option<Result<u64, Refused>> {
        let _ = call;
        Some(Err(Refused::NoSuchCall))
    }
}
