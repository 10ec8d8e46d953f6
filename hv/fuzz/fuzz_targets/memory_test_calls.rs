//! Arbitrary test calls on a VM's memory, between accesses by the guest and by software.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::fuzz::test_calls(data));
