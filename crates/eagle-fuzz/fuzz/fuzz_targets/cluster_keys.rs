#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| eagle_fuzz::run("cluster_keys", bytes));
