//! One damaged node, two sound ones under load, and what comes of it.
//!
//! [`Harness::try_damage`] takes node 3 down (SIGKILL, so that its log holds something, or
//! SIGTERM), keeps a copy of its folder, damages a file, starts it, and watches. What must not come
//! of it panics here. Afterwards the node is made well: one that never took part gets its folder
//! back from the copy; one that noticed while it ran gets the file back. One that took part with a
//! memory that was wrong can't be helped by any copy, because the others have heard it promise
//! things since: its cluster is given up.

use super::damage::{Damage, Kind};
use flotilla_kit::disk::{copy, restore};
use flotilla_kit::{Fleet, Registers, Rng, until};
use std::fmt;
use std::fs::{self, Permissions};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The node whose files are damaged.
const DAMAGED: u64 = 3;
/// How long a node may be neither ready nor gone before it is asked what it thinks that it is
/// doing.
const UNDECIDED: Duration = Duration::from_secs(8);
/// What a refusal may advise: one of these stands in it.
const ADVICE: &[&str] = &[
    "restore",
    "replace",
    "make one with",
    "made together",
    "made by",
    "start it with",
    "give this node",
    "configuration: ",
];

/// What a damaged node did.
pub(crate) enum Reaction {
    /// It was ready, caught up, and is equal by hash.
    Right,
    /// It did not start, twice, and said why.
    Refused(String),
    /// It ran, noticed, ended, and said why.
    Ended(String),
    /// It ran, and quarantined what it had forgotten.
    Quarantined(String),
    /// It ran, and the others did not let it take part.
    KeptOut(String),
    /// It runs as a damaged configuration says.
    Elsewhere,
}

impl Reaction {
    /// Its name, for counting.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Refused(_) => "refused",
            Self::Ended(_) => "ended",
            Self::Quarantined(_) => "quarantined",
            Self::KeptOut(_) => "kept out",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl fmt::Display for Reaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => write!(f, "started, caught up, equal by hash"),
            Self::Refused(why) => write!(f, "refused to start: {why}"),
            Self::Ended(why) => write!(f, "ended when it noticed: {why}"),
            Self::Quarantined(why) => write!(f, "quarantined the shard: {why}"),
            Self::KeptOut(why) => write!(f, "was kept out by the others: {why}"),
            Self::Elsewhere => write!(f, "runs as the configuration says now"),
        }
    }
}

/// Three nodes, one of them to be damaged.
pub(crate) struct Harness {
    /// The nodes.
    pub(crate) fleet: Fleet,
    /// What was acknowledged.
    pub(crate) registers: Arc<Registers>,
    shards: Vec<u64>,
    rng: Rng,
}

impl Harness {
    /// A new cluster; every node was started twice, so that there are tables as well as logs.
    pub(crate) fn new(seed: u64) -> Self {
        let mut fleet = Fleet::for_crashes(4);
        fleet.start_all(&fleet.all());
        let (registers, mut rng) = (Registers::journaled(&fleet, 40, 4), Rng::new(seed));
        let shards = fleet.last_indexes(1).into_keys().collect::<Vec<u64>>();
        registers.fill(&fleet.client, &[1, 2, 3], &shards, 128 << 10, &mut rng);
        fleet.stop(DAMAGED);
        fleet.start(DAMAGED);
        Self { fleet, registers: Arc::new(registers), shards, rng }
    }

