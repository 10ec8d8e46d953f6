//! Tables with arbitrary contents, walked and worked on in every way.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmu::fuzz::arbitrary_tables(data));
