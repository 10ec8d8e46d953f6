#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| walk::fuzz::walk_tables(data));
