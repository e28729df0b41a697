//! The core under libFuzzer.

#![no_main]

#[path = "../targets/peers.rs"]
mod peers;
#[allow(dead_code, reason = "each target uses its part")]
#[path = "../targets/script.rs"]
mod script;
#[path = "../targets/message.rs"]
mod target;
#[path = "../targets/template.rs"]
mod template;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
