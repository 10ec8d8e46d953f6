//! The loop around a vCPU.

use crate::exit_handler::ExitHandler;
use crate::flow::{Flow, Stop};
use crate::host::Host;
use crate::memory::Memory;
use crate::types::Types;
use crate::vcpu::Vcpu;
use core::ops::ControlFlow;

/// Runs a vCPU until it has to wait, its turn is over, or its VM has ended or is reset. Some if this vCPU has ended or reset it.
pub fn run<T: Types>(vcpu: &mut T::Vcpu, handler: &mut ExitHandler<'_, T>, host: &mut T::Host) -> Option<Stop> {
    if handler.wakes(vcpu, host).is_continue() {
        while turn(vcpu, handler, host).is_continue() {}
    }
    handler.context.stats.ended();
    match handler.left() {
        Flow::Stop(stop) => handler.vm.end_or_reset(stop, |vcpu| host.kick(vcpu)).then_some(stop),
        Flow::Resume | Flow::Yield => None,
    }
}

/// One stay in the guest, and what it led to; before it, what the host has to do.
#[inline(always)]
fn turn<T: Types>(vcpu: &mut T::Vcpu, handler: &mut ExitHandler<'_, T>, host: &mut T::Host) -> ControlFlow<()> {
    if vcpu.stay().exit >= host.next_event().ticks() {
        handler.event_due(vcpu, host)?;
    }
    let shared = handler.shared;
    let entered = handler.memory.guest(|flush| {
        if flush {
            vcpu.flush();
        }
        // A request that is raised from here on comes with a kick: its sender sees that this CPU is in guest mode.
        let entered = !shared.request.is_pending();
        if entered {
            vcpu.enter();
        }
        entered
    });
    if !entered {
        return handler.serve_request(vcpu, host);
    }
    let (stay, exit) = (vcpu.stay(), vcpu.exit());
    handler.handle(vcpu, exit, stay, host)
}
