#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (rumormill_fuzz::target("topology").check)(bytes));
