//! Resets after which the VM begins anew.

use super::guest::*;
use crate::{Activity, Exit, Gpr, Start, Stop};
use devices::Size;

const RESET: Exit = io(0xcf9, Size::Byte, false);

/// A guest whose first exit is `exit`, by which it resets its machine.
fn reset_by(exit: Exit) -> (Guest, TestHost) {
    let mut guest = Guest::with_restart(&[]);
    guest.vcpu.next_rip = Some(CODE + 2);
    guest.vcpu.then(exit, |vcpu| vcpu.gprs[0] = 6);
    guest.vcpu.then(Exit::Cpuid, |_| panic!("the VM is being reset"));
    let mut host = TestHost::new(&guest);
    let reset = crate::run(&mut guest.vcpu, &mut guest.handler, &mut host);
    assert!(reset.is_some_and(Stop::is_reset), "{reset:?}");
    (guest, host)
}

#[test]
fn the_reset_register_and_a_triple_fault_reset_the_machine() {
    for exit in [RESET, Exit::Shutdown] {
        let (guest, host) = reset_by(exit);
        assert!(guest.vm.is_resetting() && guest.vm.stopped().is_none());
        assert_eq!(guest.vm.resets(), 1);
        assert_eq!(host.kicks, [0, 1], "all vCPUs have to leave their guests");
    }
}

#[test]
fn no_vcpu_enters_its_guest_until_the_vm_begins_anew() {
    let (mut guest, mut host) = reset_by(RESET);
    guest.vm.raise_request(0);
    assert_eq!(crate::run(&mut guest.vcpu, &mut guest.handler, &mut host), None);
    assert_eq!(guest.vcpu.entries, 1);
}

#[test]
fn the_vm_begins_anew_when_all_vcpus_have_left() {
    let (mut guest, mut host) = reset_by(RESET);
    guest.vcpu.pat = 0;
    let entry = Start::Sipi(7);
    for _ in 0..2 {
        guest.handler.leave_for_reset(&mut guest.vcpu, entry, &mut host);
        assert!(!guest.vm.all_have_left(), "the second vCPU has not");
        assert!(!guest.vm.request_pending(0));
    }
    assert_eq!((guest.vcpu.powered_on, guest.vcpu.pat), (1, arch::reset::PAT), "once for each reset");
    assert_eq!(guest.vcpu.segments[1].base, 0x7000);

    let (mut second, mut other) = guest.second();
    // It has been sent what it has not taken yet.
    guest.vm.shared(1).posted.post_vector(0x40);
    guest.vm.shared(1).posted.post_init();
    host.kicks.clear();
    second.leave_for_reset(&mut other, Start::Sipi(0), &mut host);
    assert!(guest.vm.all_have_left());
    assert_eq!(host.kicks, [0], "the boot vCPU's CPU makes the memory anew");
    assert_eq!(second.context.activity(), Activity::AwaitingSipi);

    assert_eq!(guest.vm.devices().write(0xe0, Size::Byte, 5), devices::Effect::Continue);
    assert_eq!(guest.handler.context.activity(), Activity::AwaitingSipi);
    guest.handler.context.start();
    guest.vm.begin_anew();
    assert!(!guest.vm.is_resetting() && guest.vm.shared(1).posted.is_empty());
    assert_eq!(guest.vm.devices().read(0xe0, Size::Byte), 0);
    assert_eq!(guest.handler.context.activity(), Activity::Running);
}

#[test]
fn a_vcpu_that_is_woken_as_a_reset_begins_leaves_for_it() {
    let (guest, mut host) = reset_by(RESET);
    let (mut second, mut other) = guest.second();
    assert!(guest.vm.request_pending(1), "that of the reset");
    assert_eq!(crate::run(&mut other, &mut second, &mut host), None, "it sleeps, and serves the request");
    assert!(guest.vm.request_pending(1), "it still has to leave");
    second.leave_for_reset(&mut other, Start::Sipi(0), &mut host);
    assert!(!guest.vm.request_pending(1));
}

#[test]
fn a_request_of_the_new_life_is_kept() {
    let (mut guest, mut host) = reset_by(RESET);
    guest.vcpu.forget_script();
    guest.handler.leave_for_reset(&mut guest.vcpu, Start::Sipi(8), &mut host);
    let (mut second, mut other) = guest.second();
    second.leave_for_reset(&mut other, Start::Sipi(0), &mut host);
    guest.handler.context.start();
    guest.vm.begin_anew();
    guest.vm.raise_request(1);
    // Its CPU was late: it has seen that the VM is being reset.
    second.leave_for_reset(&mut other, Start::Sipi(0), &mut host);
    assert!(guest.vm.request_pending(1));
}

#[test]
fn a_vm_that_began_anew_can_be_reset_again_and_end() {
    let (mut guest, mut host) = reset_by(RESET);
    guest.vcpu.forget_script();
    for resets in 1..4 {
        guest.handler.leave_for_reset(&mut guest.vcpu, Start::Sipi(8), &mut host);
        let (mut second, mut other) = guest.second();
        second.context.resets = resets - 1;
        second.leave_for_reset(&mut other, Start::Sipi(0), &mut host);
        guest.handler.context.start();
        guest.vm.begin_anew();
        assert_eq!(guest.vm.resets(), resets);
        guest.vcpu.then(RESET, |vcpu| vcpu.gprs[0] = 6);
        assert_eq!(crate::run(&mut guest.vcpu, &mut guest.handler, &mut host), Some(Stop::Reset));
    }
    assert!(guest.vm.end(Stop::Limit, |_| {}), "at its limit it ends, also while it is being reset");
    assert!(!guest.vm.end_or_reset(Stop::TripleFault, |_| panic!("it has ended")));
    assert_eq!(guest.get(Gpr::RAX), 6);
}

#[test]
fn where_resets_end_the_vm_nothing_is_reset() {
    let mut guest = Guest::new(&[]);
    guest.vcpu.next_rip = Some(CODE + 2);
    guest.vcpu.then(RESET, |vcpu| vcpu.gprs[0] = 6);
    let mut host = TestHost::new(&guest);
    assert_eq!(guest.run(&mut host), Stop::Reset);
    assert!(!guest.vm.is_resetting());
}
