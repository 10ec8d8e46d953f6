//! Exceptions through the guest's own IDT.

use addr::Gva;
use guest::boot::Boot;
use guest::interrupts::{
    BREAKPOINT, DIVIDE_ERROR, Fault, GENERAL_PROTECTION, INVALID_OPCODE, PAGE_FAULT, SOFTWARE, divide_by, expect_fault,
    int_0x80, int3, ud2,
};
use guest::ktap::Outcome;
use guest::paging::{Rights, map};
use guest::raw_gva::RawGva;
use guest::{check_eq, descriptors, ram, user};

const NON_CANONICAL: Gva = Gva::new(0x8000_0000_0000);
const USER_CODE: Gva = Gva::new(0x80_2000_0000);

/// Vector, error code and RIP of what happened; all ones if nothing did.
fn told(fault: Option<Fault>) -> (u64, u64, u64) {
    fault.map_or((u64::MAX, u64::MAX, u64::MAX), |Fault { frame, .. }| (frame.vector, frame.error, frame.rip))
}

pub(crate) fn invalid_opcode(_: &Boot) -> Outcome {
    check_eq!(told(expect_fault(|| ud2())), (INVALID_OPCODE, 0, ud2 as *const () as u64));
    Ok(())
}

pub(crate) fn divide_error(_: &Boot) -> Outcome {
    check_eq!(told(expect_fault(|| divide_by(0))), (DIVIDE_ERROR, 0, divide_by as *const () as u64));
    Ok(())
}

/// A trap: RIP is behind the one byte of INT3.
pub(crate) fn breakpoint(_: &Boot) -> Outcome {
    check_eq!(told(expect_fault(|| int3())), (BREAKPOINT, 0, int3 as *const () as u64 + 1));
    Ok(())
}

/// RIP is behind the two bytes of INT n.
pub(crate) fn software_interrupt(_: &Boot) -> Outcome {
    check_eq!(told(expect_fault(|| int_0x80())), (SOFTWARE, 0, int_0x80 as *const () as u64 + 2));
    Ok(())
}

pub(crate) fn non_canonical_access(_: &Boot) -> Outcome {
    let place = RawGva::above_identity(NON_CANONICAL);
    check_eq!(told(expect_fault(|| _ = place.read())), (GENERAL_PROTECTION, 0, RawGva::read_rip()));
    check_eq!(told(expect_fault(|| place.write(0))), (GENERAL_PROTECTION, 0, RawGva::write_rip()));
    Ok(())
}

/// From ring 3 the handler gets the stack of the TSS, the user's SS:RSP on it, and U in the error code.
pub(crate) fn page_fault_in_user_mode(boot: &Boot) -> Outcome {
    const USER_READ: u64 = 1 << 2;
    let (frame, code) = (ram::fresh(boot), RawGva::above_identity(USER_CODE));
    // mov al, [rax]
    frame.write_bytes(0, &[0x8a, 0x00]);
    map(code, frame, Rights::USER);
    let unmapped = code.plus(0x1000).raw();
    let fault = user::run(code, unmapped);
    check_eq!(told(Some(fault)), (PAGE_FAULT, USER_READ, code.raw()));
    check_eq!(fault.cr2, unmapped);
    check_eq!(
        (fault.frame.cs, fault.frame.ss, fault.frame.rsp),
        (descriptors::USER_CODE64.into(), descriptors::USER_DATA.into(), 0)
    );
    Ok(())
}
