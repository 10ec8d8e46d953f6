//! Whether instructions that a hypervisor carries out behave as the manuals say where it is easily forgotten: debug traps, the flags
//! that exceptions push, what INS and OUTS check of their segments, operands that are no memory, NMIs, and the clock.
//!
//! `breakpoints=met` demands what QEMU does not offer below this hypervisor, which withholds a guest's breakpoints there.
//! `breakpoints=untold` demands it of Bochs's SVM (2.7), which does not tell in DR6 why a #DB exits: it is taken from what else the
//! handler sees.
#![no_std]
#![no_main]

mod nmis;
mod operands;
mod rtc;
mod segments;
mod steps;
mod traps;

use abi::options::guest::key;
use guest32::boot::Boot;
use guest32::exit::GuestStatus;
use guest32::{cases, debug, ktap};

guest32::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    debug::infer_causes(boot.text_word(key::BREAKPOINTS) == Some("untold"));
    ktap::run(
        boot,
        cases![
            traps::int1_is_a_trap,
            traps::faults_push_the_resume_flag,
            traps::traps_push_no_resume_flag,
            traps::general_detect,
            steps::nop,
            steps::cpuid,
            steps::input,
            steps::output,
            steps::rdmsr,
            steps::wrmsr,
            steps::apic_load,
            steps::apic_store,
            steps::read_cr0,
            steps::write_cr0,
            steps::write_cr3,
            steps::write_cr4,
            steps::clts,
            steps::invlpg,
            steps::wbinvd,
            steps::hypercall,
            steps::halt,
            steps::outs,
            steps::ins,
            steps::repeated_outs,
            steps::repeated_ins,
            steps::repeated_stores_to_the_apic,
            steps::instruction_that_faults,
            steps::branches_alone,
            traps::port_breakpoint,
            traps::port_breakpoint_without_debugging_extensions,
            traps::port_breakpoint_of_strings,
            traps::data_breakpoint_at_ins,
            traps::data_breakpoint_at_outs,
            traps::data_breakpoint_at_a_device,
            traps::resume_flag_lasts_for_one_instruction,
            segments::ins,
            segments::outs,
            segments::limit_in_the_midst_of_a_string,
            operands::reads_of_a_device,
            operands::writes_to_a_device,
            operands::operands_that_lead_nowhere,
            operands::operands_that_reach_behind_memory,
            operands::the_apic_lies_over_memory,
            nmis::one_that_comes_while_another_is_handled,
            nmis::three_that_come_while_another_is_handled,
            nmis::two_at_once,
            rtc::an_update_is_announced_and_told,
            rtc::a_period_interrupts_until_the_flags_are_read,
            rtc::the_clock_is_held_while_it_is_set,
        ],
    )
}
