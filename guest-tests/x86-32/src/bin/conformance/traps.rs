//! Debug exceptions of other kinds, and the resume flag (Intel SDM vol. 3, sections 18.3.1 and 18.2.4).

use crate::steps::{BUFFER, DELAY, LINE_STATUS, page};
use abi::options::guest::key;
use guest32::boot::Boot;
use guest32::cpuid::is_tcg;
use guest32::debug::{
    DR6_ACCESS, DR6_STEP, DR7_DETECT, DR7_NONE, Input, Kind, RESUME, Run, SINGLE_STEP, Traps, dr7, trace,
};
use guest32::interrupts::{self, Fault, GENERAL_PROTECTION, INVALID_OPCODE, expect_fault};
use guest32::ktap::Outcome;
use guest32::{check_eq, processor, skip_unless};

const NONE: Input = Input { eax: 0, ebx: 0, ecx: 0, edx: 0, esi: 0, edi: 0 };
/// DR6.B0.
const HIT: u32 = 1;

/// INT1 twice, with other bytes between: a trap behind each, without a cause in DR6.
pub(crate) fn int1_is_a_trap(_: &Boot) -> Outcome {
    skip_unless!(!is_tcg(), "QEMU's TCG has no INT1");
    let traps =
        trace(page(), &Run { code: &[0xf1, 0x90, 0xf1], input: NONE, eflags: 0, breakpoints: [0; 2], dr7: DR7_NONE });
    check_eq!(traps.places(), Ok((2, [(1, 0), (3, 0)])));
    Ok(())
}

/// Exceptions that the hypervisor raises, and such as the processor raises.
pub(crate) fn faults_push_the_resume_flag(_: &Boot) -> Outcome {
    skip_unless!(!is_tcg(), "QEMU's TCG does not push it");
    let told = |fault: Option<Fault>| fault.map(|Fault { frame, .. }| (frame.vector, frame.eflags & RESUME));
    check_eq!(told(expect_fault(interrupts::ud2)), Some((INVALID_OPCODE, RESUME)));
    check_eq!(told(expect_fault(processor::write_wrong_efer)), Some((GENERAL_PROTECTION, RESUME)));
    Ok(())
}

pub(crate) fn traps_push_no_resume_flag(_: &Boot) -> Outcome {
    for code in [&[0x0f, 0xa2][..], &[0x90]] {
        let traps = trace(page(), &Run { code, input: NONE, eflags: SINGLE_STEP, breakpoints: [0; 2], dr7: DR7_NONE });
        check_eq!((traps.count, traps.first[0].eflags & RESUME), (1, 0));
    }
    Ok(())
}

/// The access to a debug register comes to nothing, and the handler may access them all.
pub(crate) fn general_detect(boot: &Boot) -> Outcome {
    skip_unless!(boot.text_word(key::BREAKPOINTS) != Some("untold"), "Bochs's SVM does not tell of it");
    skip_unless!(!is_tcg(), "QEMU's TCG passes over GD");
    // MOV DR0, EAX. The handler comes back to it, with GD clear.
    let run =
        Run { code: &[0x0f, 0x23, 0xc0], input: NONE, eflags: 0, breakpoints: [0; 2], dr7: DR7_NONE | DR7_DETECT };
    let traps = trace(page(), &run);
    check_eq!(traps.places(), Ok((1, [(0, DR6_ACCESS)])));
    check_eq!(traps.first[0].dr7 & DR7_DETECT, 0);
    Ok(())
}

/// Runs `code` with a breakpoint of `bytes` at `at`.
fn watched(code: &[u8], input: Input, kind: Kind, at: u32, bytes: u32) -> Traps {
    trace(page(), &Run { code, input, eflags: 0, breakpoints: [at, 0], dr7: dr7(0, kind, bytes) })
}

/// There is one trap, behind `code`.
fn is_hit(code: &[u8], input: Input, kind: Kind, at: u32, bytes: u32) -> Outcome {
    let traps = watched(code, input, kind, at, bytes);
    check_eq!(traps.places(), Ok((1, [(code.len() as u32, HIT)])), "{kind:?} of {bytes} at {at:x}");
    Ok(())
}

fn is_missed(code: &[u8], input: Input, kind: Kind, at: u32, bytes: u32) -> Outcome {
    check_eq!(watched(code, input, kind, at, bytes).places(), Ok((0, [])), "{kind:?} of {bytes} at {at:x}");
    Ok(())
}

/// With CR4.DE.
fn with_extensions(body: impl FnOnce() -> Outcome) -> Outcome {
    processor::set_debugging_extensions(true);
    let outcome = body();
    processor::set_debugging_extensions(false);
    outcome
}

