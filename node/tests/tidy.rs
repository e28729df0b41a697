//! The house rules that no compiler checks: what each room may import, that every file tells its
//! story, and that none grows into a giant.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Above this a file needs a line in [`LARGE`], with the size that it may have. The limit counts
/// everything before the tests.
const LINES_MAX: usize = 400;

/// Files that are larger, and how large they may be. Sizes only go down.
const LARGE: &[(&str, usize)] = &[
    ("node/src/commands/check.rs", 407),
    ("node/src/core/config.rs", 423),
    ("node/src/sim/clients.rs", 417),
    ("storage/src/memory.rs", 424),
];

/// What rustfmt keeps for code where it can, held for all else: comments, strings and prose.
const COLUMNS_MAX: usize = 100;

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

/// What people read: each document's path from the root, and its text.
fn docs() -> Vec<(String, String)> {
    let named = ["ARCHITECTURE.md", "CHANGELOG.md", "README.md"].map(|name| root().join(name));
    let others = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.strip_prefix(root()).unwrap().display().to_string();
    let all =
        named.into_iter().chain(others.filter(|path| path.extension() == Some("md".as_ref())));
    all.map(|path| (name(&path), fs::read_to_string(path).unwrap())).collect()
}

/// What stands before a file's unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn every_file_opens_with_its_story() {
    let bad: Vec<_> = all()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| name)
        .collect();
    assert!(bad.is_empty(), "these files do not open with `//!`: {bad:?}");
}

#[test]
fn no_file_grows_into_a_giant() {
    for (name, text) in
        all().iter().filter(|(name, _)| name.contains("/src/") && !name.contains("/tests"))
    {
        let lines = without_tests(text).lines().count();
        let allowed =
            LARGE.iter().find(|(large, _)| large == name).map_or(LINES_MAX, |(_, lines)| *lines);
        assert!(
            lines <= allowed,
            "{name} has {lines} lines, {allowed} are allowed: does it still tell one story?"
        );
    }
    let names: Vec<_> = all().into_iter().map(|(name, _)| name).collect();
    for (name, _) in LARGE {
        assert!(names.iter().any(|n| n == name), "{name} is listed as large and does not exist");
    }
}

/// Tables, samples between fences, links and JSON in raw strings can't be wrapped; all else can.
#[test]
fn no_line_is_wider_than_a_page() {
    let docs = docs().into_iter().map(|(name, text)| (name, text, ""));
    let files = all().into_iter().map(|(name, text)| (name, text, "//"));
    let mut wide = Vec::new();
    for (name, text, marker) in docs.chain(files) {
        let (mut in_sample, mut in_raw_string) = (false, false);
        for (number, line) in text.lines().enumerate() {
            let said = line.trim_start();
            let said = said.trim_start_matches(marker).trim_start_matches(['/', '!', ' ']);
            in_sample ^= said.starts_with("```");
            let is_raw = in_raw_string || line.contains("r#\"");
            in_raw_string = is_raw && line.matches("\"#").count() < line.matches("r#\"").count()
                || in_raw_string && !line.contains("\"#");
            let may_be_wide = in_sample
                || is_raw
                || said.starts_with('|')
                || said.starts_with("[") && said.contains("](")
                || !said.contains(' ');
            if !may_be_wide && line.chars().count() > COLUMNS_MAX {
                wide.push(format!("{name}:{}: {line}", number + 1));
            }
        }
    }
    assert!(wide.is_empty(), "{COLUMNS_MAX} columns are a page: {wide:#?}");
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
    let core = all()
        .into_iter()
        .filter(|(name, _)| name.starts_with("node/src/core/") && !name.contains("/tests"));
    let mut seen = 0;
    for (name, text) in core {
        seen += 1;
        for (number, line) in without_tests(&text)
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for word in forbidden {
                assert!(
                    !line.contains(word),
                    "{name}:{}: the core must not use `{word}`: {line}",
                    number + 1
                );
            }
        }
    }
    assert!(seen >= 15, "only {seen} files of the core were found");
}

