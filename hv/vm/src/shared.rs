//! What the vCPUs of a VM share.

use crate::flow::Stop;
use crate::reset::Resets;
use alloc::boxed::Box;
use apic::{Posted, Request};
use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use devices::{Clock, Sink};
use spin::{Mutex, MutexGuard, Once};

/// One VM, as all its vCPUs see it.
///
/// vCPUs meet here without locks, but for the devices: those are a PC's, of which there is one set for all processors.
pub struct Vm<S, C> {
    devices: Mutex<devices::Board<S, C>>,
    /// Whether the 8259s may have an interrupt for a vCPU. False means that they have none.
    legacy: AtomicBool,
    clock: C,
    vcpus: Box<[VcpuShared]>,
    /// vCPUs that run, or that an interrupt can still wake.
    wakeable: AtomicUsize,
    /// It begins anew when it is reset.
    pub(crate) restarts: bool,
    pub(crate) resets: Resets,
    end: Once<Stop>,
}

/// One vCPU's state that other vCPUs and the host write.
#[repr(align(64))]
pub(crate) struct VcpuShared {
    pub(crate) request: Request,
    pub(crate) posted: Posted,
}

impl VcpuShared {
    fn new(index: usize) -> Self {
        Self { request: Request::new(), posted: Posted::new(index as u32) }
    }
}

impl<S: Sink, C: Clock + Clone> Vm<S, C> {
    /// A VM of these devices and so many vCPUs, the first of which is the boot vCPU.
    pub fn new(devices: devices::Board<S, C>, clock: C, vcpus: usize) -> Self {
        Self {
            legacy: AtomicBool::new(devices.interrupt_pending()),
            devices: Mutex::new(devices),
            clock,
            vcpus: (0..vcpus).map(VcpuShared::new).collect(),
            wakeable: AtomicUsize::new(1),
            restarts: false,
            resets: Resets::new(),
            end: Once::new(),
        }
    }

    /// What [`new`](Self::new) allocates. It is all that a VM ever does.
    pub fn allocations(vcpus: usize) -> impl Iterator<Item = Layout> {
        Layout::array::<VcpuShared>(vcpus).into_iter().chain([devices::Board::<S, C>::ALLOCATION])
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Why the VM has ended, if it has.
    pub fn stopped(&self) -> Option<Stop> {
        self.end.get().copied()
    }

    /// Ends the VM. True if this call did, and no earlier one. `kick` is called for each vCPU whose request was raised.
    pub fn end(&self, why: Stop, kick: impl FnMut(usize)) -> bool {
        let mut first = false;
        self.end.call_once(|| {
            first = true;
            why
        });
        if first {
            self.raise_all(kick);
        }
        first
    }

    /// Whether no vCPU may enter its guest: the VM has ended, or is being reset.
    pub(crate) fn is_to_be_left(&self) -> bool {
        self.stopped().is_some() || self.is_resetting()
    }

    /// Raises the request to each vCPU. `kick` is called for each to which none was pending.
    pub fn raise_all(&self, kick: impl FnMut(usize)) {
        (0..self.vcpus.len()).filter(|&vcpu| self.vcpus[vcpu].request.raise()).for_each(kick);
    }

    /// Whether a request to vCPU `vcpu` is pending.
    pub fn request_pending(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].request.is_pending()
    }

    /// The devices, held.
    #[inline]
    pub fn devices(&self) -> MutexGuard<'_, devices::Board<S, C>> {
        self.devices.lock()
    }

    /// The VM's clock.
    #[inline]
    pub(crate) fn clock(&self) -> &C {
        &self.clock
    }

    pub(crate) fn shared(&self, vcpu: usize) -> &VcpuShared {
        &self.vcpus[vcpu]
    }

    /// What the vCPUs show of their local APICs.
    pub(crate) fn posted(&self) -> impl Iterator<Item = &Posted> {
        self.vcpus.iter().map(|vcpu| &vcpu.posted)
    }

    /// Raises the request to vCPU `vcpu`. False if it was pending already.
    pub fn raise_request(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].request.raise()
    }

    /// Whether to ask the 8259s. In any order, because of [`Posted::accepts_ext_int`], which fences.
    #[inline]
    pub(crate) fn has_legacy(&self) -> bool {
        self.legacy.load(Ordering::Relaxed)
    }

    /// To be called with the devices held, when they have changed. True if they have an interrupt and had none: the vCPUs that accept
    /// it are to be told.
    pub(crate) fn set_legacy(&self, pending: bool) -> bool {
        // Only one that holds the devices writes this.
        let changes = self.legacy.load(Ordering::Relaxed) != pending;
        if changes {
            self.legacy.store(pending, Ordering::Relaxed);
        }
        changes && pending
    }

    /// None but the boot vCPU runs, as at the start.
    pub(crate) fn count_boot_vcpu_alone(&self) {
        self.wakeable.store(1, Ordering::SeqCst);
    }

    /// Counts a vCPU that runs, or that an interrupt can wake.
    pub(crate) fn add_wakeable(&self) {
        self.wakeable.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes back the count of a vCPU that sleeps and that no interrupt can wake. False if no vCPU is left that could send it an
    /// NMI or INIT, and no request is pending.
    pub(crate) fn remove_wakeable(&self) -> bool {
        // The last vCPU acquires what the others released by taking back their counts: the requests that they have raised.
        let wakeable = self.wakeable.fetch_sub(1, Ordering::SeqCst) - 1;
        wakeable != 0 || self.vcpus.iter().any(|vcpu| vcpu.request.is_pending())
    }
}
