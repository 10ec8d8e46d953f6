#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| apic::fuzz::apic_accesses(data));
