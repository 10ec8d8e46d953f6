#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| devices::fuzz::devices_ports(data));
