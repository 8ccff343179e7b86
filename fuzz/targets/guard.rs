#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| xtask::vm::net::fuzz::guard(input));
