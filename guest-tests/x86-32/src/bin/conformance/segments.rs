//! What INS and OUTS check of their segments before anything is moved (Intel SDM vol. 3, sections 5.3 to 5.5).

use crate::steps::{BUFFER, page};
use core::sync::atomic::Ordering::Relaxed;
use guest32::boot::Boot;
use guest32::cpuid::{self, Hypervisor};
use guest32::debug::{DR7_NONE, Input, Run, Traps, trace};
use guest32::descriptors::{descriptor, set_free};
use guest32::interrupts::GENERAL_PROTECTION;
use guest32::ktap::Outcome;
use guest32::memory::Page;
use guest32::{check_eq, port, skip_unless};

const COM1: u16 = 0x3f8;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;
const SCRATCH: u16 = COM1 + 7;
/// Modem control: what is sent is received.
const LOOPBACK: u8 = 1 << 4;
/// Line status: a byte has come.
const READY: u8 = 1 << 0;
/// Line status: all bytes have left.
const IDLE: u8 = 1 << 6;

/// Access bytes of descriptors.
const READ_ONLY: u8 = 0x91;
const WRITABLE: u8 = 0x93;
const EXPAND_DOWN: u8 = 0x97;
const CODE: u8 = 0x9b;
/// No descriptor at all: the register has the null selector.
const NULL: u8 = 0;

/// How long the instructions before the INS or OUTS are.
const LOAD: u32 = 2;

struct Row {
    /// Access byte and limit, in bytes, of a 32-bit segment that begins at [`BUFFER`].
    segment: (u8, u32),
    offset: u32,
    faults: bool,
}

const fn row(segment: (u8, u32), offset: u32, faults: bool) -> Row {
    Row { segment, offset, faults }
}

fn selector(&Row { segment: (access, limit), .. }: &Row) -> u32 {
    match access {
        NULL => 0,
        _ => set_free(0, descriptor(BUFFER, limit, access, 0x4)).into(),
    }
}

/// Runs `code` with EBX = the selector, EDX = `port`, and ESI and EDI the offset.
fn run(code: &[u8], row: &Row, port: u16, ecx: u32) -> Traps {
    let input = Input { eax: 0, ebx: selector(row), ecx, edx: port.into(), esi: row.offset, edi: row.offset };
    trace(page(), &Run { code, input, eflags: 0, breakpoints: [0; 2], dr7: DR7_NONE })
}

/// The vector, the error code and where it came.
fn exception(traps: &Traps) -> Option<(u32, u32, u32)> {
    traps.exception.map(|fault| (fault.frame.vector, fault.frame.error, fault.frame.eip - page().address() - 1))
}

const fn expected(row: &Row) -> Option<(u32, u32, u32)> {
    if row.faults { Some((GENERAL_PROTECTION, 0, LOAD)) } else { None }
}

/// TCG checks no segments itself.
macro_rules! skip_unless_checked {
    () => {
        skip_unless!(cpuid::hypervisor() == Hypervisor::Microhv || !cpuid::is_tcg(), "QEMU's TCG checks no segments")
    };
}

/// What is at the port stays there, and memory as it is.
pub(crate) fn ins(_: &Boot) -> Outcome {
    const MOV_ES_EBX_INSB: [u8; 3] = [0x8e, 0xc3, 0x6c];
    const SENT: u8 = b'x';
    skip_unless_checked!();
    for row in [
        row((WRITABLE, 0x3f), 0x3f, false),
        row((WRITABLE, 0x3f), 0x40, true),
        row((EXPAND_DOWN, 0x3f), 0x3f, true),
        row((EXPAND_DOWN, 0x3f), 0x40, false),
        row((READ_ONLY, 0xfff), 0, true),
        row((CODE, 0xfff), 0, true),
        row((NULL, 0), BUFFER, true),
    ] {
        let buffer = Page::new(BUFFER);
        buffer.clear();
        while port::read8(LINE_STATUS) & IDLE == 0 {}
        let modem_control = port::read8(MODEM_CONTROL);
        port::write8(MODEM_CONTROL, modem_control | LOOPBACK);
        port::write8(COM1, SENT);
        while port::read8(LINE_STATUS) & READY == 0 {}
        let traps = run(&MOV_ES_EBX_INSB, &row, COM1, 0);
        let is_left = port::read8(LINE_STATUS) & READY != 0;
        if is_left {
            port::read8(COM1);
        }
        port::write8(MODEM_CONTROL, modem_control);
        let is_written = (0..1024).any(|index| buffer.dword(index).load(Relaxed) != 0);
        let about = (row.segment, row.offset);
        check_eq!(exception(&traps), expected(&row), "{about:x?}");
        check_eq!((is_left, is_written), (row.faults, !row.faults), "{about:x?}");
    }
    Ok(())
}

/// Nothing is sent.
pub(crate) fn outs(_: &Boot) -> Outcome {
    const MOV_FS_EBX_OUTSB: [u8; 4] = [0x8e, 0xe3, 0x64, 0x6e];
    skip_unless_checked!();
    Page::new(BUFFER).write(0, &[0x5a; 128]);
    for row in [
        row((READ_ONLY, 0x3f), 0x3f, false),
        row((READ_ONLY, 0x3f), 0x40, true),
        row((EXPAND_DOWN, 0x3f), 0x3f, true),
        row((EXPAND_DOWN, 0x3f), 0x40, false),
        row((CODE, 0x3f), 0, false),
        row((NULL, 0), BUFFER, true),
    ] {
        port::write8(SCRATCH, 0);
        let traps = run(&MOV_FS_EBX_OUTSB, &row, SCRATCH, 0);
        let about = (row.segment, row.offset);
        check_eq!(exception(&traps), expected(&row), "{about:x?}");
        check_eq!(port::read8(SCRATCH), if row.faults { 0 } else { 0x5a }, "{about:x?}");
    }
    Ok(())
}

/// The elements before the limit are moved, and the registers are at the one behind it.
pub(crate) fn limit_in_the_midst_of_a_string(_: &Boot) -> Outcome {
    const MOV_FS_EBX_REP_OUTSB: [u8; 5] = [0x8e, 0xe3, 0xf3, 0x64, 0x6e];
    skip_unless_checked!();
    Page::new(BUFFER).write(0, &[1, 2, 3, 4, 5]);
    let traps = run(&MOV_FS_EBX_REP_OUTSB, &row((READ_ONLY, 2), 0, true), SCRATCH, 5);
    check_eq!(exception(&traps), Some((GENERAL_PROTECTION, 0, LOAD)));
    let registers = traps.exception.map(|fault| fault.frame.registers);
    // EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX.
    check_eq!(registers.map(|[_, esi, .., ecx, _]| (esi, ecx)), Some((3, 2)));
    check_eq!(port::read8(SCRATCH), 3);
    Ok(())
}
