//! A guest whose second test fails: it has to be judged as failed.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::exit::GuestStatus;
use guest::ktap::{self, Outcome};
use guest::{cases, check, check_eq};

guest::main!(main);

fn main(boot: &Boot) -> GuestStatus {
    ktap::run(boot, cases![holds, does_not_hold])
}

fn holds(boot: &Boot) -> Outcome {
    check!(boot.memory_map().next().is_some());
    Ok(())
}

fn does_not_hold(boot: &Boot) -> Outcome {
    check_eq!(boot.entry().info, !boot.entry().info, "as it has to be in this guest");
    Ok(())
}