/// The rooms of the core, each with its files: a file imports from its own room, and from rooms
/// above it in this table.
const ROOMS: &[&[&str]] = &[
    &["time", "event", "effect", "wire", "config", "counters", "report", "dispatch"],
    &["liveness", "pass", "budgets"],
    &["context"],
    &["group"],
    &["operations"],
    &["replica"],
    &["replicas"],
    &["placement"],
    &["mod", "inputs", "tick", "gathering"],
];

/// The files of the core without its tests: their modules (`group/log`; a folder's `mod.rs` is the
/// folder), and their text.
fn core_modules() -> BTreeMap<String, String> {
    let module = |name: String| {
        let path = name.strip_prefix("node/src/core/")?.strip_suffix(".rs")?.to_owned();
        (!path.starts_with("tests/")).then(|| path.strip_suffix("/mod").unwrap_or(&path).to_owned())
    };
    all()
        .into_iter()
        .filter_map(|(name, text)| Some((module(name)?, without_tests(&text).to_owned())))
        .collect()
}

/// The paths that a file's `use` lines name, each as written, without braces.
fn imports(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let statements = code.split(';').filter_map(|statement| {
        let at = statement
            .rfind("use ")
            .filter(|at| *at == 0 || statement[..*at].ends_with(['\n', ' ']))?;
        Some(statement[at + 4..].split_whitespace().collect::<String>())
    });
    statements
        .flat_map(|path| match path.split_once('{') {
            Some((before, list)) => list
                .trim_end_matches('}')
                .split(',')
                .filter(|n| !n.is_empty())
                .map(|n| format!("{before}{n}"))
                .collect(),
            None => vec![path],
        })
        .collect()
}

/// The core's module that an import from `module` leads to, if it leads to one.
fn imported(module: &str, path: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let is_folder =
        known.keys().any(|other| other.starts_with(&format!("{module}/"))) || module == "mod";
    let mut here: Vec<&str> = module.split('/').filter(|part| *part != "mod").collect();
    let mut parts = path.split("::").peekable();
    match parts.peek() {
        Some(&"crate") => {
            parts.next();
            here.clear();
            parts.next_if_eq(&"core")?;
        }
        Some(&"super" | &"self") => {
            if !is_folder {
                here.pop();
            }
            let mut is_first = true;
            while let Some(step) = parts.next_if(|part| ["super", "self"].contains(part)) {
                // From a file, the first `super` is its folder; from a folder's own file, it is the
                // folder above.
                if step == "super" && (is_folder || !is_first) {
                    here.pop();
                }
                is_first = false;
            }
        }
        Some(first)
            if !is_folder
                || !known.contains_key(&[here.clone(), vec![*first]].concat().join("/")) =>
        {
            return None;
        }
        _ => {}
    }
    for part in parts {
        let further = [here.clone(), vec![part]].concat();
        if !known.contains_key(&further.join("/")) {
            break;
        }
        here = further;
    }
    Some(if here.is_empty() { "mod".to_owned() } else { here.join("/") })
}

fn room_of(module: &str) -> usize {
    let top = module.split('/').next().unwrap_or(module);
    ROOMS
        .iter()
        .position(|room| room.contains(&top))
        .unwrap_or_else(|| panic!("core/{module} is in no room of the table"))
}

/// Who imports whom inside of the core.
fn core_imports() -> BTreeMap<String, BTreeSet<String>> {
    let known = core_modules();
    assert!(known.len() >= 30, "only {} files of the core were found", known.len());
    let of = |module: &String, text: &String| {
        imports(text)
            .iter()
            .filter_map(|path| imported(module, path, &known))
            .filter(|other| other != module)
            .collect()
    };
    known.iter().map(|(module, text)| (module.clone(), of(module, text))).collect()
}

