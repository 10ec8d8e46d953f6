//! The loop around a vCPU.

use crate::machine::{Flow, Host, Machine, Memory, Stop};
use crate::vcpu::Vcpu;
use core::ops::ControlFlow;
use devices::{Clock, Sink};

/// Runs a vCPU until it has to wait, its turn is over, or its VM has ended. Some if this vCPU has ended it.
pub fn run<V: Vcpu, M: Memory, S: Sink, C: Clock + Clone, H: Host<V>>(
    vcpu: &mut V,
    machine: &mut Machine<'_, M, S, C>,
    host: &mut H,
) -> Option<Stop> {
    if machine.wakes(vcpu, host).is_continue() {
        while turn(vcpu, machine, host).is_continue() {}
    }
    machine.context.stats.ended();
    match machine.left() {
        Flow::Stop(stop) => machine.vm.end(stop, |vcpu| host.kick(vcpu)).then_some(stop),
        Flow::Resume | Flow::Yield => None,
    }
}

/// One stay in the guest, and what it led to; before it, what the host has to do.
#[inline(always)]
fn turn<V: Vcpu, M: Memory, S: Sink, C: Clock + Clone>(
    vcpu: &mut V,
    machine: &mut Machine<'_, M, S, C>,
    host: &mut impl Host<V>,
) -> ControlFlow<()> {
    if vcpu.stay().exit >= host.next_event().ticks() {
        machine.event_due(vcpu, host)?;
    }
    let door = machine.door;
    let entered = machine.memory.guest(|flush| {
        if flush {
            vcpu.flush();
        }
        // Whoever rings from here on sees that this CPU is away, and kicks it.
        let entered = !door.rings();
        if entered {
            vcpu.enter();
        }
        entered
    });
    if !entered {
        return machine.answer(vcpu, host);
    }
    let (stay, exit) = (vcpu.stay(), vcpu.exit());
    machine.handle(vcpu, exit, stay, host)
}
