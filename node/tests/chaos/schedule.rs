//! The faults of a chaos run, drawn from a seed.
//!
//! A [`Round`] is a pause in which all is well, one or two faults at a time, and how long they
//! last. What is drawn depends on the seed and the number of nodes alone, never on what the cluster
//! does, so the same seed draws the same rounds again. Two faults share a round only where they can
//! be told apart: never two about the same process, never two rules of the same sort, and disks
//! always alone.

use flotilla_kit::Rng;
use std::fmt;
use std::ops::RangeInclusive;

/// A number whose order of magnitude is as even as the number itself: short times are as worth
/// trying as long ones.
fn skewed(rng: &mut Rng, range: RangeInclusive<u64>) -> u64 {
    let (low, high) = ((*range.start() as f64).ln(), (*range.end() as f64).ln());
    let share = (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
    ((low + share * (high - low)).exp() as u64).clamp(*range.start(), *range.end())
}

/// Some of the nodes, in order.
fn some(rng: &mut Rng, nodes: u64, count: u64) -> Vec<u64> {
    let mut all: Vec<u64> = (1..=nodes).collect();
    while all.len() as u64 > count {
        all.remove(rng.next() as usize % all.len());
    }
    all
}

/// Every kind of fault, in the order of tables.
pub(crate) const KINDS: [&str; 16] = [
    "kill -9 of one node",
    "kill -9 of several nodes",
    "kill -9 of all nodes",
    "kill -9 again during recovery",
    "SIGSTOP",
    "restart under load",
    "node cut off",
    "one-way cut",
    "ring partition",
    "loss",
    "delay",
    "duplication",
    "reordering",
    "disk below its reserve",
    "disk full",
    "disk wiped",
];

/// Which directed links a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// All of them.
    All,
    /// Those from and to one node.
    Of(u64),
    /// One direction of one.
    One(u64, u64),
}

impl Links {
    /// The pairs that are meant: from, to.
    pub(crate) fn pairs(self, nodes: u64) -> Vec<(u64, u64)> {
        let all = (1..=nodes)
            .flat_map(|from| (1..=nodes).map(move |to| (from, to)))
            .filter(|(from, to)| from != to);
        all.filter(|(from, to)| match self {
            Self::All => true,
            Self::Of(node) => *from == node || *to == node,
            Self::One(a, b) => (*from, *to) == (a, b),
        })
        .collect()
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all links"),
            Self::Of(node) => write!(f, "all links of {node}"),
            Self::One(from, to) => write!(f, "{from}→{to}"),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// `kill -9` of these; where `again_millis` is there, once more so long after they were started
    /// again.
    Kill {
        /// The victims.
        nodes: Vec<u64>,
        /// The moment of the second time.
        again_millis: Option<u64>,
    },
    /// SIGSTOP of a node.
    Stop {
        /// The sleeper.
        node: u64,
    },
    /// SIGTERM, and a start at once.
    Restart {
        /// The node.
        node: u64,
    },
    /// A node without any link.
    Cut {
        /// The node.
        node: u64,
    },
    /// What `from` sends does not reach `to`.
    OneWay {
        /// Who is not heard.
        from: u64,
        /// By whom.
        to: u64,
    },
    /// Each node sees its neighbours alone; of three, the first and the last don't see each other.
    Ring,
    /// So many of a thousand datagrams are lost.
    Loss {
        /// Where.
        links: Links,
        /// How many.
        permille: u64,
    },
    /// Every datagram is late.
    Delay {
        /// Where.
        links: Links,
        /// By how much.
        millis: u64,
    },
    /// So many of a thousand datagrams come twice.
    Duplicate {
        /// Where.
        links: Links,
        /// How many.
        permille: u64,
    },
    /// So many of a thousand datagrams are held back, and others overtake them.
    Reorder {
        /// Where.
        links: Links,
        /// How many.
        permille: u64,
    },
    /// Less is free on the small disk than its reserve.
    DiskLow,
    /// Nothing is free on the small disk.
    DiskFull,
    /// A node comes back empty under its old id; later its data are put back.
    Wipe {
        /// The node.
        node: u64,
    },
}

impl Fault {
    /// Its kind, which is counted: one of [`KINDS`].
    pub(crate) fn kind(&self, nodes: u64) -> &'static str {
        match self {
            Self::Kill { again_millis: Some(_), .. } => "kill -9 again during recovery",
            Self::Kill { nodes: victims, .. } if victims.len() as u64 == nodes => {
                "kill -9 of all nodes"
            }
            Self::Kill { nodes: victims, .. } if victims.len() > 1 => "kill -9 of several nodes",
            Self::Kill { .. } => "kill -9 of one node",
            Self::Stop { .. } => "SIGSTOP",
            Self::Restart { .. } => "restart under load",
            Self::Cut { .. } => "node cut off",
            Self::OneWay { .. } => "one-way cut",
            Self::Ring => "ring partition",
            Self::Loss { .. } => "loss",
            Self::Delay { .. } => "delay",
            Self::Duplicate { .. } => "duplication",
            Self::Reorder { .. } => "reordering",
            Self::DiskLow => "disk below its reserve",
            Self::DiskFull => "disk full",
            Self::Wipe { .. } => "disk wiped",
        }
    }

