//! What lies on the disk, under libFuzzer.

#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
#[path = "../targets/script.rs"]
mod script;
#[path = "../targets/records.rs"]
mod target;
#[path = "../targets/template.rs"]
mod template;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
