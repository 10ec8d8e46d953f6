//! Interrupts on their way into the guest, and the guest's sleep.

use crate::context::Activity;
use crate::exit::Event;
use crate::machine::{Flow, Host, Machine, Memory, Stop, Turn};
use crate::vcpu::{INTERRUPT_FLAG, Vcpu};
use core::ops::ControlFlow;
use devices::{Clock, Sink};
use emul::Known;

impl<M: Memory, S: Sink, C: Clock + Clone> Machine<'_, M, S, C> {
    /// Whether this vCPU is the one that the 8259s interrupt.
    fn is_boot(&self) -> bool {
        self.context.index == 0
    }

    /// The devices may have an interrupt now, or want attention at another time.
    #[cold]
    pub(crate) fn devices_changed<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) {
        let devices = self.vm.devices();
        self.vm.set_legacy(devices.interrupt_pending());
        drop(devices);
        if self.is_boot() {
            host.wake_at(self.next_deadline());
            self.deliver(vcpu);
        } else if self.vm.ring(0) {
            // It looks at the time as well.
            host.kick(0);
        }
    }

    /// When the guest wants to be left at the latest.
    fn next_deadline(&self) -> Option<devices::Nanoseconds> {
        if self.is_boot() { self.vm.devices().next_deadline() } else { None }
    }

    /// Does what time has brought.
    pub(crate) fn time_passes<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) {
        if self.is_boot() {
            let mut devices = self.vm.devices();
            devices.advance();
            self.vm.set_legacy(devices.interrupt_pending());
        }
        host.wake_at(self.next_deadline());
        self.deliver(vcpu);
    }

    /// Hands the guest an interrupt if one is pending, now or as soon as it takes one.
    #[inline]
    pub(crate) fn deliver<V: Vcpu>(&mut self, vcpu: &mut V) {
        if self.interrupt_pending() {
            self.deliver_pending(vcpu);
        }
    }

    fn interrupt_pending(&self) -> bool {
        self.is_boot() && self.vm.has_legacy()
    }

    #[cold]
    fn deliver_pending<V: Vcpu>(&mut self, vcpu: &mut V) {
        self.leave_shadowed_halt(vcpu);
        let deliverable = vcpu.interruptible();
        if deliverable && let Some(vector) = self.accept_interrupt() {
            vcpu.inject(Event::Interrupt(vector));
        }
        vcpu.request_window(self.interrupt_pending());
    }

    /// Takes the interrupt that comes first.
    fn accept_interrupt(&mut self) -> Option<u8> {
        let mut devices = self.vm.devices();
        let vector = devices.interrupt_pending().then(|| devices.acknowledge_interrupt());
        self.vm.set_legacy(devices.interrupt_pending());
        vector
    }

    /// STI; HLT with an interrupt pending wakes at once. Not every processor keeps the shadow across an entry (QEMU's VMRUN
    /// does not): the interrupt would be taken before the HLT, which then sleeps for ever. So the HLT is carried out here.
    fn leave_shadowed_halt<V: Vcpu>(&mut self, vcpu: &mut V) {
        if !vcpu.shadowed() || vcpu.rflags() & INTERRUPT_FLAG == 0 || vcpu.injecting() {
            return;
        }
        let bitness = Self::bitness(vcpu);
        if let Ok(bytes) = self.fetch(vcpu, bitness)
            && let Ok(length) = Known::Hlt.decode(bytes.bytes(), bitness)
        {
            vcpu.resume_at(bitness.advance(vcpu.rip(), length));
        }
    }

    /// The host's own interrupts; time has passed for the guest's devices too.
    pub(crate) fn interrupted<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) -> Flow {
        let turn = host.interrupted(vcpu);
        self.memory.poll();
        self.time_passes(vcpu, host);
        match turn {
            Turn::On => Flow::Resume,
            Turn::Over => Flow::Yield,
            Turn::Limit => Flow::Stop(Stop::Limit),
        }
    }

    /// Others have rung.
    #[cold]
    pub(crate) fn answer<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) -> ControlFlow<()> {
        self.door.answer();
        if self.vm.stopped().is_some() {
            return self.go(Flow::Yield);
        }
        self.time_passes(vcpu, host);
        ControlFlow::Continue(())
    }

    /// HLT: the vCPU sleeps until an interrupt wakes it.
    pub(crate) fn halt<V: Vcpu>(&mut self, vcpu: &mut V) -> Flow {
        if self.skip(vcpu, Known::Hlt).is_break() {
            return self.left();
        }
        if vcpu.injecting() {
            return Flow::Resume;
        }
        if vcpu.rflags() & INTERRUPT_FLAG == 0 {
            return self.sleep(Activity::Dead);
        }
        if self.interrupt_pending() {
            self.deliver(vcpu);
            return Flow::Resume;
        }
        self.sleep(Activity::Halted)
    }

    fn sleep(&mut self, activity: Activity) -> Flow {
        self.context.activity = activity;
        if !activity.is_alive() && !self.vm.bury() { Flow::Stop(Stop::Halted) } else { Flow::Yield }
    }

    /// Whether the vCPU has something to execute, after what time and others have brought.
    pub(crate) fn wakes<V: Vcpu>(&mut self, vcpu: &mut V, host: &mut impl Host<V>) -> bool {
        self.time_passes(vcpu, host);
        if self.context.activity == Activity::Halted && vcpu.injecting() {
            self.context.activity = Activity::Running;
        }
        self.context.activity == Activity::Running
    }
}
