//! What comes off the wire between nodes, under libFuzzer.

#![no_main]

#[path = "../targets/forward.rs"]
mod forward;
#[allow(dead_code, reason = "each target uses its part")]
#[path = "../targets/script.rs"]
mod script;
#[path = "../targets/quic.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