#[test]
fn imports_of_the_core_run_one_way() {
    let graph = core_imports();
    let count: usize = graph.values().map(BTreeSet::len).sum();
    assert!(count > 100, "only {count} imports inside the core were found: they are read wrongly");
    for (module, others) in &graph {
        for other in others {
            let (mine, theirs) = (room_of(module), room_of(other));
            let is_kin =
                module.split('/').next() == other.split('/').next() || [mine, theirs] == [0, 0];
            let is_below = theirs < mine || [mine, theirs] == [ROOMS.len() - 1; 2];
            assert!(
                is_kin || is_below,
                "core/{module} imports core/{other}, which stands beside it or above"
            );
        }
    }
}

#[test]
fn no_files_of_the_core_import_each_other_in_a_circle() {
    let mut graph = core_imports();
    // Whoever imports nobody that is left goes; what can't go stands in a circle, or leads to one.
    loop {
        let done: Vec<_> = graph
            .iter()
            .filter(|(_, others)| others.is_empty())
            .map(|(module, _)| module.clone())
            .collect();
        if done.is_empty() {
            break;
        }
        for module in &done {
            graph.remove(module);
        }
        graph.values_mut().for_each(|others| others.retain(|other| !done.contains(other)));
    }
    assert!(
        graph.is_empty(),
        "these files of the core import each other in a circle, or somebody who does: {graph:?}"
    );
}

#[test]
fn no_operation_knows_the_replica_or_the_node() {
    let replica = room_of("replica");
    for (module, text) in core_modules().iter().filter(|(module, _)| room_of(module) < replica) {
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let names = words.any(|word| ["Node", "Replica", "Replicas"].contains(&word));
            assert!(!names, "core/{module} names the node or a replica: {line}");
        }
    }
}

/// Whoever sets a descriptor says which keys a replica owns; one file judges that against all
/// others.
#[test]
fn one_file_sets_descriptors() {
    for (module, text) in core_modules().iter().filter(|(module, _)| *module != "replicas") {
        let calls = text
            .lines()
            .any(|line| line.contains("set_descriptor(") && !line.contains("fn set_descriptor("));
        assert!(!calls, "core/{module} sets a descriptor; only core/replicas.rs does");
    }
}

/// `println!` and its like panic when nobody reads any more, or the disk of a log is full; with a
/// panic a process ends.
#[test]
fn nothing_that_runs_panics_because_nobody_reads() {
    let runs = |name: &str| {
        name.contains("/src/") && !name.contains("/tests") && !name.contains("_tests.rs")
    };
    let aside = ["node/src/bin/flotilla-sim.rs", "node/src/sim/", "node/kit/"];
    for (name, text) in all()
        .iter()
        .filter(|(name, _)| runs(name) && !aside.iter().any(|aside| name.starts_with(aside)))
    {
        for (number, line) in without_tests(text)
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            let prints = ["println!(", "eprintln!(", " print!(", " eprint!("]
                .iter()
                .any(|word| line.contains(word));
            assert!(
                !prints,
                "{name}:{}: this panics when its output is closed: {line}",
                number + 1
            );
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
    let table =
        manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
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
    let required =
        ["node", "cluster", "data", "http", "quic", "tls.ca", "tls.cert", "tls.key", "threads"];
    for (key, default) in flotilla_node::shell::config::Config::keys() {
        if key == "peers" {
            assert!(documented.contains("`[[peers]]`"), "docs/configuration.md lacks the peers");
            continue;
        }
        let default =
            if required.contains(&key.as_str()) { String::new() } else { format!("`{default}`") };
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

#[test]
fn the_docs_name_sources_that_exist() {
    let mut seen = 0;
    for (document, text) in docs() {
        for path in text.split('`').filter(|word| {
            word.ends_with(".rs") && word.contains('/') && !word.contains(['*', '<', ' '])
        }) {
            seen += 1;
            let exists = [
                "",
                "node",
                "node/src",
                "node/fuzz",
                "node/tests",
                "storage/src",
                "router/src",
                "transport/src",
                "ops/src",
            ]
            .iter()
            .any(|room| root().join(room).join(path).is_file());
            assert!(exists, "{document} names {path}, which is not there");
        }
    }
    assert!(seen > 50, "only {seen} names of sources were found");
}