    /// Damages a file while the node is down, starts it, and sees what it does: the file's name,
    /// its reaction, and whether the node is well again.
    pub(crate) fn try_damage(&mut self, kind: Kind, damage: Damage) -> (String, Reaction, bool) {
        // Something new since the last case, which stands in the log alone.
        std::thread::sleep(Duration::from_millis(150));
        if kind == Kind::Manifest {
            // It is only written when there are tables to be noted.
            let client = self.fleet.client.clone();
            self.registers.fill(&client, &[1, 2], &self.shards, 768 << 10, &mut self.rng);
        }
        if kind == Kind::Wal || self.rng.below(2) == 0 {
            self.fleet.kill(&[DAMAGED]);
        } else {
            self.fleet.stop(DAMAGED);
        }
        let (home, kept) = (self.fleet.home(DAMAGED), self.fleet.scratch().join("n3"));
        let files = kind.files(&home);
        let file = if kind == Kind::Table && files.len() > 1 {
            self.rng.below(files.len() as u64) as usize
        } else {
            files.len() - 1
        };
        let file = files[file].clone();
        if !file.exists() {
            self.recover();
            return (format!("{kind:?}"), Reaction::Right, true);
        }
        let _ = fs::remove_dir_all(&kept);
        copy(&home, &kept).unwrap();
        let sound = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().permissions());
        damage.apply(&file, &mut self.rng);
        let before = self.registers.acknowledged();
        self.fleet.spawn(DAMAGED);
        let reaction = self.watch(kind);
        let name =
            format!("{kind:?} `{}`", file.file_name().unwrap().to_string_lossy()).to_lowercase();
        let is_well = self.heal(kind, &reaction, &file, &sound, &kept);
        assert!(
            self.registers.acknowledged() > before,
            "{name}, {damage}: the other two did not go on"
        );
        let (client, nodes): (_, &[u64]) =
            (self.fleet.client.clone(), if is_well { &[1, 2, 3] } else { &[1, 2] });
        self.registers.check_some(&client, nodes, &mut self.rng, 15);
        (name, reaction, is_well)
    }

    /// What the node does, from its start until that is clear.
    fn watch(&mut self, kind: Kind) -> Reaction {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.fleet.ended(DAMAGED) {
                return self.judge_end(status);
            }
            let said = self.fleet.said_in_last_life(DAMAGED);
            let word = |what: &str| {
                said.lines()
                    .find(|line| line.contains(what))
                    .map(|line| from_message(line).to_owned())
            };
            if let Some(line) = word("shard quarantined") {
                return Reaction::Quarantined(line);
            }
            if self.fleet.is_ready(DAMAGED) {
                return self.check_ready();
            }
            if begun.elapsed() > UNDECIDED {
                if let Some(line) = word("comes with another data directory")
                    .or_else(|| word("put back to an old state"))
                {
                    return Reaction::KeptOut(line);
                }
                assert_eq!(
                    kind,
                    Kind::Config,
                    "neither ready nor gone, and no word of why: {said}"
                );
                return Reaction::Elsewhere;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The node ended by itself: whether it said why, in one line, without a panic; and where it
    /// did not start, whether it does not the second time either.
    fn judge_end(&mut self, status: ExitStatus) -> Reaction {
        let complaint = |harness: &Self| {
            let said = harness.fleet.said_in_last_life(DAMAGED);
            assert!(!said.contains("panicked"), "{said}");
            let lines: Vec<&str> = said
                .lines()
                .filter(|line| {
                    line.starts_with("flotilla: ")
                        || line.contains("storage failed, the process ends")
                })
                .collect();
            assert_eq!(lines.len(), 1, "one clear line is wanted: {said}");
            from_message(lines[0]).to_owned()
        };
        let line = complaint(self);
        if status.signal() == Some(6) {
            return Reaction::Ended(line);
        }
        assert!(matches!(status.code(), Some(1 | 2)), "ended with {status}: {line}");
        assert!(
            ADVICE.iter().any(|advice| line.contains(advice)),
            "it does not say what to do: {line}"
        );
        // As whoever supervises it would. What was refused once must not be taken the next time.
        self.fleet.spawn(DAMAGED);
        let again = self.fleet.wait_end(DAMAGED, UNDECIDED);
        let again = again.unwrap_or_else(|| {
            panic!(
                "refused ({line}), and then it starts: {}",
                self.fleet.said_in_last_life(DAMAGED)
            )
        });
        assert_eq!(
            again.code(),
            status.code(),
            "refused ({line}), and then something else: {again}, {}",
            complaint(self)
        );
        drop(complaint(self));
        Reaction::Refused(line)
    }

    /// The node says that it is ready: it must be equal to the others, and show nothing that is
    /// wrong; unless it notices on the way.
    fn check_ready(&mut self) -> Reaction {
        let (client, registers) = (self.fleet.client.clone(), self.registers.clone());
        let is_equal = registers.at_rest(|| self.wait_equal_or_end());
        // Its own replicas; then whoever leads, asked through it.
        if is_equal && registers.check_stale(&client, DAMAGED).is_some() {
            registers.at_rest(|| registers.check_all(&client, DAMAGED));
        }
        let said = self.fleet.said_in_last_life(DAMAGED);
        if let Some(line) = said.lines().find(|line| line.contains("shard quarantined")) {
            return Reaction::Quarantined(from_message(line).to_owned());
        }
        match self.fleet.ended(DAMAGED) {
            None => Reaction::Right,
            Some(status) => self.judge_end(status),
        }
    }

    /// Waits until all replicas are equal by hash; `false` where the node ended meanwhile, or
    /// quarantined a shard.
    fn wait_equal_or_end(&mut self) -> bool {
        self.fleet.placement().into_iter().all(|(shard, nodes)| {
            until(
                &format!("all replicas of shard {shard} are equal"),
                Duration::from_secs(30),
                || {
                    let has_ended = !self.fleet.is_running(DAMAGED);
                    if has_ended
                        || self.fleet.said_in_last_life(DAMAGED).contains("shard quarantined")
                    {
                        return Some(false);
                    }
                    self.fleet.is_equal(shard, &nodes).then_some(true)
                },
            )
        })
    }

    /// Makes the node well again, where that is possible, and checks that it is.
    fn heal(
        &mut self,
        kind: Kind,
        reaction: &Reaction,
        file: &Path,
        sound: &(Vec<u8>, Permissions),
        kept: &Path,
    ) -> bool {
        let home = self.fleet.home(DAMAGED);
        // A key that others can read is refused.
        let put_back = || {
            fs::write(file, &sound.0).unwrap();
            fs::set_permissions(file, sound.1.clone()).unwrap();
        };
        match reaction {
            // It is, if it is also after another start.
            Reaction::Right => self.fleet.kill(&[DAMAGED]),
            Reaction::Refused(_) if kind.is_data() => {
                restore(&kept.join("data"), &home.join("data"))
            }
            Reaction::Refused(_) => put_back(),
            Reaction::Elsewhere => {
                self.fleet.kill(&[DAMAGED]);
                put_back();
            }
            Reaction::KeptOut(_) => {
                self.fleet.kill(&[DAMAGED]);
                restore(&kept.join("data"), &home.join("data"));
                if !kind.is_data() {
                    put_back();
                }
            }
            // A table never changes; it may have been read while it was broken, but nothing was
            // made of that.
            Reaction::Ended(_) if kind == Kind::Table => put_back(),
            Reaction::Ended(_) => return false,
            Reaction::Quarantined(_) => {
                self.fleet.kill(&[DAMAGED]);
                return false;
            }
        }
        self.recover();
        true
    }

    fn recover(&mut self) {
        self.fleet.start(DAMAGED);
        self.registers.clone().at_rest(|| self.fleet.wait_equal(Duration::from_secs(30)));
    }
}

/// A logged line without the time in front and the like.
fn from_message(line: &str) -> &str {
    let start = ["storage failed", "shard quarantined", "flotilla: ", "can't connect"]
        .iter()
        .find_map(|what| line.find(what));
    &line[start.unwrap_or(0)..]
}