    /// Whether it takes a small disk of its own.
    pub(crate) fn needs_disk(&self) -> bool {
        matches!(self, Self::DiskLow | Self::DiskFull)
    }

    /// The pairs that are cut: from, to. Loss is not a cut.
    pub(crate) fn cuts(&self, nodes: u64) -> Vec<(u64, u64)> {
        match self {
            Self::Cut { node } => Links::Of(*node).pairs(nodes),
            Self::OneWay { from, to } => vec![(*from, *to)],
            Self::Ring => {
                let apart = |a: u64, b: u64| {
                    let distance = a.abs_diff(b);
                    // In a ring of three everybody is everybody's neighbour: it is opened.
                    if nodes > 3 { distance != 1 && distance != nodes - 1 } else { distance != 1 }
                };
                Links::All.pairs(nodes).into_iter().filter(|(a, b)| apart(*a, *b)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The processes that it is about.
    fn processes(&self) -> Vec<u64> {
        match self {
            Self::Kill { nodes, .. } => nodes.clone(),
            Self::Stop { node } | Self::Restart { node } => vec![*node],
            _ => Vec::new(),
        }
    }

    fn is_alone(&self) -> bool {
        matches!(self, Self::DiskLow | Self::DiskFull | Self::Wipe { .. })
    }

    /// Whether both can be there at once and be told apart.
    fn goes_with(&self, other: &Self) -> bool {
        let (mine, others) = (self.processes(), other.processes());
        let same_process = mine.iter().any(|node| others.contains(node));
        let same_sort = std::mem::discriminant(self) == std::mem::discriminant(other);
        !self.is_alone() && !other.is_alone() && !same_process && !same_sort
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |permille: &u64| format!("{}.{} %", permille / 10, permille % 10);
        match self {
            Self::Kill { nodes, again_millis: None } => write!(f, "kill -9 of {nodes:?}"),
            Self::Kill { nodes, again_millis: Some(millis) } => {
                write!(f, "kill -9 of {nodes:?}, again {millis} ms after the start")
            }
            Self::Stop { node } => write!(f, "SIGSTOP of {node}"),
            Self::Restart { node } => write!(f, "restart of {node}"),
            Self::Cut { node } => write!(f, "{node} cut off"),
            Self::OneWay { from, to } => write!(f, "cut {from}→{to}"),
            Self::Ring => f.write_str("ring partition"),
            Self::Loss { links, permille } => write!(f, "loss of {} on {links}", share(permille)),
            Self::Delay { links, millis } => write!(f, "delay of {millis} ms on {links}"),
            Self::Duplicate { links, permille } => {
                write!(f, "duplication of {} on {links}", share(permille))
            }
            Self::Reorder { links, permille } => {
                write!(f, "reordering of {} on {links}", share(permille))
            }
            Self::DiskLow => f.write_str("disk below its reserve"),
            Self::DiskFull => f.write_str("disk full"),
            Self::Wipe { node } => write!(f, "disk of {node} wiped"),
        }
    }
}

/// A pause, and what comes after it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    /// How long all is well before.
    pub(crate) pause_millis: u64,
    /// What happens, all at once.
    pub(crate) faults: Vec<Fault>,
    /// How long it lasts.
    pub(crate) hold_millis: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        write!(f, "{} for {} ms", faults.join(", and "), self.hold_millis)
    }
}

/// Draws rounds without end.
pub(crate) struct Schedule {
    rng: Rng,
    nodes: u64,
}

impl Iterator for Schedule {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let rng = &mut self.rng;
        let pause_millis = skewed(rng, 300..=6_000);
        let mut faults = vec![draw(rng, self.nodes)];
        let second = draw(rng, self.nodes);
        if rng.permille(500) && second.goes_with(&faults[0]) {
            faults.push(second);
        }
        Some(Round { pause_millis, faults, hold_millis: skewed(rng, 100..=30_000) })
    }
}

impl Schedule {
    /// The rounds of this seed for so many nodes.
    pub(crate) fn new(seed: u64, nodes: u64) -> Self {
        Self { rng: Rng::new(seed), nodes }
    }
}

fn draw(rng: &mut Rng, nodes: u64) -> Fault {
    let node = rng.within(1..=nodes);
    let other = (node + rng.within(1..=nodes - 1) - 1) % nodes + 1;
    let links = match rng.within(1..=4) {
        1 => Links::One(node, other),
        2 => Links::Of(node),
        _ => Links::All,
    };
    // The last two cost the most time.
    match rng.within(1..=30) {
        1..=3 => Fault::Kill { nodes: vec![node], again_millis: None },
        4..=5 => Fault::Kill {
            nodes: {
                let count = rng.within(2..=nodes - 1);
                some(rng, nodes, count)
            },
            again_millis: None,
        },
        6 => Fault::Kill { nodes: (1..=nodes).collect(), again_millis: None },
        7..=8 => Fault::Kill { nodes: vec![node], again_millis: Some(skewed(rng, 5..=1_500)) },
        9..=12 => Fault::Stop { node },
        13..=14 => Fault::Restart { node },
        15..=16 => Fault::Cut { node },
        17..=18 => Fault::OneWay { from: node, to: other },
        19..=20 => Fault::Ring,
        21..=22 => Fault::Loss { links, permille: rng.within(10..=300) },
        23..=24 => Fault::Delay { links, millis: skewed(rng, 2..=300) },
        25 => Fault::Duplicate { links, permille: rng.within(50..=500) },
        26..=27 => Fault::Reorder { links, permille: rng.within(10..=300) },
        28 => Fault::DiskLow,
        29 => Fault::DiskFull,
        _ => Fault::Wipe { node },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_same_seed_draws_the_same_rounds() {
        let rounds = |seed| Schedule::new(seed, 5).take(200).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn every_kind_is_drawn_and_rounds_are_what_they_may_be() {
        for nodes in [3, 5] {
            let mut kinds = BTreeSet::new();
            let mut doubles = 0;
            for round in Schedule::new(1, nodes).take(1000) {
                kinds.extend(round.faults.iter().map(|fault| fault.kind(nodes)));
                assert!(
                    (100..=30_000).contains(&round.hold_millis)
                        && (300..=6_000).contains(&round.pause_millis),
                    "{round}"
                );
                for fault in &round.faults {
                    assert!(
                        fault.processes().iter().all(|node| (1..=nodes).contains(node)),
                        "{round}"
                    );
                }
                if let [one, two] = &round.faults[..] {
                    doubles += 1;
                    assert!(one.goes_with(two) && two.goes_with(one), "{round}");
                }
            }
            assert_eq!(kinds.len(), KINDS.len(), "{kinds:?}");
            assert!(doubles > 200, "only {doubles} of 1000 rounds have two faults");
        }
    }

    #[test]
    fn a_ring_leaves_neighbours_alone() {
        assert_eq!(Fault::Ring.cuts(3), [(1, 3), (3, 1)]);
        let cuts = Fault::Ring.cuts(5);
        for node in 1..=5 {
            let seen: Vec<u64> =
                (1..=5).filter(|other| *other != node && !cuts.contains(&(node, *other))).collect();
            assert_eq!(seen.len(), 2, "node {node} sees {seen:?}");
            assert!(
                (1..=5).all(|other| cuts.contains(&(node, other)) == cuts.contains(&(other, node)))
            );
        }
    }
}
