#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pusherd_fuzz::config_file::holds(data));
