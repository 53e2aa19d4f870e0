#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| distillrs_core::forms::hostile::codes(bytes));
