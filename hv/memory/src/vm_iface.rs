//! What the exits' handlers, the loader and walks of a guest's tables are offered of a VM's memory.

use crate::account::{POLL, POLL_IDLE, give_back_some};
use crate::host::HostMemory;
use crate::raw::DirectPtr;
use crate::tree_env::Nested;
use crate::view::{Touched, View};
use abi::hypercall::{Refused, TestCall};
use addr::{Gfn, Gpa, Gva, Hpa};
use loader::{GuestMemory, MemoryError};
use rcu::Flush;
use shadow::{FaultOutcome, NoMemory, Writer};
use vm::{NestedFault, Resolved};
use walk::{Access, HandleMem, PhysMem};

impl<F: Nested, H: HostMemory> GuestMemory for View<'_, '_, F, H> {
    fn write(&mut self, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        self.populate(at, bytes.len() as u64)?;
        self.write_bytes(at, bytes)
    }

    fn prepare(&mut self, at: Gpa, bytes: u64) -> Result<bool, MemoryError> {
        self.populate_some(at, bytes)
    }

    fn zero(&mut self, at: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.zero_mapped(at, bytes)
    }
}

impl<F: Nested, H: HostMemory> vm::Memory for View<'_, '_, F, H> {
    #[inline]
    fn fault(&mut self, fault: NestedFault) -> Resolved {
        match self.touch(fault.address(), fault.is_write()) {
            Ok(Touched::Hidden) => Resolved::NotMemory,
            Ok(_) => {
                self.state.found_frames();
                Resolved::Retry
            }
            Err(MemoryError::Outside(_)) => Resolved::NotMemory,
            Err(MemoryError::NoFrames) => self.touch_again(fault),
        }
    }

    #[inline]
    fn guest<R>(&mut self, enter: impl FnOnce(bool) -> R) -> R {
        self.cpu.guest(|flush| enter(flush == Flush::Needed))
    }

    #[inline]
    fn poll(&self) {
        self.heart.beat();
        give_back_some(&self.cpu, POLL);
    }

    fn hide(&mut self, vcpu: usize, page: Option<Gfn>) {
        View::hide(self, vcpu, page);
    }

    #[cold]
    fn test_call(&mut self, call: TestCall) -> Option<Result<u64, Refused>> {
        self.operate(call)
    }

    fn load_shadow(&mut self, own: &shadow::Registers) -> Hpa {
        let Some(shadow) = self.shadow else { return Hpa::new(0) };
        shadow.load(&self.cpu, own);
        self.bound_backlog(POLL_IDLE);
        self.cpu.switch(shadow.space());
        shadow.root().start()
    }

    #[inline]
    fn shadow_fault(&mut self, own: &shadow::Registers, at: Gva, access: Access) -> Result<FaultOutcome, NoMemory> {
        self.bound_backlog(POLL_IDLE);
        match self.resolve(own, at, access) {
            Err(NoMemory) => self.resolve_again(own, at, access),
            Ok(outcome) => {
                self.resolved();
                Ok(outcome)
            }
        }
    }

    fn unshadow(&mut self, at: Gpa) {
        View::unshadow(self, at);
    }

    fn shadow_invlpg(&mut self, at: Gva) {
        if let Some(shadow) = self.shadow {
            shadow.invlpg(&self.cpu, at);
        }
    }
}

impl<F: Nested, H: HostMemory> PhysMem for View<'_, '_, F, H> {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        Some(self.host(at).ok()?.load_u64())
    }

    fn read_u32(&self, at: Gpa) -> Option<u32> {
        Some(self.host(at).ok()?.load_u32())
    }

    fn cmpxchg_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.stored(at, 8, Writer::Software, || self.write_with(at, |host| host.compare_exchange_u64(old, new)).ok())
    }

    fn cmpxchg_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.stored(at, 4, Writer::Software, || self.write_with(at, |host| host.compare_exchange_u32(old, new)).ok())
    }

    fn mark_u64(&self, at: Gpa, old: u64, new: u64) -> Option<bool> {
        self.stored(at, 8, Writer::Walk, || self.write_with(at, |host| host.compare_exchange_u64(old, new)).ok())
    }

    fn mark_u32(&self, at: Gpa, old: u32, new: u32) -> Option<bool> {
        self.stored(at, 4, Writer::Walk, || self.write_with(at, |host| host.compare_exchange_u32(old, new)).ok())
    }

    fn read(&self, at: Gpa, bytes: &mut [u8]) -> Option<()> {
        self.host(at).ok()?.read(bytes);
        Some(())
    }

    fn write(&self, at: Gpa, bytes: &[u8]) -> Option<()> {
        self.stored(at, bytes.len(), Writer::Software, || self.write_with(at, |host| host.write(bytes)).ok())
    }
}

impl<F: Nested, H: HostMemory> HandleMem for View<'_, '_, F, H> {
    type Handle = DirectPtr;

    fn handle(&self, at: Gpa) -> Option<Self::Handle> {
        self.host(at).ok()
    }

    #[inline]
    fn load(&self, handle: Self::Handle) -> u64 {
        handle.load_u64()
    }

    #[inline]
    fn load_u32(&self, handle: Self::Handle, offset: u64) -> u32 {
        handle.add(offset).load_u32_unaligned()
    }

    /// The number of the tree's last flush. A handle that was asked for under the current number points to the page's frame:
    ///
    /// - An operation that takes a page away first clears its entry or freezes it, then flushes, and the flush takes a new number
    ///   before any CPU carries it out. Between the two there is no entry that a handle could be had from.
    /// - A CPU that still reads the old number has passed no quiescent state since, so that the frame's grace period waits for it:
    ///   the frame that its handle points to is not in other use yet.
    #[inline]
    fn generation(&self) -> u64 {
        self.vm.tree.space().generation().number()
    }
}
