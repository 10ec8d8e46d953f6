//! The hypercalls of this hypervisor.

use abi::hypercall::ABI_VERSION;
use addr::Gva;
use guest::boot::Boot;
use guest::cpuid::{Hypervisor, hypervisor};
use guest::hypercall::{Instruction, NOP, Refused, UNKNOWN, VERSION, instruction};
use guest::interrupts::SOFTWARE;
use guest::ktap::{NotPassed, Outcome};
use guest::paging::{Rights, map};
use guest::raw_gva::RawGva;
use guest::{check_eq, ram, user};

const USER_CODE: Gva = Gva::new(0x80_1000_0000);

pub(crate) fn nop_returns_0(_: &Boot) -> Outcome {
    check_eq!(ours()?.call(NOP), 0);
    Ok(())
}

pub(crate) fn version_is_that_of_the_interface(_: &Boot) -> Outcome {
    check_eq!(ours()?.call(VERSION).cast_unsigned(), ABI_VERSION);
    Ok(())
}

pub(crate) fn unknown_number_is_enosys(_: &Boot) -> Outcome {
    let instruction = ours()?;
    for number in [UNKNOWN, 0, 1, NOP | 1 << 32, u64::MAX] {
        check_eq!(instruction.call(number), Refused::NoSuchCall as i64, "for {number:#x}");
    }
    Ok(())
}

pub(crate) fn either_instruction_works(_: &Boot) -> Outcome {
    let other = ours()?.other();
    check_eq!(other.call(VERSION).cast_unsigned(), ABI_VERSION, "by {other:?}");
    check_eq!(other.call(UNKNOWN), Refused::NoSuchCall as i64, "by {other:?}");
    Ok(())
}

pub(crate) fn user_mode_is_denied(boot: &Boot) -> Outcome {
    let modrm = match ours()? {
        Instruction::Vmmcall => 0xd9,
        Instruction::Vmcall => 0xc1,
    };
    let (frame, code) = (ram::fresh(boot), RawGva::above_identity(USER_CODE));
    frame.write_bytes(0, &[0x0f, 0x01, modrm, 0xcd, SOFTWARE as u8]);
    map(code, frame, Rights::USER);
    let end = user::run(code, NOP);
    check_eq!(end.frame.vector, SOFTWARE);
    check_eq!(end.frame.rax.cast_signed(), Refused::NotPermitted as i64);
    Ok(())
}

fn ours() -> Result<Instruction, NotPassed> {
    match (hypervisor(), instruction()) {
        (Hypervisor::Microhv, Some(instruction)) => Ok(instruction),
        _ => Err(NotPassed::Skipped("not under this hypervisor")),
    }
}
