//! Instructions whose memory operand is a register of the local APIC, or where nothing answers, or lies half behind the end of memory.

use crate::steps::{BUFFER, page};
use core::sync::atomic::Ordering::Relaxed;
use guest32::boot::Boot;
use guest32::cpuid::{self, Hypervisor};
use guest32::ktap::Outcome;
use guest32::memory::{self, Page, START};
use guest32::{check_eq, msr, processor, skip_unless};

const VERSION: u32 = 0xfee0_0030;
const TASK_PRIORITY: u32 = 0xfee0_0080;
/// A page of memory.
const UNDER_APIC: u32 = START + (16 << 20) + 0x5000;
/// Nothing answers there.
const NOWHERE: u32 = 0xfe00_0000;

/// Where an instruction has the address of its operand, behind which its immediate may be.
struct Operation {
    before: &'static [u8],
    address: u32,
    after: &'static [u8],
}

const fn op(before: &'static [u8], address: u32, after: &'static [u8]) -> Operation {
    Operation { before, address, after }
}

/// Collects code.
struct Code {
    bytes: [u8; 128],
    length: usize,
}

impl Code {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

/// Executes them one after the other; what EAX is then.
fn run(operations: &[Operation]) -> u32 {
    // PUSHAD, CLD; EAX to where POPAD finds it, POPAD, RET.
    let mut code = Code { bytes: [0; 128], length: 0 };
    code.push(&[0x60, 0xfc]);
    for Operation { before, address, after } in operations {
        code.push(before);
        if *address != 0 {
            code.push(&address.to_le_bytes());
        }
        code.push(after);
    }
    code.push(&[0x89, 0x44, 0x24, 0x1c, 0x61, 0xc3]);
    page().write(0, &code.bytes[..code.length]);
    memory::call(START)
}

/// Without an operand in memory.
const fn plain(bytes: &'static [u8]) -> Operation {
    op(bytes, 0, &[])
}

/// MOV of four bytes to EAX.
const fn load(address: u32) -> Operation {
    op(&[0xa1], address, &[])
}

fn set_task_priority(value: u32) {
    memory::store(TASK_PRIORITY, value);
}

/// Loads: each leaves the version, or what is computed of it, in EAX.
pub(crate) fn reads_of_a_device(_: &Boot) -> Outcome {
    let version = memory::peek(VERSION);
    let bits = version.trailing_zeros();
    set_vectors_on();
    memory::store(BUFFER, version);
    let rows: &[(&str, &[Operation], u32)] = &[
        ("push", &[op(&[0xff, 0x35], VERSION, &[0x58])], version),
        ("imul", &[op(&[0x6b, 0x05], VERSION, &[3])], version.wrapping_mul(3)),
        ("mul", &[plain(&[0xb8, 2, 0, 0, 0]), op(&[0xf7, 0x25], VERSION, &[])], version.wrapping_mul(2)),
        ("div", &[plain(&[0x31, 0xd2]), load(BUFFER), op(&[0xf7, 0x35], VERSION, &[])], 1),
        ("cmove", &[plain(&[0x31, 0xc0]), op(&[0x0f, 0x44, 0x05], VERSION, &[])], version),
        ("bsf", &[op(&[0x0f, 0xbc, 0x05], VERSION, &[])], bits),
        ("bt, setc", &[op(&[0x0f, 0xba, 0x25], VERSION, &[2, 0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0])], version >> 2 & 1),
        ("movs", &[op(&[0xbe], VERSION, &[]), op(&[0xbf], BUFFER + 64, &[0xa5]), load(BUFFER + 64)], version),
        ("cmps", &[op(&[0xbe], VERSION, &[]), op(&[0xbf], BUFFER, &[0xa7, 0x0f, 0x94, 0xc0, 0x0f, 0xb6, 0xc0])], 1),
        ("scas", &[load(BUFFER), op(&[0xbf], VERSION, &[0xaf, 0x0f, 0x94, 0xc0, 0x0f, 0xb6, 0xc0])], 1),
        ("movd xmm", &[op(&[0x66, 0x0f, 0x6e, 0x05], VERSION, &[0x66, 0x0f, 0x7e, 0xc0])], version),
        ("movd mm", &[op(&[0x0f, 0x6e, 0x05], VERSION, &[0x0f, 0x7e, 0xc0, 0x0f, 0x77])], version),
        ("fild", &[op(&[0xdb, 0x05], VERSION, &[]), op(&[0xdb, 0x1d], BUFFER + 64, &[]), load(BUFFER + 64)], version),
    ];
    for (name, operations, expected) in rows {
        check_eq!((name, run(operations)), (name, *expected));
    }
    Ok(())
}

/// Lets the guest use SSE.
fn set_vectors_on() {
    let (cr0, cr4) = (processor::cr0() & !(arch::CR0_EM | arch::CR0_TS) as u32, processor::cr4());
    // SAFETY: the program uses no such registers, and they raise nothing here.
    unsafe { processor::set_cr0(cr0) };
    // SAFETY: as above.
    unsafe { processor::set_cr4(cr4 | arch::CR4_OSFXSR as u32) };
}

/// Stores: each leaves its value in the task priority register.
pub(crate) fn writes_to_a_device(_: &Boot) -> Outcome {
    set_vectors_on();
    memory::store(BUFFER, 0x30);
    let rows: &[(&str, u32, &[Operation], u32)] = &[
        ("pop", 0, &[op(&[0x6a, 0x50, 0x8f, 0x05], TASK_PRIORITY, &[])], 0x50),
        ("shl", 0x10, &[op(&[0xd1, 0x25], TASK_PRIORITY, &[])], 0x20),
        ("rol", 0x10, &[op(&[0xc1, 0x05], TASK_PRIORITY, &[2])], 0x40),
        ("shld", 0x0f, &[plain(&[0x31, 0xc0]), op(&[0x0f, 0xa4, 0x05], TASK_PRIORITY, &[4])], 0xf0),
        ("bts", 0x10, &[op(&[0x0f, 0xba, 0x2d], TASK_PRIORITY, &[5])], 0x30),
        ("xadd", 0x10, &[plain(&[0xb8, 0x20, 0, 0, 0]), op(&[0x0f, 0xc1, 0x05], TASK_PRIORITY, &[])], 0x30),
        ("movs", 0, &[op(&[0xbe], BUFFER, &[]), op(&[0xbf], TASK_PRIORITY, &[0xa5])], 0x30),
        (
            "movd xmm",
            0,
            &[plain(&[0xb8, 0x60, 0, 0, 0, 0x66, 0x0f, 0x6e, 0xc0]), op(&[0x66, 0x0f, 0x7e, 0x05], TASK_PRIORITY, &[])],
            0x60,
        ),
        ("fistp", 0, &[op(&[0xdb, 0x05], BUFFER, &[]), op(&[0xdb, 0x1d], TASK_PRIORITY, &[])], 0x30),
    ];
    for (name, before, operations, expected) in rows {
        set_task_priority(*before);
        run(operations);
        check_eq!((name, memory::peek(TASK_PRIORITY)), (name, *expected));
    }
    set_task_priority(0);
    Ok(())
}

/// Nothing is there: reads have a value, and writes are lost, but the guest goes on.
pub(crate) fn operands_that_lead_nowhere(_: &Boot) -> Outcome {
    set_vectors_on();
    // MOVUPS to and from it, FXSAVE, CMPXCHG8B with LOCK, SGDT, SMSW, MOV of DS.
    run(&[
        op(&[0x0f, 0x10, 0x05], NOWHERE, &[]),
        op(&[0x0f, 0x11, 0x05], NOWHERE, &[]),
        op(&[0x0f, 0xae, 0x05], NOWHERE, &[]),
        op(&[0xf0, 0x0f, 0xc7, 0x0d], NOWHERE, &[]),
        op(&[0x0f, 0x01, 0x05], NOWHERE, &[]),
        op(&[0x0f, 0x01, 0x25], NOWHERE, &[]),
        op(&[0x8c, 0x1d], NOWHERE, &[]),
    ]);
    Ok(())
}

/// The end of memory below the devices.
fn end_of_memory(boot: &Boot) -> u32 {
    const DEVICES: u64 = 0xf000_0000;
    let ends = boot.memory_map().map(|region| region.end().raw()).filter(|&end| end < DEVICES);
    ends.max().unwrap_or(0) as u32
}

/// The half that is memory is read and written.
pub(crate) fn operands_that_reach_behind_memory(boot: &Boot) -> Outcome {
    let end = end_of_memory(boot);
    // Firmware's tables may be there.
    let before = [end - 8, end - 4].map(|at| (at, memory::peek(at)));
    memory::store(end - 4, 0x4433_2211);
    check_eq!(memory::peek(end - 2) & 0xffff, 0x4433);
    memory::store(end - 2, 0xaabb_ccdd);
    check_eq!(memory::peek(end - 4), 0xccdd_2211);
    // PUSH of it, and REP MOVSD of four doublewords over the end.
    check_eq!(run(&[op(&[0xff, 0x35], end - 2, &[0x58])]) & 0xffff, 0xccdd);
    for index in 0..4 {
        memory::store(BUFFER + 4 * index, index + 1);
    }
    run(&[op(&[0xbe], BUFFER, &[]), op(&[0xbf], end - 8, &[]), plain(&[0xb9, 4, 0, 0, 0, 0xf3, 0xa5])]);
    let after = [end - 8, end - 4].map(memory::peek);
    for (at, value) in before {
        memory::store(at, value);
    }
    check_eq!(after, [1, 2]);
    Ok(())
}

/// IA32_APIC_BASE moves the registers to a page that was in use: they answer there, and the page is as it was when they have gone.
pub(crate) fn the_apic_lies_over_memory(_: &Boot) -> Outcome {
    skip_unless!(
        cpuid::hypervisor() == Hypervisor::Microhv || !cpuid::is_tcg(),
        "QEMU's TCG leaves them at their place"
    );
    const BYTES: u64 = 0x1234_5678_9abc_def0;
    let page = Page::new(UNDER_APIC);
    let [id, version, priority] = [0x20, 0x30, 0x80].map(|offset| page.dword(offset / 4));
    let registers = memory::peek(VERSION);
    page.clear();
    page.qword(0x20 / 8).store(BYTES, Relaxed);
    version.store(1, Relaxed);
    priority.store(2, Relaxed);
    let base = msr::read(msr::APIC_BASE);
    let moved = base & 0xfff | u64::from(UNDER_APIC);
    // SAFETY: no Rust object is in the page, and no code but this function's uses the APIC meanwhile.
    unsafe { msr::write(msr::APIC_BASE, moved) };
    let there = version.load(Relaxed);
    priority.store(0x50, Relaxed);
    let set = priority.load(Relaxed);
    priority.store(0, Relaxed);
    let beside = Page::new(UNDER_APIC + 4096).dword(0).load(Relaxed);
    // SAFETY: as it was.
    unsafe { msr::write(msr::APIC_BASE, base) };
    check_eq!((there, set, beside), (registers, 0x50, 0));
    check_eq!((id.load(Relaxed), version.load(Relaxed), priority.load(Relaxed)), (BYTES as u32, 1, 2));
    check_eq!(memory::peek(VERSION), registers);
    Ok(())
}
