//! Model-specific registers.

use guest::boot::Boot;
use guest::cpuid::{Hypervisor, hypervisor};
use guest::interrupts::{GENERAL_PROTECTION, expect_fault};
use guest::ktap::Outcome;
use guest::msr::{EFER_LMA, EFER_LME, EFER_SVME, Msr, read_through_fs, read_through_gs, swapgs};
use guest::{check, check_eq, ram, skip_unless, tsc};

pub(crate) fn efer_says_long_mode(_: &Boot) -> Outcome {
    let efer = Msr::Efer.read();
    check_eq!(efer & (EFER_LME | EFER_LMA | EFER_SVME), EFER_LME | EFER_LMA);
    Ok(())
}

/// Entry 7 becomes write-protected, which no page of the guest's selects.
pub(crate) fn pat_is_writable(_: &Boot) -> Outcome {
    const WRITE_PROTECTED: u64 = 5;
    let before = Msr::Pat.read();
    let changed = before & !(0xff << 56) | WRITE_PROTECTED << 56;
    Msr::Pat.write(changed);
    let read = Msr::Pat.read();
    Msr::Pat.write(before);
    check_eq!(read, changed);
    check_eq!(Msr::Pat.read(), before);
    Ok(())
}

pub(crate) fn fs_base(boot: &Boot) -> Outcome {
    let frame = ram::fresh(boot);
    frame.write(1, 0x4653_2e42_4153_4521);
    let base = frame.address(8).raw();
    Msr::FsBase.write(base);
    check_eq!(Msr::FsBase.read(), base);
    check_eq!(read_through_fs(), 0x4653_2e42_4153_4521);
    Msr::FsBase.write(0xffff_8000_0000_1000);
    check_eq!(Msr::FsBase.read(), 0xffff_8000_0000_1000, "all 64 bits");
    Ok(())
}

pub(crate) fn swapgs_exchanges_the_bases(boot: &Boot) -> Outcome {
    let frame = ram::fresh(boot);
    frame.write(0, 1);
    frame.write(1, 2);
    let (one, two) = (frame.address(0).raw(), frame.address(8).raw());
    Msr::GsBase.write(one);
    Msr::KernelGsBase.write(two);
    check_eq!(read_through_gs(), 1);
    swapgs();
    check_eq!(read_through_gs(), 2);
    check_eq!((Msr::GsBase.read(), Msr::KernelGsBase.read()), (two, one));
    swapgs();
    check_eq!((Msr::GsBase.read(), Msr::KernelGsBase.read()), (one, two));
    Ok(())
}

/// The MSR is the counter that RDTSC reads.
pub(crate) fn tsc_advances(_: &Boot) -> Outcome {
    skip_unless!(hypervisor() == Hypervisor::Microhv || Msr::Tsc.read() != 0, "an emulator without this MSR");
    for _ in 0..10 {
        let (before, between, after) = (tsc::read(), Msr::Tsc.read(), tsc::read());
        check!((before..=after).contains(&between), "{before} {between} {after}");
    }
    Ok(())
}

/// Emulators ignore MSRs that they do not know.
pub(crate) fn unknown_one_faults(_: &Boot) -> Outcome {
    skip_unless!(hypervisor() == Hypervisor::Microhv, "only this hypervisor promises it");
    let told =
        |access: fn()| expect_fault(access).map(|fault| (fault.frame.vector, fault.frame.error, fault.frame.rip));
    check_eq!(told(|| _ = Msr::Unknown.read()), Some((GENERAL_PROTECTION, 0, Msr::read_rip())));
    check_eq!(told(|| Msr::Unknown.write(0)), Some((GENERAL_PROTECTION, 0, Msr::write_rip())));
    Ok(())
}
