//! The house rules that no compiler checks: what each room may import, that every file tells its story, and that none grows
//! into a giant.

use std::fs;
use std::path::{Path, PathBuf};

/// Above this a file needs a line in [`LARGE`], with the size that it may have. The limit counts everything before the tests.
const LINES_MAX: usize = 360;

/// Files that are larger, and how large they may be. Sizes only go down.
const LARGE: &[(&str, usize)] = &[
    ("node/src/shell/admin.rs", 451),
    ("ops/src/cli/admin.rs", 390),
    ("ops/src/http/scan.rs", 369),
    ("storage/src/memory.rs", 374),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("node lies in the workspace").to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every source file of the workspace: its path from the root, and its text.
fn all() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for room in ["router", "storage", "transport", "ops", "node", "node/kit"] {
        for part in ["src", "tests", "benches", "examples"] {
            let folder = root().join(room).join(part);
            if folder.is_dir() {
                sources(&folder, &mut found);
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "only {} source files were found", found.len());
    let name = |path: &PathBuf| path.strip_prefix(root()).unwrap().display().to_string();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// What stands before a file's unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn every_file_opens_with_its_story() {
    let bad: Vec<_> = all().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(name, _)| name).collect();
    assert!(bad.is_empty(), "these files do not open with `//!`: {bad:?}");
}

#[test]
fn no_file_grows_into_a_giant() {
    for (name, text) in all().iter().filter(|(name, _)| name.contains("/src/") && !name.contains("/tests")) {
        let lines = without_tests(text).lines().count();
        let allowed = LARGE.iter().find(|(large, _)| large == name).map_or(LINES_MAX, |(_, lines)| *lines);
        assert!(lines <= allowed, "{name} has {lines} lines, {allowed} are allowed: does it still tell one story?");
    }
    let names: Vec<_> = all().into_iter().map(|(name, _)| name).collect();
    for (name, _) in LARGE {
        assert!(names.iter().any(|n| n == name), "{name} is listed as large and does not exist");
    }
}

#[test]
fn the_core_is_pure() {
    let forbidden = [
        "std::thread",
        "std::fs",
        "std::net",
        "std::io",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "Mutex",
        "RwLock",
        "Atomic",
        "tokio",
        "async ",
        ".await",
        "crossbeam",
        "crate::shell",
        "flotilla_transport",
        "flotilla_ops",
        "rocksdb",
        "thread_rng",
        "println!",
        "tracing::",
    ];
    let core = all().into_iter().filter(|(name, _)| name.starts_with("node/src/core/") && !name.contains("/tests"));
    let mut seen = 0;
    for (name, text) in core {
        seen += 1;
        for (number, line) in without_tests(&text).lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in forbidden {
                assert!(!line.contains(word), "{name}:{}: the core must not use `{word}`: {line}", number + 1);
            }
        }
    }
    assert!(seen >= 15, "only {seen} files of the core were found");
}

/// `println!` and its like panic when nobody reads any more, or the disk of a log is full; with a panic a process ends.
#[test]
fn nothing_that_runs_panics_because_nobody_reads() {
    let runs = |name: &str| name.contains("/src/") && !name.contains("/tests") && !name.contains("_tests.rs");
    let aside = ["node/src/bin/flotilla-sim.rs", "node/src/sim/", "node/kit/"];
    for (name, text) in all().iter().filter(|(name, _)| runs(name) && !aside.iter().any(|aside| name.starts_with(aside))) {
        for (number, line) in without_tests(text).lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let prints = ["println!(", "eprintln!(", " print!(", " eprint!("].iter().any(|word| line.contains(word));
            assert!(!prints, "{name}:{}: this panics when its output is closed: {line}", number + 1);
        }
    }
}

#[test]
fn the_middle_rooms_import_no_sibling() {
    let siblings = ["flotilla-storage", "flotilla-transport", "flotilla-ops", "flotilla-node"];
    for room in ["router", "storage", "transport", "ops"] {
        let manifest = fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
        for sibling in siblings.iter().filter(|s| **s != format!("flotilla-{room}")) {
            let imports = manifest.lines().any(|line| line.starts_with(sibling));
            assert!(!imports, "{room} imports {sibling}");
        }
    }
}

#[test]
fn dependencies_say_why_they_are_here() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let mut explained = false;
    for line in table.lines().map(str::trim) {
        match line {
            "" => explained = false,
            _ if line.starts_with('#') => explained = true,
            _ if line.starts_with("flotilla-") => {}
            _ => assert!(explained, "no reason stands above `{line}`"),
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (name, text) in all().iter().filter(|(name, _)| name != "node/tests/tidy.rs") {
        for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{name} contains `{word}`");
        }
    }
}

#[cfg(feature = "shell")]
#[test]
fn every_configuration_key_is_documented_with_its_default() {
    let documented = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let required = ["node", "cluster", "data", "http", "quic", "tls.ca", "tls.cert", "tls.key", "threads"];
    for (key, default) in flotilla_node::shell::config::Config::keys() {
        if key == "peers" {
            assert!(documented.contains("`[[peers]]`"), "docs/configuration.md lacks the peers");
            continue;
        }
        let default = if required.contains(&key.as_str()) { String::new() } else { format!("`{default}`") };
        assert!(
            documented.contains(&format!("| `{key}` | {default} | ")),
            "docs/configuration.md lacks {key} with default {default}"
        );
        // And once more in the table of what is allowed.
        assert!(
            documented.matches(&format!("\n| `{key}` | ")).count() == 2,
            "docs/configuration.md does not say what {key} allows"
        );
    }
}

#[test]
fn the_readme_names_files_that_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut seen = 0;
    for link in readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let path = link.split('#').next().unwrap_or(link);
        if !path.is_empty() && !path.contains("://") {
            seen += 1;
            assert!(root().join(path).exists(), "README.md links to {path}, which is not there");
        }
    }
    assert!(seen > 0, "README.md links to nothing");
}
