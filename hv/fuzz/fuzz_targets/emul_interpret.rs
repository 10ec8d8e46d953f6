#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| emul::fuzz::emul_interpret(data));
