//! Registers by themselves.

use arch::paging::ADDRESS;
use guest::apic::{
    AFTER_INIT, Apic, BASE_BSP, BASE_ENABLED, DIVIDE_BY_1, Delivery, Destination, ERROR_RECEIVE_ILLEGAL_VECTOR,
    ERROR_SEND_ILLEGAL_VECTOR, LVT_MASKED, Register, SOFTWARE_ENABLED, SPURIOUS_VECTOR, reset_state,
};
use guest::boot::Boot;
use guest::cpuid::cpuid;
use guest::ktap::Outcome;
use guest::msr::Msr;
use guest::{check, check_eq, processor, skip_unless, smp};

use crate::{arrivals, is_exact};

const ERROR_VECTOR: u8 = 0x4e;

pub(crate) fn enabled_at_its_place(_: &Boot) -> Outcome {
    check!(Apic::exists());
    let base = Msr::ApicBase.read();
    check_eq!(base & (BASE_BSP | BASE_ENABLED | ADDRESS), u64::from(abi::mmio::LOCAL_APIC) | BASE_BSP | BASE_ENABLED);
    check_eq!(Apic::here().id(), cpuid(1, 0).ebx >> 24);
    Ok(())
}

/// Timer, LINT0, LINT1 and error at least; an APIC on the processor's chip is 0x1x.
pub(crate) fn version_has_the_lvt_entries(_: &Boot) -> Outcome {
    let version = Apic::here().read(Register::Version);
    check_eq!(version & 0xf0, 0x10, "version {version:#x}");
    check!((version >> 16 & 0xff) >= 3, "version {version:#x}");
    Ok(())
}

/// Another processor's, after it was used and got an INIT.
pub(crate) fn after_init(boot: &Boot) -> Outcome {
    skip_unless!(smp::count() > 1, "one processor");
    let Some(second) = smp::cpus().nth(1) else { unreachable!("there are two") };
    smp::run_on_all(|cpu| {
        if cpu == second {
            let apic = Apic::here();
            apic.set_task_priority(5);
            apic.join_logical(1);
            apic.start_timer(0x50, false, u32::MAX);
            apic.write(Register::LvtLint1, 0x51 | LVT_MASKED);
            apic.write(Register::LvtError, 0x52);
            apic.write(Register::Divide, DIVIDE_BY_1);
        }
        Ok(())
    })?;
    check!(smp::start(boot, second));
    for ((register, expected), seen) in AFTER_INIT.iter().zip(reset_state(second)) {
        check_eq!(seen, *expected, "in {register:?}");
    }
    Ok(())
}

/// LVT entries get their mask when the APIC is disabled by software, and keep it until it is enabled again.
pub(crate) fn lvt_is_masked_while_disabled(_: &Boot) -> Outcome {
    skip_unless!(is_exact(), "QEMU's and KVM's don't agree on it");
    let apic = Apic::here();
    apic.write(Register::LvtError, ERROR_VECTOR.into());
    apic.write(Register::Spurious, SPURIOUS_VECTOR.into());
    let disabled = apic.read(Register::LvtError);
    apic.write(Register::LvtError, ERROR_VECTOR.into());
    let written = apic.read(Register::LvtError);
    let lint0 = apic.read(Register::LvtLint0);
    apic.write(Register::Spurious, SOFTWARE_ENABLED | u32::from(SPURIOUS_VECTOR));
    apic.write(Register::LvtLint0, lint0 & !LVT_MASKED);
    apic.write(Register::LvtError, LVT_MASKED);
    check_eq!(disabled, u32::from(ERROR_VECTOR) | LVT_MASKED);
    check_eq!(written, u32::from(ERROR_VECTOR) | LVT_MASKED);
    check!(lint0 & LVT_MASKED != 0);
    Ok(())
}

pub(crate) fn cr8_is_the_task_priority(_: &Boot) -> Outcome {
    let apic = Apic::here();
    processor::set_cr8(9);
    let by_register = apic.read(Register::TaskPriority);
    apic.set_task_priority(3);
    let by_cr8 = processor::cr8();
    let processor_priority = apic.read(Register::ProcessorPriority);
    apic.set_task_priority(0);
    check_eq!(by_register, 0x90);
    check_eq!(by_cr8, 3);
    check_eq!(processor_priority & 0xf0, 0x30);
    check_eq!(processor::cr8(), 0);
    Ok(())
}

/// ESR shows what was there before it was last written; the error interrupt comes once for both.
pub(crate) fn illegal_vector_is_an_error(_: &Boot) -> Outcome {
    skip_unless!(is_exact(), "QEMU's and KVM's have no such error");
    const BOTH: u32 = ERROR_SEND_ILLEGAL_VECTOR | ERROR_RECEIVE_ILLEGAL_VECTOR;
    arrivals::expect(ERROR_VECTOR);
    let apic = Apic::here();
    apic.write(Register::ErrorStatus, 0);
    apic.write(Register::ErrorStatus, 0);
    let before = apic.read(Register::ErrorStatus);
    apic.write(Register::LvtError, ERROR_VECTOR.into());
    let outcome = arrivals::afresh(|| {
        apic.send(Delivery::Fixed(5), Destination::Myself);
        arrivals::let_in();
        let unlatched = apic.read(Register::ErrorStatus);
        apic.write(Register::ErrorStatus, 0);
        let latched = apic.read(Register::ErrorStatus);
        check_eq!((before, unlatched), (0, 0));
        check!(latched & BOTH != 0 && latched & !BOTH == 0, "{latched:#x}");
        check!(matches!(arrivals::here(&mut [0; 16]), [ERROR_VECTOR] | [ERROR_VECTOR, ERROR_VECTOR]));
        Ok(())
    });
    apic.write(Register::LvtError, LVT_MASKED);
    outcome
}
