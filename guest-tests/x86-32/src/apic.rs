//! The local APIC, where firmware leaves it in memory. There is no paging when it is used.
//!
//! Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller".

use core::ptr;

use base::smp::Cpu;

/// The registers' page.
pub const BASE: u32 = 0xfee0_0000;

/// The interrupt command that resets a processor, which then waits for [`START_UP`].
pub const INIT: u32 = 0x4500;
/// The interrupt command that starts a processor in real mode, at the page in its low byte.
pub const START_UP: u32 = 0x4600;
/// The interrupt command of an NMI.
pub const NMI: u32 = 0x4400;
/// The interrupt command of an interrupt with the vector in its low byte.
pub const FIXED: u32 = 0x4000;

const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

const ENABLED: u32 = 1 << 8 | 0xff;
const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;

/// Has this processor's APIC take interrupts.
pub fn enable() {
    write(SPURIOUS, ENABLED);
}

/// Sends `cpu` an interrupt command.
pub fn send(cpu: Cpu, command: u32) {
    write(COMMAND_HIGH, cpu.apic_id() << 24);
    write(COMMAND_LOW, command);
}

/// Has the timer interrupt by `vector` each `count` ticks of its clock.
pub fn start_timer(vector: u8, count: u32) {
    write(DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, PERIODIC | u32::from(vector));
    write(INITIAL_COUNT, count);
}

/// How many ticks of the timer's clock pass while `body` runs. The timer is off afterwards.
pub fn ticks_during(body: impl FnOnce()) -> u32 {
    write(DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, MASKED);
    write(INITIAL_COUNT, u32::MAX);
    body();
    let left = read(CURRENT_COUNT);
    write(INITIAL_COUNT, 0);
    u32::MAX - left
}

/// The end of the interrupt in service.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

fn read(register: u32) -> u32 {
    // SAFETY: the APIC's registers, of which none that is read here changes by it.
    unsafe { ptr::with_exposed_provenance::<u32>((BASE + register) as usize).read_volatile() }
}

fn write(register: u32, value: u32) {
    // SAFETY: the APIC's registers, which only interrupt.
    unsafe { ptr::with_exposed_provenance_mut::<u32>((BASE + register) as usize).write_volatile(value) };
}
