//! What the vCPUs of a VM share.

use crate::flow::Stop;
use alloc::boxed::Box;
use apic::Posted;
use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use devices::{Clock, Sink};
use spin::{Mutex, MutexGuard, Once};

/// One VM, as all its vCPUs see it.
///
/// vCPUs meet here without locks, but for the devices: those are a PC's, of which there is one set for all processors.
pub struct Vm<S, C> {
    devices: Mutex<devices::Machine<S, C>>,
    /// Whether the 8259s may have an interrupt for the boot vCPU. False means that they have none.
    legacy: AtomicBool,
    clock: C,
    doors: Box<[Door]>,
    /// vCPUs that run, or that an interrupt can still wake.
    alive: AtomicUsize,
    end: Once<Stop>,
}

/// Where others knock at one vCPU.
///
/// No knock is lost: whoever has something for the vCPU writes it down, rings, and kicks the vCPU's CPU if that is away in a
/// guest or asleep (it fences before it looks). The vCPU's CPU says that it goes away, fences (`rcu`'s guest entry and idle
/// do both), and looks at the bell before it really goes.
#[repr(align(64))]
pub(crate) struct Door {
    bell: AtomicBool,
    pub(crate) posted: Posted,
}

impl Door {
    fn new(index: usize) -> Self {
        Self { bell: AtomicBool::new(false), posted: Posted::new(index as u32) }
    }

    /// Whether to go and see what there is.
    #[inline]
    pub(crate) fn rings(&self) -> bool {
        self.bell.load(Ordering::Relaxed)
    }

    /// To be called before what was written down is read.
    pub(crate) fn answer(&self) {
        self.bell.swap(false, Ordering::AcqRel);
    }

    /// Rings; whether it was silent before.
    fn ring(&self) -> bool {
        !self.bell.swap(true, Ordering::AcqRel)
    }
}

impl<S: Sink, C: Clock + Clone> Vm<S, C> {
    /// A VM of these devices and so many vCPUs, the first of which is the boot vCPU.
    pub fn new(devices: devices::Machine<S, C>, clock: C, vcpus: usize) -> Self {
        Self {
            legacy: AtomicBool::new(devices.interrupt_pending()),
            devices: Mutex::new(devices),
            clock,
            doors: (0..vcpus).map(Door::new).collect(),
            alive: AtomicUsize::new(1),
            end: Once::new(),
        }
    }

    /// What [`new`](Self::new) allocates. It is all that a VM ever does.
    pub fn allocations(vcpus: usize) -> Option<Layout> {
        Layout::array::<Door>(vcpus).ok()
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.doors.len()
    }

    /// Why the VM has ended, if it has.
    pub fn stopped(&self) -> Option<Stop> {
        self.end.get().copied()
    }

    /// Ends the VM, and tells whether this was what ended it. `kick` is called for each vCPU that has to be told.
    pub fn end(&self, why: Stop, kick: impl FnMut(usize)) -> bool {
        let mut first = false;
        self.end.call_once(|| {
            first = true;
            why
        });
        if first {
            self.ring_all(kick);
        }
        first
    }

    fn ring_all(&self, kick: impl FnMut(usize)) {
        (0..self.doors.len()).filter(|&vcpu| self.doors[vcpu].ring()).for_each(kick);
    }

    /// Whether somebody has something for vCPU `vcpu`.
    pub fn rings(&self, vcpu: usize) -> bool {
        self.doors[vcpu].rings()
    }

    /// The devices, held.
    #[inline]
    pub fn devices(&self) -> MutexGuard<'_, devices::Machine<S, C>> {
        self.devices.lock()
    }

    /// The VM's clock.
    #[inline]
    pub(crate) fn clock(&self) -> &C {
        &self.clock
    }

    pub(crate) fn door(&self, vcpu: usize) -> &Door {
        &self.doors[vcpu]
    }

    /// What the vCPUs show of their local APICs.
    pub(crate) fn posted(&self) -> impl Iterator<Item = &Posted> {
        self.doors.iter().map(|door| &door.posted)
    }

    pub(crate) fn ring(&self, vcpu: usize) -> bool {
        self.doors[vcpu].ring()
    }

    /// Whether to ask the 8259s.
    #[inline]
    pub(crate) fn has_legacy(&self) -> bool {
        self.legacy.load(Ordering::Relaxed)
    }

    /// To be called with the devices held, when they have changed.
    pub(crate) fn set_legacy(&self, pending: bool) {
        self.legacy.store(pending, Ordering::Release);
    }

    /// One vCPU more that runs, or may be about to.
    pub(crate) fn revive(&self) {
        self.alive.fetch_add(1, Ordering::SeqCst);
    }

    /// A vCPU sleeps, and no interrupt can wake it. False if no vCPU is left that could: unless something is on its way.
    pub(crate) fn bury(&self) -> bool {
        let alive = self.alive.fetch_sub(1, Ordering::SeqCst) - 1;
        alive != 0 || self.doors.iter().any(|door| door.bell.load(Ordering::SeqCst))
    }
}
