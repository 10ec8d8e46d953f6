//! x2APIC mode, and IA32_APIC_BASE.

use guest::apic::{Apic, BASE_ENABLED, BASE_X2APIC, Delivery, Destination, LVT_EXT_INT, Mode, Register};
use guest::boot::Boot;
use guest::cpuid::cpuid;
use guest::interrupts::{Fault, GENERAL_PROTECTION, expect_fault};
use guest::ktap::{NotPassed, Outcome};
use guest::msr::{self, Msr};
use guest::ram;
use guest::smp::{self, Cpu};
use guest::{check, check_eq, skip_unless};

use crate::arrivals::{afresh, expect, here, let_in};
use crate::is_exact;

const VECTOR: u8 = 0x88;

/// Runs `body` in x2APIC mode, if there is one, and goes back.
fn in_x2apic_mode(body: impl FnOnce(Apic) -> Outcome) -> Outcome {
    skip_unless!(Apic::has_x2apic(), "no x2APIC mode");
    let outcome = body(Apic::switch(Mode::X2apic));
    // LINT0 is as after a reset, then.
    Apic::switch(Mode::Xapic).write(Register::LvtLint0, LVT_EXT_INT);
    outcome
}

/// The vector of what `body` raised.
fn fault(body: impl FnOnce()) -> Option<u64> {
    expect_fault(body).map(|Fault { frame, .. }| frame.vector)
}

pub(crate) fn x2apic_registers(_: &Boot) -> Outcome {
    in_x2apic_mode(|apic| {
        check_eq!(apic.id(), Cpu::current().apic_id());
        let logical = (apic.id() >> 4) << 16 | 1 << (apic.id() & 15);
        check_eq!(apic.read(Register::LogicalDestination), logical);
        apic.set_task_priority(7);
        let priority = apic.read(Register::TaskPriority);
        apic.set_task_priority(0);
        check_eq!(priority, 0x70);
        Ok(())
    })
}

pub(crate) fn x2apic_reserved_ones_fault(_: &Boot) -> Outcome {
    in_x2apic_mode(|_| {
        let write = |register: Register, value| fault(|| msr::write_x2apic(register, value));
        let read = |register: Register| fault(|| _ = msr::read_x2apic(register, 0));
        check_eq!(write(Register::EndOfInterrupt, 1), Some(GENERAL_PROTECTION), "EOI");
        check_eq!(write(Register::Id, 0), Some(GENERAL_PROTECTION), "ID is read-only");
        check_eq!(write(Register::TaskPriority, 0x100), Some(GENERAL_PROTECTION), "TPR has 8 bits");
        check_eq!(write(Register::ErrorStatus, 1), Some(GENERAL_PROTECTION), "ESR takes 0");
        check_eq!(read(Register::EndOfInterrupt), Some(GENERAL_PROTECTION), "EOI is write-only");
        check_eq!(read(Register::DestinationFormat), Some(GENERAL_PROTECTION), "no DFR");
        check_eq!(read(Register::CommandHigh), Some(GENERAL_PROTECTION), "no high half of ICR");
        Ok(())
    })?;
    check_eq!(fault(|| _ = msr::read_x2apic(Register::Id, 0)), Some(GENERAL_PROTECTION), "not in x2APIC mode");
    Ok(())
}

pub(crate) fn x2apic_ipis(_: &Boot) -> Outcome {
    expect(VECTOR);
    in_x2apic_mode(|apic| {
        afresh(|| {
            apic.write(Register::SelfIpi, VECTOR.into());
            let_in();
            apic.send(Delivery::Fixed(VECTOR), Destination::Physical(apic.id()));
            let_in();
            apic.send(Delivery::Fixed(VECTOR), Destination::Logical(apic.read(Register::LogicalDestination)));
            let_in();
            apic.send(Delivery::Fixed(VECTOR), Destination::Myself);
            let_in();
            check_eq!(here(&mut [0; 16]), [VECTOR; 4]);
            Ok(())
        })
    })?;
    if smp::count() > 1 { between_processors() } else { Ok(()) }
}

