//! Every state in which the folder of `flotilla dev` may be found, and what comes of it. No process
//! is started.

use super::*;
use flotilla_transport::Credentials;
use tempfile::TempDir;

const THREE: Wanted = Wanted { nodes: Some(3), shards: Some(4), http: None };
const NOTHING_SAID: Wanted = Wanted { nodes: None, shards: None, http: None };

/// The files of a cluster of three in the order in which they are made.
const FILES: [&str; 11] = [
    "ca.key",
    "ca.pem",
    "n1/node.key",
    "n1/node.pem",
    "n1/flotilla.toml",
    "n2/node.key",
    "n2/node.pem",
    "n2/flotilla.toml",
    "n3/node.key",
    "n3/node.pem",
    "n3/flotilla.toml",
];

fn made() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    prepare(temp.path(), &THREE).unwrap();
    temp
}

/// A cluster whose nodes have run.
fn with_data() -> TempDir {
    let temp = made();
    for id in 1..=3 {
        std::fs::create_dir(temp.path().join(format!("n{id}/data"))).unwrap();
    }
    temp
}

/// Whether three nodes could start: all configurations fit together, and so do the certificates.
fn whole(folder: &Folder, shards: usize) {
    assert_eq!(folder.members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
    let configs: Vec<Config> = folder
        .members
        .iter()
        .map(|m| Config::load(Some(&m.folder.join("flotilla.toml")), &[]).unwrap())
        .collect();
    for config in &configs {
        assert_eq!(
            (config.cluster, &config.peers, config.bootstrap.shards),
            (configs[0].cluster, &configs[0].peers, shards)
        );
        Credentials::load(&config.tls.ca, &config.tls.cert, &config.tls.key).unwrap();
    }
}

fn refusal(folder: &Path, wanted: &Wanted) -> (String, bool) {
    let error = prepare(folder, wanted).err().expect("it was taken");
    (format!("{error:#}"), error.is::<Usage>())
}

#[test]
fn a_first_start_that_was_cut_short_anywhere_is_taken_up_again() {
    let source = made();
    for (i, last) in FILES.iter().enumerate() {
        for torn in [false, true] {
            let temp = tempfile::tempdir().unwrap();
            for file in &FILES[..=i] {
                let to = temp.path().join(file);
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(source.path().join(file), &to).unwrap();
            }
            // A configuration is written at once, all else may end in the midst.
            if torn && !last.ends_with(".toml") {
                File::options()
                    .write(true)
                    .open(temp.path().join(last))
                    .unwrap()
                    .set_len(20)
                    .unwrap();
            }
            let folder = prepare(temp.path(), &THREE)
                .unwrap_or_else(|error| panic!("{last}, torn {torn}: {error:#}"));
            whole(&folder, 4);
        }
    }
}

#[test]
fn what_is_there_is_started_as_it_is() {
    let temp = with_data();
    let before = std::fs::read_to_string(temp.path().join("n2/flotilla.toml")).unwrap();
    whole(&prepare(temp.path(), &NOTHING_SAID).unwrap(), 4);
    whole(&prepare(temp.path(), &THREE).unwrap(), 4);
    assert_eq!(std::fs::read_to_string(temp.path().join("n2/flotilla.toml")).unwrap(), before);
}

#[test]
fn some_nodes_of_a_cluster_are_not_started_as_if_they_were_all() {
    for gone in ["n1", "n2", "n3", "n2/flotilla.toml", "n2/data"] {
        let temp = with_data();
        std::fs::write(temp.path().join("n2/flotilla.log"), "INFO start: data opened node=2")
            .unwrap();
        let path = temp.path().join(gone);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
            .unwrap();
        let (said, _) = refusal(temp.path(), &NOTHING_SAID);
        let node = &gone[..2];
        assert!(
            said.contains(&format!("{node} "))
                && said.contains(" gone")
                && said.contains("put it back")
                && said.contains("--data"),
            "{gone}: {said}"
        );
    }
    // The first start was cut short behind the first node's data.
    let temp = with_data();
    std::fs::remove_dir(temp.path().join("n2/data")).unwrap();
    whole(&prepare(temp.path(), &NOTHING_SAID).unwrap(), 4);
    let temp = with_data();
    for id in 1..=3 {
        std::fs::remove_file(temp.path().join(format!("n{id}/flotilla.toml"))).unwrap();
    }
    assert!(refusal(temp.path(), &NOTHING_SAID).0.contains("n1/data is there"));
}

#[test]
fn what_is_fixed_when_a_cluster_is_made_is_not_passed_over() {
    let temp = with_data();
    for (wanted, flag) in [
        (Wanted { nodes: Some(5), ..NOTHING_SAID }, "--nodes 5"),
        (Wanted { shards: Some(16), ..NOTHING_SAID }, "--shards 16"),
    ] {
        let (said, usage) = refusal(temp.path(), &wanted);
        assert!(usage && said.contains(flag) && said.contains("--data"), "{said}");
    }
    // As long as no node has started, it is not fixed.
    let temp = made();
    let folder = prepare(temp.path(), &Wanted { shards: Some(16), ..NOTHING_SAID }).unwrap();
    whole(&folder, 16);
}

#[test]
fn other_ports_are_taken_up_by_every_node_and_all_else_stays() {
    let temp = with_data();
    let toml = |id: u64| temp.path().join(format!("n{id}/flotilla.toml"));
    for id in 1..=3 {
        let text =
            std::fs::read_to_string(toml(id)).unwrap().replace("[raft]", "# by \"hand\"\n[raft]");
        std::fs::write(toml(id), text.replace("election_ticks = 12", "election_ticks = 20"))
            .unwrap();
    }
    let before = std::fs::read_to_string(toml(1)).unwrap();
    // One port on, so that new addresses are other nodes' old ones.
    let moved = Wanted { http: Some("127.0.0.1:7002".parse().unwrap()), ..NOTHING_SAID };
    whole(&prepare(temp.path(), &moved).unwrap(), 4);
    // As if it had been cut short before the first node's file.
    std::fs::write(toml(1), before).unwrap();
    let folder = prepare(temp.path(), &moved).unwrap();
    whole(&folder, 4);
    for (member, port) in folder.members.iter().zip(7002..) {
        assert_eq!(
            (member.http.to_string(), member.quic.to_string()),
            (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", port + 100))
        );
        let text = std::fs::read_to_string(toml(member.id)).unwrap();
        assert!(text.contains("# by \"hand\"") && text.contains("election_ticks = 20"), "{text}");
    }
}

#[test]
fn nodes_find_each_other_where_http_listens_everywhere() {
    for (first, quic) in [
        ("0.0.0.0:7001", "127.0.0.1:7101"),
        ("[::]:7001", "[::1]:7101"),
        ("[::1]:7001", "[::1]:7101"),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let folder =
            prepare(temp.path(), &Wanted { http: Some(first.parse().unwrap()), ..NOTHING_SAID })
                .unwrap();
        assert_eq!(
            (folder.members[0].http.to_string(), folder.members[0].quic.to_string()),
            (first.into(), quic.into())
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let (said, usage) = refusal(
        temp.path(),
        &Wanted { http: Some("127.0.0.1:65500".parse().unwrap()), ..NOTHING_SAID },
    );
    assert!(usage && said.contains("above 65535"), "{said}");
}

/// Half of an authority is made anew; a whole one that can't be used is left to whoever put it
/// there.
#[test]
fn an_authority_that_is_whole_is_never_thrown_away() {
    let (temp, other) = (made(), made());
    std::fs::remove_file(temp.path().join("n1/flotilla.toml")).unwrap();
    let path = temp.path().join("ca.key");
    std::fs::copy(other.path().join("ca.key"), &path).unwrap();
    let key = std::fs::read_to_string(&path).unwrap();
    assert!(
        prepare(temp.path(), &THREE).is_err(),
        "a certificate and a key that are no pair were taken"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), key);
}

#[test]
fn a_second_process_is_kept_out() {
    let temp = tempfile::tempdir().unwrap();
    let _first = prepare(temp.path(), &THREE).unwrap();
    let (said, _) = refusal(temp.path(), &THREE);
    assert!(said.contains("another `flotilla dev` works in") && said.contains("--data"), "{said}");
}
