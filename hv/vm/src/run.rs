//! The loop around a vCPU.

use crate::exit::Exit;
use crate::machine::{Flow, Host, Machine, Memory, Stop};
use crate::vcpu::Vcpu;
use devices::{Clock, Sink};

/// Runs a vCPU until it has to wait, its turn is over, or its VM has ended. Some if this vCPU has ended it.
pub fn run<V: Vcpu, M: Memory, S: Sink, C: Clock + Clone, H: Host<V>>(
    vcpu: &mut V,
    machine: &mut Machine<'_, M, S, C>,
    host: &mut H,
) -> Option<Stop> {
    if !machine.wakes(vcpu, host) {
        return None;
    }
    loop {
        match turn(vcpu, machine, host) {
            Flow::Resume => {}
            Flow::Yield => break,
            Flow::Stop(stop) => {
                machine.context.stats.ended();
                return machine.vm.end(stop, |vcpu| host.kick(vcpu)).then_some(stop);
            }
        }
    }
    machine.context.stats.ended();
    None
}

/// One stay in the guest, and what it led to.
#[inline(always)]
fn turn<V: Vcpu, M: Memory, S: Sink, C: Clock + Clone>(
    vcpu: &mut V,
    machine: &mut Machine<'_, M, S, C>,
    host: &mut impl Host<V>,
) -> Flow {
    let door = machine.vm.door(machine.context.index);
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
    let stay = vcpu.stay();
    let exit = vcpu.exit();
    let flow = match exit {
        Exit::ExternalInterrupt | Exit::Nmi => machine.interrupted(vcpu, host),
        Exit::Halt => machine.halt(vcpu),
        _ => machine.handle(vcpu, exit, host),
    };
    // Booked only now: what the exit was stays in registers while it is handled.
    machine.context.stats.exited(exit.kind(), stay);
    flow
}
