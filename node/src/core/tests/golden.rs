//! One test per golden script, so that each can be run by its name.

use super::script::golden;

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                golden(stringify!($name));
            }
        )*

        /// A script that nobody runs tests nothing.
        #[test]
        fn every_script_has_a_test() {
            let mut found: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"))
                .unwrap()
                .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".txt")?.to_owned()))
                .collect();
            found.sort();
            let mut known = vec![$(stringify!($name)),*];
            known.sort_unstable();
            assert_eq!(found, known);
        }
    };
}

scripts! {
    balance,
    conflict,
    disk_full,
    drain,
    election_first_voter_down,
    elections,
    fetch,
    gathering,
    lease,
    quarantine,
    read_index,
    read_new_leader,
    read_stale,
    replication,
    restart,
    snapshot,
    transfer,
    truncation,
    unknown,
}
