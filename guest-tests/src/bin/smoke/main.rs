//! Whether a virtual machine is what the processor's manual promises: the first guest to run.
//!
//! What it demands holds on any processor, on QEMU and under any hypervisor; what only this hypervisor promises is
//! skipped elsewhere.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod control;
mod cpuid;
mod exceptions;
mod hypercall;
mod interrupts;
mod memory;
mod msr;
mod paging;
mod ports;
mod registers;
mod string_io;
mod tsc;

use guest::boot::Boot;
use guest::cases;
use guest::exit::GuestStatus;
use guest::ktap;

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(
        boot,
        cases![
            cpuid::vendor_is_text,
            cpuid::leaf_limits,
            cpuid::hypervisor_bit_agrees_with_its_leaf,
            cpuid::same_leaf_same_answer,
            cpuid::leaf_beyond_the_limit,
            cpuid::osxsave_follows_cr4,
            hypercall::nop_returns_0,
            hypercall::version_is_that_of_the_interface,
            hypercall::unknown_number_is_enosys,
            hypercall::either_instruction_works,
            hypercall::user_mode_is_denied,
            registers::kept_across_cpuid,
            registers::kept_across_cpuid_with_prefixes,
            registers::kept_across_port_io,
            registers::kept_across_rdmsr,
            registers::kept_across_wrmsr,
            registers::kept_across_hypercall,
            registers::kept_across_first_touch,
            registers::kept_across_cache_and_tlb_control,
            registers::sse_kept_across_exits,
            exceptions::invalid_opcode,
            exceptions::divide_error,
            exceptions::breakpoint,
            exceptions::software_interrupt,
            exceptions::non_canonical_access,
            exceptions::page_fault_in_user_mode,
            paging::two_addresses_for_one_frame,
            paging::unmapped_page_faults,
            paging::read_only_page_faults,
            paging::write_protect_off,
            paging::no_execute_page_faults,
            paging::invlpg_shows_the_new_frame,
            paging::cr3_load_shows_the_new_frame,
            paging::accessed_and_dirty_are_set,
            paging::large_page,
            control::cr4_bits_switch,
            control::wbinvd_keeps_memory,
            interrupts::uart_tells_its_source,
            interrupts::pic_keeps_its_masks,
            interrupts::held_back_while_if_is_clear,
            interrupts::arrives_after_the_sti_shadow,
            interrupts::sti_cli_lets_none_in,
            interrupts::pending_one_wakes_from_hlt,
            ports::scratch_register_keeps_its_byte,
            ports::elcr_keeps_its_bits,
            ports::unclaimed_port_reads_ones,
            ports::word_spans_two_ports,
            string_io::outs_to_the_console,
            string_io::ins_of_all_widths,
            string_io::ins_across_pages,
            string_io::ins_downwards,
            string_io::count_of_zero,
            string_io::with_32_bit_addresses,
            string_io::outs_faults_where_the_page_ends,
            string_io::ins_faults_where_the_page_ends,
            msr::efer_says_long_mode,
            msr::pat_is_writable,
            msr::fs_base,
            msr::swapgs_exchanges_the_bases,
            msr::tsc_advances,
            msr::unknown_one_faults,
            tsc::never_goes_back,
            memory::every_page_keeps_its_own,
        ],
    )
}
