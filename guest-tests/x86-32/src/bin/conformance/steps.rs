//! Single steps (Intel SDM vol. 3, section 18.3.1.4): a #DB right behind the instruction, or behind an iteration, with DR6.BS.

use guest32::boot::Boot;
use guest32::cpuid::{self, Hypervisor, Vendor};
use guest32::debug::{DR6_STEP, DR7_NONE, Input, RESUME, Run, SINGLE_STEP, Traps, trace};
use guest32::interrupts::{GENERAL_PROTECTION, expect_fault};
use guest32::ktap::Outcome;
use guest32::memory::{Page, START};
use guest32::{check, check_eq, processor, skip_unless};
use x86::msr::{IA32_DEBUGCTL, IA32_EFER};

const NONE: Input = Input { eax: 0, ebx: 0, ecx: 0, edx: 0, esi: 0, edi: 0 };
/// What OUT to this port does: nothing.
pub(crate) const DELAY: u32 = 0x80;
/// COM1's line status register.
pub(crate) const LINE_STATUS: u32 = 0x3fd;
/// A free page for what is read and written.
pub(crate) const BUFFER: u32 = START + 4096;

/// Where code is run.
pub(crate) fn page() -> Page {
    Page::new(START)
}

fn stepped(code: &[u8], input: Input) -> Traps {
    trace(page(), &Run { code, input, eflags: SINGLE_STEP, breakpoints: [0; 2], dr7: DR7_NONE })
}

/// There is one trap, right behind `code`.
fn once(code: &[u8], input: Input) -> Outcome {
    let traps = stepped(code, input);
    check_eq!(traps.places(), Ok((1, [(code.len() as u32, DR6_STEP)])));
    Ok(())
}

/// Each is one instruction.
macro_rules! once {
    ($($name:ident: $code:expr, $input:expr;)+) => {
        $(pub(crate) fn $name(_: &Boot) -> Outcome {
            once(&$code, $input)
        })+
    };
}

once! {
    nop: [0x90], NONE;
    cpuid: [0x0f, 0xa2], NONE;
    input: [0xec], Input { edx: LINE_STATUS, ..NONE };
    output: [0xee], Input { edx: DELAY, ..NONE };
    rdmsr: [0x0f, 0x32], Input { ecx: IA32_EFER, ..NONE };
    wrmsr: [0x0f, 0x30], Input { eax: processor::efer(), ecx: IA32_EFER, ..NONE };
    apic_load: [0xa1, 0x30, 0x00, 0xe0, 0xfe], NONE;
    apic_store: [0xa3, 0x80, 0x00, 0xe0, 0xfe], NONE;
    read_cr0: [0x0f, 0x20, 0xc0], NONE;
    write_cr0: [0x0f, 0x22, 0xc0], Input { eax: processor::cr0(), ..NONE };
    write_cr3: [0x0f, 0x22, 0xd8], Input { eax: processor::cr3(), ..NONE };
    write_cr4: [0x0f, 0x22, 0xe0], Input { eax: processor::cr4(), ..NONE };
    clts: [0x0f, 0x06], NONE;
    invlpg: [0x0f, 0x01, 0x3d, 0x00, 0x10, 0x00, 0x00], NONE;
    wbinvd: [0x0f, 0x09], NONE;
    outs: [0x6e], Input { edx: DELAY, esi: BUFFER, ..NONE };
    ins: [0x6c], Input { edx: LINE_STATUS, edi: BUFFER, ..NONE };
}

pub(crate) fn hypercall(_: &Boot) -> Outcome {
    skip_unless!(cpuid::hypervisor() == Hypervisor::Microhv, "not under this hypervisor");
    let eax = abi::hypercall::Number::Nop as u32;
    let [own, other] = match cpuid::vendor() {
        Vendor::Amd => [0xd9, 0xc1],
        Vendor::Other => [0xc1, 0xd9],
    };
    for last in [own, other] {
        once(&[0x0f, 0x01, last], Input { eax, ..NONE })?;
    }
    Ok(())
}

/// The trap wakes the processor, which has interrupts off.
pub(crate) fn halt(_: &Boot) -> Outcome {
    skip_unless!(!cpuid::is_tcg(), "QEMU's TCG sleeps");
    once(&[0xf4], NONE)
}

/// Three iterations: a trap behind each, before the last one at the instruction itself, with RF (which QEMU's TCG does not push).
fn three_times(code: &[u8], input: Input) -> Outcome {
    let traps = stepped(code, Input { ecx: 3, ..input });
    check_eq!(traps.places(), Ok((3, [(0, DR6_STEP), (0, DR6_STEP), (code.len() as u32, DR6_STEP)])));
    if cpuid::is_tcg() {
        return Ok(());
    }
    let [first, second, third, ..] = traps.first.map(|trap| trap.eflags & RESUME);
    check_eq!([first, second, third], [RESUME, RESUME, 0]);
    Ok(())
}

pub(crate) fn repeated_outs(_: &Boot) -> Outcome {
    three_times(&[0xf3, 0x6e], Input { edx: DELAY, esi: BUFFER, ..NONE })
}

pub(crate) fn repeated_ins(_: &Boot) -> Outcome {
    three_times(&[0xf3, 0x6c], Input { edx: LINE_STATUS, edi: BUFFER, ..NONE })
}

/// REP STOSD to the task priority register and the two behind it, which is read-only but for the first.
pub(crate) fn repeated_stores_to_the_apic(_: &Boot) -> Outcome {
    three_times(&[0xf3, 0xab], Input { edi: 0xfee0_0080, ..NONE })
}

/// WRMSR of a value that EFER can't hold: the fault comes, and no trap with it.
pub(crate) fn instruction_that_faults(_: &Boot) -> Outcome {
    skip_unless!(!cpuid::is_tcg(), "QEMU's TCG has EFER hold anything");
    let input = Input { eax: u32::MAX, edx: u32::MAX, ecx: IA32_EFER, ..NONE };
    let fault = stepped(&[0x0f, 0x30], input).exception;
    let told = fault.map(|fault| (fault.frame.vector, fault.frame.eip, fault.frame.eflags & (SINGLE_STEP | RESUME)));
    check_eq!(told, Some((GENERAL_PROTECTION, page().address() + 1, SINGLE_STEP | RESUME)));
    Ok(())
}

/// With BTF there is no step behind what is no branch; the trap behind the next one clears BTF (section 18.4.3). Processors that go by
/// it are not among the emulators: QEMU 7.2 and Bochs 2.7 step over the NOP behind the code.
pub(crate) fn branches_alone(_: &Boot) -> Outcome {
    const LBR: u32 = 1 << 0;
    const BTF: u32 = 1 << 1;
    skip_unless!(cpuid::hypervisor() == Hypervisor::Microhv, "QEMU has no IA32_DEBUGCTL");
    for value in [LBR, BTF, LBR | BTF, 0] {
        processor::set_debugctl(value);
        check_eq!(processor::debugctl(), value);
    }
    let fault = expect_fault(|| processor::set_debugctl(1 << 31));
    check_eq!(fault.map(|fault| fault.frame.vector), Some(GENERAL_PROTECTION));
    // WRMSR, IN.
    let code = [0x0f, 0x30, 0xec];
    let traps = stepped(&code, Input { eax: BTF, ecx: IA32_DEBUGCTL, ..NONE });
    let left = processor::debugctl();
    processor::set_debugctl(0);
    check_eq!(traps.places::<0>().map(|(count, _)| count), Ok(1));
    check!(traps.first[0].at > code.len() as u32, "a step at {:#x}", traps.first[0].at);
    check_eq!(left, 0);
    Ok(())
}
