//! CPUID.
use guest::boot::Boot;
use guest::check;
use guest::cpuid::cpuid;
use guest::ktap::Outcome;

pub(crate) fn vendor_is_text(_: &Boot) -> Outcome {
    let vendor = cpuid(0, 0).vendor();
    check!(vendor.iter().all(u8::is_ascii_graphic), "vendor is {vendor:x?}");
    Ok(())
}
