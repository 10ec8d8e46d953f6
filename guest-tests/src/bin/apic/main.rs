//! The local APIC of each processor, and how processors start and wake: what the manuals promise, on any machine that keeps
//! it. Where an emulator's own APIC is known not to, the test is skipped.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod arrivals;
mod legacy;
mod modes;
mod priority;
mod processors;
mod registers;
mod timer;
mod wake;

use guest::boot::Boot;
use guest::cpuid::{Hypervisor, hypervisor};
use guest::exit::GuestStatus;
use guest::{cases, ktap, println, smp};

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    println!("# {} processors", smp::start_all(boot));
    ktap::run(
        boot,
        cases![
            registers::enabled_at_its_place,
            registers::version_has_the_lvt_entries,
            registers::after_init,
            registers::lvt_is_masked_while_disabled,
            registers::cr8_is_the_task_priority,
            registers::illegal_vector_is_an_error,
            priority::self_ipi_arrives_once,
            priority::task_priority_holds_back,
            priority::cr8_holds_back,
            priority::cr8_while_interrupts_are_off,
            priority::cr8_in_a_handler,
            priority::highest_vector_first,
            priority::higher_class_interrupts_the_handler,
            priority::requested_then_in_service_then_neither,
            priority::same_vector_merges,
            legacy::through_lint0,
            legacy::its_handler_lets_the_apics_in,
            timer::one_shot_fires_once,
            timer::count_goes_down,
            timer::masked_one_does_not_fire,
            timer::stopped_one_does_not_fire,
            timer::periodic_goes_on,
            timer::divisor_slows_it_down,
            timer::deadline_fires_once,
            timer::deadline_is_cleared_when_it_fires,
            modes::over_memory,
            processors::all_started,
            processors::physical_destination,
            processors::logical_destination,
            processors::shorthands,
            processors::lowest_priority_is_one,
            processors::cr8_holds_back_what_others_send,
            processors::nmi,
            processors::sipi_to_a_running_one_is_ignored,
            processors::started_anew_by_init,
            wake::from_hlt_by_the_timer,
            wake::from_hlt_by_an_ipi,
            wake::from_hlt_by_an_nmi,
            modes::x2apic_registers,
            modes::x2apic_reserved_ones_fault,
            modes::x2apic_ipis,
            modes::transitions_that_fault,
            modes::disabled_and_enabled_again,
        ],
    )
}

/// Whether the APIC is held to all of the manual. QEMU's knows neither errors nor being disabled again, and KVM's has no
/// error for vectors.
fn is_exact() -> bool {
    matches!(hypervisor(), Hypervisor::Bare | Hypervisor::Microhv)
}
