#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| distillrs_core::trajectory::teacher::hostile::rows(bytes));
