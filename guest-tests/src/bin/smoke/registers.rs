//! That an exit changes what its instruction changes, and nothing else.

use guest::boot::Boot;
use guest::cpuid::{Hypervisor, cpuid, hypervisor};
use guest::hypercall::NOP;
use guest::ktap::Outcome;
use guest::msr::Msr;
use guest::registers::{self, RegisterTest, Registers, touch};
use guest::sse::{self, Sse};
use guest::{check_eq, pic, port, processor, ram, skip_unless, uart};

/// No flag but the one that is always 1; then all arithmetic flags and DF.
const FLAGS: [u64; 2] = [0x002, 0xcd7];
const SEEDS: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// The port that takes POST codes, and drops them.
const POST: u16 = 0x80;

/// Runs `step` on all patterns, after `set_up`, and compares with what `expect` makes of the registers before.
fn across(step: RegisterTest, set_up: impl Fn(&mut Registers), expect: impl Fn(&mut Registers)) -> Outcome {
    for (seed, rflags) in SEEDS.into_iter().zip(FLAGS) {
        let mut before = Registers::pattern(seed, rflags);
        set_up(&mut before);
        let mut expected = before;
        expect(&mut expected);
        check_eq!(step.run(&before), expected);
    }
    Ok(())
}

pub(crate) fn kept_across_cpuid(_: &Boot) -> Outcome {
    across(registers::NOP, |_| (), |_| ())?;
    cpuid_by(registers::CPUID)
}

/// No prefix means anything to CPUID, but each makes it longer.
pub(crate) fn kept_across_cpuid_with_prefixes(_: &Boot) -> Outcome {
    for step in
        [registers::CPUID_66, registers::CPUID_F3, registers::CPUID_F2, registers::CPUID_REX, registers::CPUID_15]
    {
        cpuid_by(step)?;
    }
    Ok(())
}

fn cpuid_by(step: RegisterTest) -> Outcome {
    let leaf = cpuid(0, 0);
    across(
        step,
        |before| (before.rax, before.rcx) = (0, 0),
        |after| {
            after.rax = leaf.eax.into();
            after.rbx = leaf.ebx.into();
            after.rcx = leaf.ecx.into();
            after.rdx = leaf.edx.into();
        },
    )
}

pub(crate) fn kept_across_port_io(_: &Boot) -> Outcome {
    const SCRATCH: u64 = 0x5a;
    port::write8(uart::SCRATCH, SCRATCH as u8);
    let scratch = |before: &mut Registers| before.rdx = before.rdx & !0xffff | u64::from(uart::SCRATCH);
    across(registers::IN8, scratch, |after| after.rax = after.rax & !0xff | SCRATCH)?;

    let unclaimed = |before: &mut Registers| before.rdx = before.rdx & !0xffff | u64::from(super::ports::UNCLAIMED);
    across(registers::IN16, unclaimed, |after| after.rax |= 0xffff)?;
    across(registers::IN32, unclaimed, |after| after.rax = 0xffff_ffff)?;
    across(registers::IN32_REX, unclaimed, |after| after.rax = 0xffff_ffff)?;

    let post = |before: &mut Registers| before.rdx = before.rdx & !0xffff | u64::from(POST);
    across(registers::OUT8, post, |_| ())?;
    across(registers::OUT8_IMMEDIATE, |_| (), |_| ())?;
    across(registers::OUT16, unclaimed, |_| ())?;
    across(registers::OUT32, unclaimed, |_| ())?;

    // What the POST port reads as differs, but it is one byte.
    let post_reads = u64::from(port::read8(POST));
    across(registers::IN8_IMMEDIATE, |_| (), |after| after.rax = after.rax & !0xff | post_reads)
}

pub(crate) fn kept_across_rdmsr(_: &Boot) -> Outcome {
    let pat = Msr::Pat.read();
    for step in [registers::RDMSR, registers::RDMSR_REX] {
        across(
            step,
            |before| before.rcx = before.rcx & !0xffff_ffff | Msr::Pat as u64,
            |after| (after.rax, after.rdx) = (pat & 0xffff_ffff, pat >> 32),
        )?;
    }
    Ok(())
}

pub(crate) fn kept_across_wrmsr(_: &Boot) -> Outcome {
    let pat = Msr::Pat.read();
    let set_up = |before: &mut Registers| {
        before.rcx = before.rcx & !0xffff_ffff | Msr::Pat as u64;
        // The high halves don't count.
        before.rax = before.rax & !0xffff_ffff | pat & 0xffff_ffff;
        before.rdx = before.rdx & !0xffff_ffff | pat >> 32;
    };
    across(registers::WRMSR, set_up, |_| ())?;
    check_eq!(Msr::Pat.read(), pat);
    Ok(())
}

pub(crate) fn kept_across_hypercall(_: &Boot) -> Outcome {
    skip_unless!(hypervisor() == Hypervisor::Microhv, "not under this hypervisor");
    for step in [registers::VMMCALL, registers::VMCALL] {
        across(step, |before| before.rax = NOP, |after| after.rax = 0)?;
    }
    Ok(())
}

pub(crate) fn kept_across_first_touch(boot: &Boot) -> Outcome {
    for (seed, rflags) in SEEDS.into_iter().zip(FLAGS) {
        let frame = ram::fresh(boot);
        let (before, after) = touch(frame.address(8), &Registers::pattern(seed, rflags));
        check_eq!(after, before);
        check_eq!(frame.read(1) & 0xff, before.rax & 0xff);
    }
    Ok(())
}

pub(crate) fn kept_across_cache_and_tlb_control(_: &Boot) -> Outcome {
    across(registers::WBINVD, |_| (), |_| ())?;
    across(registers::INVLPG, |_| (), |_| ())
}

pub(crate) fn sse_kept_across_exits(boot: &Boot) -> Outcome {
    const ROUND_TO_ZERO_ALL_MASKED: u32 = 0x7f80;
    processor::enable_sse();
    let before = Sse {
        xmm: core::array::from_fn(|register| [SEEDS[0].rotate_left(register as u32 * 4), !(register as u64)]),
        mxcsr: ROUND_TO_ZERO_ALL_MASKED,
    };
    check_eq!(sse::across_exits(&before, ram::fresh(boot).address(0)), before);
    check_eq!(port::read8(pic::ELCR) & !pic::ELCR_WRITABLE, 0, "the machine behaves after SSE, too");
    Ok(())
}
