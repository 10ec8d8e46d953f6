//! Whether a virtual machine is what a processor's manual promises: run it first.
#![no_std]
#![no_main]

use guest::boot::Boot;
use guest::cases;
use guest::exit::Verdict;
use guest::ktap;

mod cpuid;
guest::main!(main);

fn main(boot: &Boot) -> Verdict {
    ktap::run(boot, cases![cpuid::vendor_is_text,])
}
