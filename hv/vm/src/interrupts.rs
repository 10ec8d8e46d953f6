//! Interrupts on their way into the guest, and the guest's sleep.

use crate::context::Activity;
use crate::debug_traps::{raise_held_back, retire};
use crate::exit::Event;
use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::host::Host;
use crate::memory::Memory;
use crate::types::Types;
use crate::vcpu::{Events, Start, Vcpu};
use arch::RFLAGS_IF;
use core::mem;
use core::ops::ControlFlow;
use devices::{Clock, Nanoseconds};
use emul::{Known, Registers};
use sched::Turn;

/// How long an interrupt waits that can be taken, at most, where its window [may be late](Events::window_may_be_late).
const WINDOW_POLL: Nanoseconds = Nanoseconds(100_000);

impl<T: Types> ExitHandler<'_, T> {
    /// Whether this vCPU is the one that looks after the devices' time.
    fn is_boot(&self) -> bool {
        self.context.index == 0
    }

    /// The devices may have an interrupt now, or want attention at another time.
    #[cold]
    pub(crate) fn devices_changed(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) {
        let vm = self.vm;
        self.route(&mut vm.devices(), host);
        if self.is_boot() {
            return self.time_passes(vcpu, host);
        }
        if vm.raise_request(0) {
            // Its `serve_request` looks at the time as well.
            host.kick(0);
        }
        self.deliver(vcpu);
    }

    /// Takes to the vCPUs what the devices have for them: the I/O APIC's messages, and that the 8259s have an interrupt.
    pub(crate) fn route(&mut self, devices: &mut devices::Board<T::Sink, T::Clock>, host: &mut T::Host) {
        while let Some(message) = devices.take_message() {
            self.send_message(message, host);
        }
        let (vm, own) = (self.vm, self.context.index);
        if vm.set_legacy(devices.interrupt_pending()) {
            // This vCPU looks itself.
            for (vcpu, posted) in vm.posted().enumerate().filter(|&(vcpu, _)| vcpu != own) {
                if posted.accepts_ext_int() && vm.raise_request(vcpu) {
                    host.kick(vcpu);
                }
            }
        }
    }

    /// Does what time has brought, and has the guest be left when it wants to be at the latest.
    pub(crate) fn time_passes(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) {
        let devices = if self.is_boot() { self.advance_devices(host) } else { None };
        self.expire_timer(vcpu);
        self.deliver(vcpu);
        let window = self.next_look_for_window(vcpu);
        host.wake_at(devices.into_iter().chain(self.timer_due(vcpu, host)).chain(window).min());
    }

    /// When the guest is left to look whether an interrupt can be taken, if that has to be looked for.
    fn next_look_for_window(&mut self, vcpu: &T::Vcpu) -> Option<Nanoseconds> {
        self.context.polls_window &= vcpu.window_may_be_late();
        self.context.polls_window.then(|| Nanoseconds(self.vm.clock().now().0 + WINDOW_POLL.0))
    }

    /// When the devices want attention next.
    fn advance_devices(&mut self, host: &mut T::Host) -> Option<Nanoseconds> {
        let vm = self.vm;
        let mut devices = vm.devices();
        devices.advance();
        self.route(&mut devices, host);
        devices.next_deadline()
    }

    /// Hands the guest an interrupt if one is pending, now or as soon as it takes one.
    #[inline]
    pub(crate) fn deliver(&mut self, vcpu: &mut T::Vcpu) {
        // Whether a vector's priority suffices is looked at out of line: CR8 may be the processor's.
        if self.legacy_pending() || self.shared.posted.may_have_vectors() || self.context.nmis != 0 {
            self.deliver_pending(vcpu);
        }
    }

    #[inline]
    fn interrupt_pending(&self) -> bool {
        self.legacy_pending() || self.context.apic.next(&self.shared.posted).is_some()
    }

    fn legacy_pending(&self) -> bool {
        self.vm.has_legacy() && (self.context.apic.accepts_ext_int() || self.context.ext_int)
    }

    #[cold]
    fn deliver_pending(&mut self, vcpu: &mut T::Vcpu) {
        self.update_cr8(vcpu);
        let waits = self.context.nmis != 0;
        if waits || self.interrupt_pending() {
            self.deliver_deliverable(vcpu, waits);
        }
        vcpu.watch_cr8(self.context.apic.held_back(&self.shared.posted));
    }

    /// `waits`: an NMI does.
    #[inline(always)]
    fn deliver_deliverable(&mut self, vcpu: &mut T::Vcpu, waits: bool) {
        self.leave_halt_in_shadow(vcpu);
        raise_held_back(vcpu);
        if waits && vcpu.takes_nmi() {
            vcpu.inject(Event::Nmi);
            self.context.nmis -= 1;
        }
        if vcpu.interruptible()
            && let Some(vector) = self.accept_interrupt()
        {
            vcpu.inject(Event::Interrupt(vector));
        }
        vcpu.request_window(self.interrupt_pending());
        if vcpu.window_may_be_late() && !mem::replace(&mut self.context.polls_window, true) {
            // `time_passes`, before the next entry, says when the guest is left.
            self.shared.request.raise();
        }
        if waits {
            vcpu.request_nmi_window(self.context.nmis != 0);
        }
    }

    /// Takes the interrupt that comes first: one of the 8259s' before the APIC's own.
    fn accept_interrupt(&mut self) -> Option<u8> {
        if self.legacy_pending() {
            let mut devices = self.vm.devices();
            let vector = devices.interrupt_pending().then(|| devices.acknowledge_interrupt());
            // The vCPUs that accept the next one, if there is one, were told when the first came.
            self.vm.set_legacy(devices.interrupt_pending());
            if vector.is_some() {
                self.context.ext_int = false;
                return vector;
            }
        }
        self.context.apic.acknowledge(&self.shared.posted)
    }

    /// STI; HLT with an interrupt pending wakes at once. Not every processor keeps the shadow across an entry (QEMU's VMRUN
    /// does not): the interrupt would be taken before the HLT, which then sleeps for ever. So the HLT is carried out here.
    fn leave_halt_in_shadow(&mut self, vcpu: &mut T::Vcpu) {
        if !vcpu.in_interrupt_shadow() || vcpu.rflags() & RFLAGS_IF == 0 || vcpu.injecting() {
            return;
        }
        let bitness = Self::bitness(vcpu);
        if let Ok(bytes) = self.fetch(vcpu, bitness)
            && let Ok(length) = Known::Hlt.decode(bytes.bytes(), bitness)
        {
            retire(vcpu, bitness.advance(vcpu.rip(), length));
        }
    }

    /// The host's own interrupts; time has passed for the guest's devices too.
    pub(crate) fn interrupted(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> Flow {
        let turn = host.interrupted(vcpu);
        self.memory.poll();
        // `serve_request`, before the next entry, looks at the time as well.
        if !self.shared.request.is_pending() {
            self.time_passes(vcpu, host);
        }
        match turn {
            Turn::On => Flow::Resume,
            Turn::Over => Flow::Yield,
        }
    }

    /// As [`interrupted`](Self::interrupted), behind an exit that came when the host's next event was due.
    #[cold]
    pub(crate) fn event_due(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> ControlFlow<()> {
        let flow = self.interrupted(vcpu, host);
        self.go(flow)
    }

    /// Serves a request.
    #[cold]
    pub(crate) fn serve_request(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> ControlFlow<()> {
        // Until it is clear whether something wakes it, this vCPU counts as one that may run.
        if !self.context.activity.is_wakeable() {
            self.vm.add_wakeable();
        }
        self.shared.request.clear();
        let flow = self.take_signals(vcpu);
        if flow != Flow::Resume {
            return self.go(flow);
        }
        if self.vm.is_to_be_left() {
            return self.leave();
        }
        self.time_passes(vcpu, host);
        self.end_halt(vcpu);
        if !self.context.activity.is_wakeable() && !self.vm.remove_wakeable() {
            return self.go(Flow::Stop(Stop::Halted));
        }
        let next = if self.context.activity == Activity::Running { Flow::Resume } else { Flow::Yield };
        self.go(next)
    }

    /// The request that was cleared may be the one to leave the guest for a reset: without it a vCPU that sleeps would not.
    #[cold]
    fn leave(&mut self) -> ControlFlow<()> {
        self.shared.request.raise();
        self.go(Flow::Yield)
    }

    /// NMI, INIT and start-up. The latter do nothing to the boot vCPU but reset its machine: there is no firmware to begin in
    /// again.
    fn take_signals(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        let signals = self.shared.posted.take_signals();
        if signals.nmis != 0 {
            // While one is handled one more is kept; a processor that handles none takes the first at once.
            let kept = if vcpu.handles_nmi() { 1 } else { 2 };
            self.context.nmis = (self.context.nmis + signals.nmis).min(kept);
        }
        self.context.ext_int |= signals.ext_int;
        if signals.init {
            if self.is_boot() {
                return Flow::Stop(Stop::Reset);
            }
            self.reset(vcpu, Start::Sipi(0));
            self.context.apic.reset(&self.shared.posted);
            self.context.nmis = 0;
            self.context.ext_int = false;
            self.context.activity = Activity::AwaitingSipi;
        }
        if let Some(page) = signals.startup
            && self.context.activity == Activity::AwaitingSipi
        {
            self.reset(vcpu, Start::Sipi(page));
            self.context.activity = Activity::Running;
        }
        Flow::Resume
    }

    fn reset(&mut self, vcpu: &mut T::Vcpu, start: Start) {
        vcpu.reset(start);
        self.load_own_paging(vcpu);
    }

    /// HLT: the vCPU sleeps until an interrupt wakes it.
    pub(crate) fn halt(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        if self.skip(vcpu, Known::Hlt).is_break() {
            return self.left();
        }
        self.halted(vcpu)
    }

    /// Behind HLT.
    pub(crate) fn halted(&mut self, vcpu: &mut T::Vcpu) -> Flow {
        raise_held_back(vcpu);
        // What waits can be taken now: there is no exit at the end of each shadow, and none behind an IRET with interrupts off.
        self.deliver(vcpu);
        if vcpu.injecting() {
            return Flow::Resume;
        }
        if vcpu.rflags() & RFLAGS_IF == 0 {
            self.context.activity = Activity::Dead;
            return if self.vm.remove_wakeable() { Flow::Yield } else { Flow::Stop(Stop::Halted) };
        }
        self.context.activity = Activity::Halted;
        Flow::Yield
    }

    /// At the begin of a slice: whether the vCPU has something to execute, after what time and others have brought.
    pub(crate) fn wakes(&mut self, vcpu: &mut T::Vcpu, host: &mut T::Host) -> ControlFlow<()> {
        if self.shared.request.is_pending() {
            return self.serve_request(vcpu, host);
        }
        self.time_passes(vcpu, host);
        let was_wakeable = self.context.activity.is_wakeable();
        self.end_halt(vcpu);
        if !was_wakeable && self.context.activity.is_wakeable() {
            self.vm.add_wakeable();
        }
        let next = if self.context.activity == Activity::Running { Flow::Resume } else { Flow::Yield };
        self.go(next)
    }

    /// A vCPU that halts goes on if something is to be delivered to it.
    fn end_halt(&mut self, vcpu: &T::Vcpu) {
        if matches!(self.context.activity, Activity::Halted | Activity::Dead) && vcpu.injecting() {
            self.context.activity = Activity::Running;
        }
    }
}
