//! What a configuration takes and what it refuses, key by key; that nothing is refused without its
//! key and a cure.

use super::*;

/// A folder with the sample's file, and how it loads with flags.
struct File {
    folder: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("flotilla.toml"), Config::sample().to_toml()).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("flotilla.toml")
    }

    /// Changes the file.
    fn edited(edit: impl FnOnce(&mut toml::Table)) -> Self {
        let file = Self::new();
        let mut table: toml::Table = Config::sample().to_toml().parse().unwrap();
        edit(&mut table);
        std::fs::write(file.path(), table.to_string()).unwrap();
        file
    }

    fn load(&self, flags: &[(&str, &str)]) -> Result<Config, String> {
        let flags: Vec<_> =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::load(Some(&self.path()), &flags).map_err(|error| error.to_string())
    }

    fn refusal(&self, flags: &[(&str, &str)]) -> String {
        self.load(flags).expect_err(&format!("{flags:?} was taken"))
    }
}

/// Sets a dotted key of a table.
fn set(table: &mut toml::Table, key: &str, value: impl Into<toml::Value>) {
    match key.split_once('.') {
        Some((outer, inner)) => set(table[outer].as_table_mut().unwrap(), inner, value),
        None => drop(table.insert(key.to_owned(), value.into())),
    }
}

#[test]
fn what_is_printed_can_be_read_again() {
    let file = File::new();
    let read = file.load(&[]).unwrap();
    assert_eq!(read.data, file.folder.path().join("data"));
    std::fs::write(file.path(), read.to_toml()).unwrap();
    assert_eq!(file.load(&[]).unwrap(), read);
}

#[test]
fn flags_win_over_the_file_and_are_read_by_the_type_of_their_key() {
    let file = File::new();
    let load = |key: &str, value: &str| file.load(&[(key, value)]).unwrap();
    assert_eq!(load("raft.election_ticks", "20").raft.election_ticks, 20);
    assert_eq!(load("data", "/elsewhere").data, Path::new("/elsewhere"));
    assert_eq!(load("limits.request_timeout", "7s").limits.request_timeout, Duration::from_secs(7));
    assert_eq!(
        load("limits.request_timeout", "\"7s\"").limits.request_timeout,
        Duration::from_secs(7)
    );
    // Lists of names as people write them, and as TOML.
    for list in ["a.example, 10.0.0.1", "[\"a.example\", \"10.0.0.1\"]"] {
        assert_eq!(load("http_hosts", list).http_hosts, ["a.example", "10.0.0.1"]);
    }
    // A name of digits alone is a name.
    assert_eq!(load("cluster", "1234567890123456").cluster, ClusterId(0x1234_5678_9012_3456));
    // Relative to where it was typed, not to the file's folder.
    assert_eq!(load("data", "2024").data, std::env::current_dir().unwrap().join("2024"));
    assert_eq!(
        load("tls.ca", "a b/ca.pem").tls.ca,
        std::env::current_dir().unwrap().join("a b/ca.pem")
    );
}

#[test]
fn complaints_name_the_flag_or_the_file_and_the_key() {
    let file = File::new();
    for (key, value, wanted) in [
        ("raft.electon_ticks", "20", &["electon_ticks", "election_ticks"][..]),
        ("raft.election_ticks", "1", &["--raft-election-ticks: raft.election_ticks is 1"]),
        ("raft.election_ticks", "many", &["--raft-election-ticks", "\"many\" is no whole number"]),
        ("raft.pre_vote", "yes", &["--raft-pre-vote", "neither true nor false"]),
        ("node", "9", &["node 9 itself"]),
        ("cluster", "xyz", &["--cluster: cluster: ", "16 hexadecimal digits"]),
        (
            "http",
            "localhost:7001",
            &["--http: http: ", "127.0.0.1:7001", "names are not looked up"],
        ),
        ("shutdown_grace", "5", &["--shutdown-grace: shutdown_grace: ", "\"10s\""]),
        (
            "reads.default_consistency",
            "strong",
            &["--reads-default-consistency: reads.default_consistency", "linearizable"],
        ),
        ("http_hosts", "a:1", &["--http-hosts: http_hosts: \"a:1\" is no host name"]),
        ("peers", "1,2", &["--peers", "quic = "]),
    ] {
        let said = file.refusal(&[(key, value)]);
        assert!(wanted.iter().all(|wanted| said.contains(wanted)), "{key} = {value}: {said}");
    }
    let said = File::edited(|table| set(table, "raft.tick_ms", "50")).refusal(&[]);
    assert!(
        said.contains("flotilla.toml: raft.tick_ms: invalid type")
            && said.contains("without quotes"),
        "{said}"
    );
    let said = File::edited(|table| set(table, "cluster", 1_234_567_890_123_456_i64)).refusal(&[]);
    assert!(
        said.contains("flotilla.toml: cluster: invalid type") && said.contains("in quotes"),
        "{said}"
    );
    let said = File::edited(|table| drop(table.remove("tls"))).refusal(&[]);
    assert!(said.contains("missing field `tls`") && said.contains("flotilla dev"), "{said}");
    let said = File::edited(|table| drop(table["peers"][1].as_table_mut().unwrap().remove("quic")))
        .refusal(&[]);
    assert!(said.contains("missing field `quic` in peers[1]"), "{said}");
}

