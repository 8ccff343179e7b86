#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| xtask::disk::qcow2::fuzz(input));
