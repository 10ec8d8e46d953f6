//! Exceptions that tests expect.

use crate::smp::{Cpu, PerCpu};
use core::cell::Cell;
use core::fmt;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// Where to go on after an expected exception, and what it was.
#[repr(C)]
pub struct Recovery<F> {
    stack: Cell<usize>,
    instruction: Cell<usize>,
    fault: Cell<Option<F>>,
}

/// Calls a function with an argument. A jump to the recovery's instruction with its stack, both of which this sets, returns from
/// here, too.
pub type CallRecoverably<F> = unsafe extern "C" fn(*const (), *mut (), &Recovery<F>);

/// The recovery of the [`expect`](Self::expect) that runs on each processor.
pub struct Recoveries<F>(PerCpu<AtomicPtr<Recovery<F>>>);

impl<F> Recovery<F> {
    /// Where the stack pointer is.
    pub const STACK: usize = offset_of!(Self, stack);
    /// Where the instruction pointer is.
    pub const INSTRUCTION: usize = offset_of!(Self, instruction);

    /// The stack pointer.
    pub fn stack(&self) -> usize {
        self.stack.get()
    }

    /// The instruction pointer.
    pub fn instruction(&self) -> usize {
        self.instruction.get()
    }
}

impl<F: Copy + fmt::Debug> Recoveries<F> {
    /// None runs.
    #[expect(clippy::new_without_default, reason = "it is made for a static")]
    pub const fn new() -> Self {
        Self(PerCpu::new([const { AtomicPtr::new(ptr::null_mut()) }; Cpu::MOST]))
    }

    /// Runs `body`, and gives the exception or software interrupt that ended it if there was one. What `body` owns is then not
    /// dropped.
    ///
    /// # Safety
    /// `call` does what [`CallRecoverably`] says, and brings back the registers that a function preserves, either way.
    pub unsafe fn expect<B: FnOnce()>(&self, body: B, call: CallRecoverably<F>) -> Option<F> {
        extern "C" fn run<B: FnOnce()>(body: &mut Option<B>) {
            if let Some(body) = body.take() {
                body();
            }
        }
        let recovery = Recovery { stack: Cell::new(0), instruction: Cell::new(0), fault: Cell::new(None) };
        let mut body = Some(body);
        self.0.here().store((&raw const recovery).cast_mut(), Relaxed);
        // SAFETY: `run` gets the pointer that it takes. It may be left by the handler's jump back, over frames of `body` and of
        // this library only, none of which has to be unwound.
        unsafe { call(run::<B> as *const (), (&raw mut body).cast(), &recovery) };
        self.0.here().store(ptr::null_mut(), Relaxed);
        recovery.fault.get()
    }

    /// To be called by the handler of an exception: where to go on.
    ///
    /// # Panics
    /// If none is expected on this processor.
    pub fn take(&self, fault: F) -> &Recovery<F> {
        // Taken, so that an exception in between is not taken for the expected one.
        let recovery = self.0.here().swap(ptr::null_mut(), Relaxed);
        // SAFETY: not null, it is the recovery in a frame of `expect` that still runs.
        let Some(recovery) = (unsafe { recovery.as_ref() }) else {
            panic!("unexpected exception: {fault:x?}");
        };
        recovery.fault.set(Some(fault));
        recovery
    }
}