/// The net for keys to come: a number without a least and a greatest value, or a time that may be
/// nothing, is a gap.
#[test]
fn every_number_and_every_duration_has_a_least_and_a_greatest_value() {
    let file = File::new();
    let mut seen = 0;
    for (key, default) in Config::keys() {
        let values: &[&str] = match default.parse::<toml::Value>() {
            Ok(toml::Value::Integer(_)) if key == "node" => &["0", "-1"],
            Ok(toml::Value::Integer(_)) => &["-1", "9223372036854775807"],
            Ok(toml::Value::String(text))
                if humantime_serde::re::humantime::parse_duration(&text).is_ok() =>
            {
                &["0s", "1ns", "100000h"]
            }
            _ => continue,
        };
        seen += 1;
        for value in values {
            let said = file.refusal(&[(&key, value)]);
            assert!(
                said.starts_with(&format!("configuration: {}: {key}", flag(&key))),
                "{key} = {value}: {said}"
            );
        }
    }
    assert!(seen > 40, "only {seen} keys were looked at");
}

#[test]
fn what_can_not_be_meant_is_refused_with_its_key() {
    type Edit = fn(&mut toml::Table);
    let cases: [(&str, &str, Edit); 24] = [
        ("bootstrap.replicas is 7", "peers are 3", |t| set(t, "bootstrap.replicas", 7)),
        ("bootstrap.replicas is 0", "", |t| set(t, "bootstrap.replicas", 0)),
        ("peers[1].quic", "for node 1", |t| {
            set(t["peers"][1].as_table_mut().unwrap(), "quic", "127.0.0.1:7101")
        }),
        ("peers[1].http", "for node 1", |t| {
            set(t["peers"][1].as_table_mut().unwrap(), "http", "127.0.0.1:7001")
        }),
        ("peers[1].id", "an id of its own", |t| {
            set(t["peers"][1].as_table_mut().unwrap(), "id", 1)
        }),
        ("peers[1].quic", "others need one of them", |t| {
            set(t["peers"][1].as_table_mut().unwrap(), "quic", "0.0.0.0:7102")
        }),
        ("peers[1].quic", "port", |t| set(t["peers"][1].as_table_mut().unwrap(), "quic", "db-2")),
        ("peers[1].quic", "port", |t| {
            set(t["peers"][1].as_table_mut().unwrap(), "quic", "db-2:70000")
        }),
        ("peers[1].quic", "host", |t| {
            set(t["peers"][1].as_table_mut().unwrap(), "quic", "http://db-2:7102")
        }),
        ("quic is 127.0.0.1:31999", "refused", |t| set(t, "quic", "127.0.0.1:31999")),
        ("quic is 127.0.0.2:7101", "refused", |t| set(t, "quic", "127.0.0.2:7101")),
        ("http is 127.0.0.1:31998", "refused", |t| set(t, "http", "127.0.0.1:31998")),
        ("shutdown_grace is 0s", "100ms", |t| set(t, "shutdown_grace", "0s")),
        ("data is empty", "path", |t| set(t, "data", "")),
        ("tls.key is empty", "path", |t| set(t, "tls.key", "")),
        ("cluster: ", "flotilla cert ca", |t| set(t, "cluster", "0000000000000000")),
        ("storage.memtables_max is 0", "2 to", |t| set(t, "storage.memtables_max", 0)),
        ("storage.memtables_max is 1", "2 to", |t| set(t, "storage.memtables_max", 1)),
        ("storage.background_jobs is -3", "1 to", |t| set(t, "storage.background_jobs", -3)),
        ("storage.open_files_max is 1", "64 to", |t| set(t, "storage.open_files_max", 1)),
        ("transport.keep_alive is 5s", "idle_timeout", |t| set(t, "transport.keep_alive", "5s")),
        ("transport.append_lanes is 0", "1 to 16", |t| set(t, "transport.append_lanes", 0)),
        ("raft.inflight_bytes_max is 10", "16777216", |t| set(t, "raft.inflight_bytes_max", 10)),
        ("raft.uncommitted_bytes_max is 65535", "65536", |t| {
            set(t, "raft.message_bytes_max", 1);
            set(t, "raft.uncommitted_bytes_max", 65535);
        }),
    ];
    for (key, cure, edit) in cases {
        let said = File::edited(edit).refusal(&[]);
        assert!(
            said.contains(&format!("flotilla.toml: {key}")) && said.contains(cure),
            "{key}: {said}"
        );
    }
}

