//! The corpus of the fuzz targets, replayed on a stable toolchain: every input that a fuzzer found
//! to reach something new, and every input that once broke something. What each target checks is
//! told in its file in `fuzz/targets`; how to run the fuzzers, in `docs/fuzzing.md`.

use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "shell")]
#[path = "../fuzz/targets/config.rs"]
mod config;
#[cfg(feature = "shell")]
#[path = "../fuzz/targets/forward.rs"]
mod forward;
#[cfg(feature = "shell")]
#[path = "../fuzz/targets/http.rs"]
mod http;
#[path = "../fuzz/targets/message.rs"]
mod message;
#[path = "../fuzz/targets/peers.rs"]
mod peers;
#[cfg(feature = "shell")]
#[path = "../fuzz/targets/quic.rs"]
mod quic;
#[path = "../fuzz/targets/records.rs"]
mod records;
#[allow(dead_code, reason = "without the shell there are fewer targets")]
#[path = "../fuzz/targets/script.rs"]
mod script;
#[cfg(feature = "shell")]
#[path = "../fuzz/targets/seeds.rs"]
mod seeds;
#[path = "../fuzz/targets/template.rs"]
mod template;

/// A corpus of fewer inputs was lost on the way.
const INPUTS_MIN: usize = 50;

/// Runs every input of a target; one that panics is named.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = folder().join(target);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= INPUTS_MIN, "the corpus of {target} has {} inputs only", inputs.len());
    for input in inputs {
        let data = fs::read(&input).unwrap();
        let outcome = std::panic::catch_unwind(|| run(&data));
        assert!(
            outcome.is_ok(),
            "{} breaks the target {target}; see above for what it says",
            input.display()
        );
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

#[cfg(feature = "shell")]
#[test]
fn requests_of_clients() {
    replay("http", http::run);
}

#[cfg(feature = "shell")]
#[test]
fn streams_of_peers() {
    replay("quic", quic::run);
}

#[test]
fn messages_of_peers() {
    replay("message", message::run);
}

#[test]
fn records_on_disk() {
    replay("records", records::run);
}

#[cfg(feature = "shell")]
#[test]
fn what_people_configure() {
    replay("config", config::run);
}

/// Every target has its test above: one that is added to the fuzz package and not here would never
/// be replayed.
#[test]
fn every_target_is_replayed() {
    let here =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus.rs")).unwrap();
    let targets = fs::read_dir(folder().parent().unwrap().join("fuzz_targets")).unwrap();
    let mut seen = 0;
    for target in targets {
        let name = target.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            here.contains(&format!("replay(\"{name}\", {name}::run)")),
            "the target {name} is not replayed"
        );
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} targets were found");
}

/// Writes the seeds into the corpus; to be run by hand, before a fuzzer begins anew.
#[cfg(feature = "shell")]
#[test]
#[ignore = "writes into the source tree"]
fn seeds() {
    seeds::write(&std::env::var_os("SEEDS").map_or_else(folder, PathBuf::from));
}