/// Each sends to the next.
fn between_processors() -> Outcome {
    afresh(|| {
        smp::run_on_all(|cpu| {
            let apic = Apic::switch(Mode::X2apic);
            let next = smp::cpus().nth((cpu.index() + 1) % smp::count()).ok_or(NotPassed::Failed)?;
            apic.send(Delivery::Fixed(VECTOR), next.into());
            let came = crate::arrivals::let_in_until(1);
            let apic = Apic::switch(Mode::Xapic);
            if cpu.is_boot() {
                apic.write(Register::LvtLint0, LVT_EXT_INT);
            }
            check!(came, "nothing comes to {cpu:?}");
            Ok(())
        })
    })
}

/// SDM volume 3, figure "Local x2APIC State Transitions".
pub(crate) fn transitions_that_fault(_: &Boot) -> Outcome {
    skip_unless!(is_exact(), "emulators don't enable it again");
    skip_unless!(Apic::has_x2apic(), "no x2APIC mode");
    let base = Msr::ApicBase.read();
    let write = |bits| fault(|| Msr::ApicBase.write(base & !(BASE_ENABLED | BASE_X2APIC) | bits));
    let invalid = write(BASE_X2APIC);
    let to_x2apic = write(BASE_ENABLED | BASE_X2APIC);
    let back = write(BASE_ENABLED);
    let off = write(0);
    let from_off = write(BASE_ENABLED | BASE_X2APIC);
    let on = write(BASE_ENABLED);
    Apic::start().write(Register::LvtLint0, LVT_EXT_INT);
    check_eq!((invalid, to_x2apic, back), (Some(GENERAL_PROTECTION), None, Some(GENERAL_PROTECTION)));
    check_eq!((off, from_off, on), (None, Some(GENERAL_PROTECTION), None));
    Ok(())
}

/// Each processor's registers lie over a page of memory, which stays the others' and is as it was when they have gone.
pub(crate) fn over_memory(boot: &Boot) -> Outcome {
    skip_unless!(is_exact(), "emulators leave them at their place");
    const BYTES: u64 = 0x1234_5678_9abc_def0;
    const VERSION: u64 = 0x30;
    let frame = ram::fresh(boot);
    frame.write(VERSION as usize / 8, BYTES);
    let byte = || frame.address(VERSION).read();
    let base = Msr::ApicBase.read();
    let version = Apic::here().read(Register::Version) as u8;
    Msr::ApicBase.write(base & 0xfff | frame.gpa().raw());
    let there = byte();
    let others = smp::run_on_all(|cpu| {
        check!(cpu.is_boot() || byte() == BYTES as u8, "{cpu:?} does not find memory");
        Ok(())
    });
    Msr::ApicBase.write(base);
    check_eq!((there, byte()), (version, BYTES as u8));
    check_eq!(frame.read(VERSION as usize / 8), BYTES);
    others
}

/// CPUID says so, and it comes back reset.
pub(crate) fn disabled_and_enabled_again(_: &Boot) -> Outcome {
    skip_unless!(is_exact(), "emulators don't enable it again");
    let base = Msr::ApicBase.read();
    Apic::here().set_task_priority(5);
    Msr::ApicBase.write(base & !BASE_ENABLED);
    let there_while_disabled = Apic::exists();
    let leaf = cpuid(1, 0);
    Msr::ApicBase.write(base);
    let there_again = Apic::exists();
    let priority = Apic::here().read(Register::TaskPriority);
    Apic::start().write(Register::LvtLint0, LVT_EXT_INT);
    check!(!there_while_disabled, "{leaf:x?}");
    check!(there_again);
    check_eq!(priority, 0);
    expect(VECTOR);
    afresh(|| {
        Apic::here().send(Delivery::Fixed(VECTOR), Destination::Myself);
        let_in();
        check_eq!(here(&mut [0; 16]), [VECTOR]);
        Ok(())
    })
}
