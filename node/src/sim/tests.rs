//! A few hundred seeds, each twice; and that they reach what they are meant to reach.

use super::*;
use std::collections::BTreeMap;

/// Runs seeds and sums up what they met. Each is run twice, and must be the same run.
fn seeds(range: std::ops::Range<u64>) -> (u64, BTreeMap<String, u64>) {
    let mut met = BTreeMap::new();
    let mut answered = 0;
    for seed in range {
        let report = run(seed, &Options::default());
        if let Some(why) = &report.violation {
            panic!(
                "seed {seed}: {why}\nrepeat it with\n  {}",
                repeat_command(seed, &Options::default())
            );
        }
        let again = run(seed, &Options::default());
        assert_eq!(report.trace_hash, again.trace_hash, "seed {seed} is not the same run twice");
        assert_eq!(report.steps, again.steps, "seed {seed} is not the same run twice");
        answered += report.answered;
        for (fault, count) in report.faults {
            *met.entry(fault).or_default() += count;
        }
    }
    (answered, met)
}

#[test]
fn seeds_break_no_promise_and_repeat_themselves() {
    let (answered, met) = seeds(0..300);
    println!("{answered} operations answered; {met:?}");
    for fault in plan::Fault::ALL {
        assert!(
            met.get(&format!("{fault:?}")).is_some_and(|n| *n > 10),
            "hardly any {fault:?}: {met:?}"
        );
    }
    for packet in ["LostPacket", "DoubledPacket", "LatePacket"] {
        assert!(met[packet] > 1000, "hardly any {packet}: {met:?}");
    }
    for what in [
        "acknowledged writes",
        "failed conditions",
        "fetched entries",
        "fresh reads",
        "installed snapshots",
        "overruled entries",
        "refused by a full disk",
        "refused by no leader",
        "stale reads",
        "truncated logs",
        "unknown outcomes",
    ] {
        assert!(met.get(what).is_some_and(|n| *n > 100), "hardly any {what}: {met:?}");
    }
    // Snapshots are rare here, and what happens to a few of them is rarer.
    for (what, least) in [("given up snapshots", 1), ("snapshots to a busy node", 10)] {
        assert!(met.get(what).is_some_and(|n| *n >= least), "hardly any {what}: {met:?}");
    }
    assert!(answered > 20_000, "only {answered} operations were answered");
}
