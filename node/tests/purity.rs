//! The core is pure: without the shell, nothing that has threads, sockets or a disk is in the
//! dependency tree.

use std::process::Command;

#[test]
fn the_core_depends_on_no_runtime_no_network_and_no_disk() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            "flotilla-node",
            "--no-default-features",
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(
        names.contains(&"raft") && names.contains(&"flotilla-storage"),
        "this is not the tree that was meant:\n{tree}"
    );
    for banned in [
        "tokio",
        "hyper",
        "rocksdb",
        "librocksdb-sys",
        "quinn",
        "quinn-proto",
        "rustls",
        "crossbeam-channel",
        "rustix",
    ] {
        assert!(!names.contains(&banned), "{banned} is in the core's tree:\n{tree}");
    }
}
