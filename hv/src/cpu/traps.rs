//! Exceptions and interrupts that arrive while the hypervisor itself runs.

use crate::lapic;
use crate::panic;
use arch::exceptions;
use arch::trap_frame::TrapFrame;
use core::arch::global_asm;
use x86::controlregs::cr2;
use x86::irq::{DEBUG_VECTOR, NONMASKABLE_INTERRUPT_VECTOR, PAGE_FAULT_VECTOR};

global_asm!(include_str!("traps.s"), options(att_syntax));

unsafe extern "C" {
    static trap_stubs: u8;
}

/// Bytes from one stub to the next, as `traps.s` lays them out.
const STUB_SIZE: u64 = 16;

/// The addresses of the 256 stubs, by vector.
pub(super) fn stubs() -> impl Iterator<Item = u64> {
    let first = &raw const trap_stubs as u64;
    (0..256).map(move |vector| first + vector * STUB_SIZE)
}

const DEBUG: u64 = DEBUG_VECTOR as u64;
const NMI: u64 = NONMASKABLE_INTERRUPT_VECTOR as u64;
const PAGE_FAULT: u64 = PAGE_FAULT_VECTOR as u64;

/// Where every stub leads. Exceptions are bugs of the hypervisor, and end it; but a debug trap can be a guest's, which Bochs's SVM
/// leaves pending at an exit and delivers behind VMRUN. The hypervisor sets no breakpoint and no TF, so it is never its own.
#[unsafe(no_mangle)]
extern "C" fn hv_trap(frame: &TrapFrame) {
    match frame.vector {
        DEBUG => panic::debug_trap(),
        NMI => panic::nmi(frame),
        vector => match exceptions::name(vector) {
            Some(name) => {
                // SAFETY: reading CR2 has no effect.
                let address = if vector == PAGE_FAULT { Some(unsafe { cr2() }) } else { None };
                panic::exception(name, address, frame)
            }
            None => interrupt(vector as u8),
        },
    }
}

/// An interrupt only wakes the CPU or makes it leave its guest. The code that was left then looks at the time and at its requests.
fn interrupt(vector: u8) {
    if vector == lapic::SPURIOUS {
        return;
    }
    match vector {
        lapic::KICK | lapic::TIMER => {}
        lapic::ERROR => log::warn!("local APIC: error status {:#x}", lapic::error_status()),
        _ => log::warn!("unexpected interrupt {vector:#x}"),
    }
    lapic::end_of_interrupt();
}