#[test]
fn what_can_be_meant_is_taken() {
    // Behind something that maps addresses a node listens everywhere; names are not looked up.
    for (own, said) in [
        ("0.0.0.0:7101", "203.0.113.5:17101"),
        ("10.0.0.1:7101", "db-1:7101"),
        ("[::1]:7101", "[0:0::1]:7101"),
    ] {
        let file = File::edited(|t| {
            set(t, "quic", own);
            set(t["peers"][0].as_table_mut().unwrap(), "quic", said);
        });
        assert_eq!(file.load(&[]).map(|_| ()), Ok(()), "{own} and {said}");
    }
    // Where nothing is said, there are as many replicas as nodes, but three at most.
    for (nodes, replicas) in [(1, 1), (2, 2), (3, 3)] {
        let file = File::edited(|t| {
            t["peers"].as_array_mut().unwrap().truncate(nodes);
            t.remove("bootstrap");
        });
        assert_eq!(file.load(&[]).unwrap().bootstrap, BootstrapConfig { shards: 8, replicas });
    }
    // As it was called once.
    let file = File::edited(|t| {
        let mut table = t.remove("bootstrap").unwrap();
        set(table.as_table_mut().unwrap(), "shards", 77);
        t.insert("founding".into(), table);
    });
    assert_eq!(file.load(&[]).unwrap().bootstrap.shards, 77);
    let file = File::edited(|t| {
        t["raft"].as_table_mut().unwrap().remove("waiting_bytes_max");
        t["reads"].as_table_mut().unwrap().remove("clock_drift_percent_max");
        set(t, "raft.max_waiting_bytes", 77 << 20);
        set(t, "reads.clock_drift_max_percent", 7);
    });
    let config = file.load(&[]).unwrap();
    assert_eq!(
        (config.raft.waiting_bytes_max, config.reads.clock_drift_percent_max),
        (77 << 20, 7)
    );
    // As editors on other systems write it.
    let file = File::new();
    let text = std::fs::read_to_string(file.path()).unwrap();
    std::fs::write(file.path(), format!("\u{feff}{}", text.replace('\n', "\r\n"))).unwrap();
    assert_eq!(file.load(&[]), File { folder: file.folder }.load(&[]));
}

#[test]
fn files_that_are_none_say_so() {
    let file = File::new();
    std::fs::write(file.path(), b"\x7fELF\xff\xfe").unwrap();
    assert!(file.refusal(&[]).contains("flotilla.toml is no text"));
    std::fs::write(file.path(), "").unwrap();
    assert!(file.refusal(&[]).contains("missing field `node`"));
    std::fs::write(file.path(), "node = = 3").unwrap();
    assert!(file.refusal(&[]).contains("line 1"));
    std::fs::remove_file(file.path()).unwrap();
    assert!(file.refusal(&[]).contains("flotilla dev"));
}

#[test]
fn a_reserve_above_the_disk_is_refused() {
    let file = File::edited(|t| set(t, "storage.reserve_bytes", 1_i64 << 50));
    let config = file.load(&[]).unwrap();
    let said = fits_the_disk(&config).unwrap_err().to_string();
    assert!(
        said.contains("storage.reserve_bytes is 1125899906842624")
            && said.contains("a tenth of the disk"),
        "{said}"
    );
    fits_the_disk(&File::new().load(&[]).unwrap()).unwrap();
}

#[test]
fn every_key_is_listed_with_its_default() {
    let keys = Config::keys();
    for key in [
        "node",
        "raft.pre_vote",
        "raft.inflight_bytes_max",
        "reads.default_consistency",
        "limits.value_bytes_max",
    ] {
        assert!(keys.iter().any(|(k, _)| k == key), "{key} is not among {keys:?}");
    }
}
