//! The time-stamp counter.

use guest::boot::Boot;
use guest::cpuid::cpuid;
use guest::ktap::Outcome;
use guest::{check, tsc};

/// Neither from one reading to the next nor across an exit.
pub(crate) fn never_goes_back(_: &Boot) -> Outcome {
    let first = tsc::read();
    let mut last = first;
    for round in 0..1_000 {
        if round % 2 == 0 {
            cpuid(0, 0);
        }
        let now = tsc::read();
        check!(now >= last, "{last} and then {now} in round {round}");
        last = now;
    }
    check!(last > first, "it stands still at {first}");
    Ok(())
}
