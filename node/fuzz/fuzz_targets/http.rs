//! The HTTP server under libFuzzer.

#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
#[path = "../targets/script.rs"]
mod script;
#[path = "../targets/http.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
