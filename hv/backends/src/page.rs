//! Memory that the processor reads and writes by its physical address.

use crate::Physical;
use addr::Hpa;
use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// A `T` that the processor knows by its physical address, and writes while it is in guest mode.
pub(crate) struct HardwarePage<T> {
    pointer: NonNull<T>,
    address: Hpa,
}

impl<T> HardwarePage<T> {
    pub(crate) fn new(physical: Physical, value: T) -> Self {
        let pointer = NonNull::from(Box::leak(Box::new(value)));
        Self { pointer, address: physical(pointer.as_ptr().cast()) }
    }

    #[inline]
    pub(crate) fn address(&self) -> Hpa {
        self.address
    }
}

impl<T> Deref for HardwarePage<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the allocation is this value's. The processor writes it only within `asm!` blocks that clobber memory, and
        // no reference lives across one: they need the vCPU borrowed mutably.
        unsafe { self.pointer.as_ref() }
    }
}

impl<T> DerefMut for HardwarePage<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { self.pointer.as_mut() }
    }
}

impl<T> Drop for HardwarePage<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box in `new`. The owner has dropped the page's address from the processor's registers
        // and control blocks, or drops those with it.
        drop(unsafe { Box::from_raw(self.pointer.as_ptr()) });
    }
}