const OUT: &[u8] = &[0xee];
const OUT_DWORD: &[u8] = &[0xef];
const IN: &[u8] = &[0xec];

pub(crate) fn port_breakpoint(_: &Boot) -> Outcome {
    with_extensions(|| {
        let (out, input) = (Input { edx: DELAY, ..NONE }, Input { edx: LINE_STATUS, ..NONE });
        is_hit(OUT, out, Kind::Port, DELAY, 1)?;
        is_hit(IN, input, Kind::Port, LINE_STATUS, 1)?;
        // Ranges that overlap: of the access, and of the breakpoint.
        is_hit(OUT_DWORD, out, Kind::Port, DELAY + 3, 1)?;
        is_hit(OUT, Input { edx: DELAY + 1, ..NONE }, Kind::Port, DELAY, 4)?;
        is_missed(OUT, out, Kind::Port, DELAY + 1, 1)?;
        is_missed(OUT, out, Kind::Access, DELAY, 1)?;
        skip_unless!(!is_tcg(), "QEMU's TCG has one cause at a time in DR6");
        // A step as well.
        let run =
            Run { code: OUT, input: out, eflags: SINGLE_STEP, breakpoints: [DELAY, 0], dr7: dr7(0, Kind::Port, 1) };
        let traps = trace(page(), &run);
        check_eq!(traps.places(), Ok((1, [(1, HIT | DR6_STEP)])));
        Ok(())
    })
}

pub(crate) fn port_breakpoint_without_debugging_extensions(_: &Boot) -> Outcome {
    skip_unless!(!is_tcg(), "QEMU's TCG has them without DE");
    is_missed(OUT, Input { edx: DELAY, ..NONE }, Kind::Port, DELAY, 1)
}

pub(crate) fn port_breakpoint_of_strings(_: &Boot) -> Outcome {
    with_extensions(|| {
        is_hit(&[0x6e], Input { edx: DELAY, esi: BUFFER, ..NONE }, Kind::Port, DELAY, 1)?;
        is_hit(&[0x6c], Input { edx: LINE_STATUS, edi: BUFFER, ..NONE }, Kind::Port, LINE_STATUS, 1)
    })
}

pub(crate) fn data_breakpoint_at_ins(_: &Boot) -> Outcome {
    let input = Input { edx: LINE_STATUS, edi: BUFFER + 2, ..NONE };
    is_hit(&[0x6c], input, Kind::Write, BUFFER + 2, 1)?;
    is_hit(&[0x6c], input, Kind::Access, BUFFER, 4)?;
    is_missed(&[0x6c], input, Kind::Write, BUFFER + 3, 1)?;
    // REP INSB of four: the second element is the one.
    let traps = watched(&[0xf3, 0x6c], Input { ecx: 4, ..input }, Kind::Write, BUFFER + 3, 1);
    check_eq!(traps.places(), Ok((1, [(0, HIT)])));
    Ok(())
}

pub(crate) fn data_breakpoint_at_outs(_: &Boot) -> Outcome {
    let input = Input { edx: DELAY, esi: BUFFER, ..NONE };
    is_hit(&[0x6e], input, Kind::Access, BUFFER, 1)?;
    is_missed(&[0x6e], input, Kind::Write, BUFFER, 1)
}

pub(crate) fn data_breakpoint_at_a_device(_: &Boot) -> Outcome {
    const PRIORITY: u32 = 0xfee0_0080;
    const LOAD: &[u8] = &[0xa1, 0x80, 0x00, 0xe0, 0xfe];
    const STORE: &[u8] = &[0xa3, 0x80, 0x00, 0xe0, 0xfe];
    is_hit(STORE, NONE, Kind::Write, PRIORITY, 4)?;
    is_hit(LOAD, NONE, Kind::Access, PRIORITY, 4)?;
    is_missed(LOAD, NONE, Kind::Write, PRIORITY, 4)?;
    is_missed(STORE, NONE, Kind::Write, PRIORITY + 0x10, 4)
}

/// The handler of the breakpoint at a CPUID returns to it with RF set, and the next instruction has a breakpoint as well.
pub(crate) fn resume_flag_lasts_for_one_instruction(boot: &Boot) -> Outcome {
    skip_unless!(boot.text_word(key::BREAKPOINTS).is_some(), "on QEMU this hypervisor withholds them");
    let (code, at) = (&[0x0f, 0xa2, 0x90], page().address() + 1);
    let both = dr7(0, Kind::Execution, 1) | dr7(1, Kind::Execution, 1);
    let traps = trace(page(), &Run { code, input: NONE, eflags: 0, breakpoints: [at, at + 2], dr7: both });
    check_eq!(traps.places(), Ok((2, [(0, HIT), (2, HIT << 1)])));
    Ok(())
}
