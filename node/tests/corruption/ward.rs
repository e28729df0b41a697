//! One damaged node, two sound ones under load, and what comes of it.
//!
//! [`Ward::treat`] takes node 3 down (SIGKILL, so that its log holds something, or SIGTERM), keeps a copy of its folder, damages a file, starts
//! it, and watches. What must not come of it panics here. Afterwards the node is made well: one that never took part gets its folder back from
//! the copy; one that noticed while it ran gets the file back. One that took part with a memory that was wrong can't be helped by any copy,
//! because the others have heard it promise things since: its cluster is given up.

use super::damage::{Damage, Kind, copy, restore};
use flotilla_kit::crash_fleet::Fleet;
use flotilla_kit::crash_load::Book;
use flotilla_node::dice::Dice;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The node whose files are damaged.
const PATIENT: u64 = 3;
/// How long a node may be neither ready nor gone before it is asked what it thinks that it is doing.
const UNDECIDED: Duration = Duration::from_secs(8);
/// What a refusal may advise: one of these stands in it.
const CURES: &[&str] =
    &["restore", "replace", "make one with", "made together", "made by", "start it with", "give this node", "configuration: "];

/// What a damaged node did.
pub(crate) enum Outcome {
    /// It was ready, caught up, and is equal by hash.
    Right,
    /// It did not start, twice, and said why.
    Refused(String),
    /// It ran, noticed, ended, and said why.
    Ended(String),
    /// It ran, and set aside what it had forgotten.
    SetAside(String),
    /// It ran, and the others did not let it take part.
    KeptOut(String),
    /// It runs as a damaged configuration says.
    Elsewhere,
}

impl Outcome {
    /// Its name, for counting.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Refused(_) => "refused",
            Self::Ended(_) => "ended",
            Self::SetAside(_) => "set aside",
            Self::KeptOut(_) => "kept out",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => write!(f, "started, caught up, equal by hash"),
            Self::Refused(why) => write!(f, "refused to start: {why}"),
            Self::Ended(why) => write!(f, "ended when it noticed: {why}"),
            Self::SetAside(why) => write!(f, "set the shard aside: {why}"),
            Self::KeptOut(why) => write!(f, "was kept out by the others: {why}"),
            Self::Elsewhere => write!(f, "runs as the configuration says now"),
        }
    }
}

/// Three nodes, one of them to be damaged.
pub(crate) struct Ward {
    /// The nodes.
    pub(crate) fleet: Fleet,
    /// What was acknowledged.
    pub(crate) book: Arc<Book>,
    shards: Vec<u64>,
    dice: Dice,
}

impl Ward {
    /// A new cluster; every node was started twice, so that there are tables as well as logs.
    pub(crate) fn new(seed: u64) -> Self {
        let mut fleet = Fleet::new(4);
        let (book, mut dice) = (Book::new(&fleet.cluster, &fleet.journal(), 40, 4), Dice::new(seed));
        let (client, shards) = (fleet.client().clone(), fleet.last_indexes(1).into_keys().collect::<Vec<u64>>());
        book.fill(&client, &[1, 2, 3], &shards, 128 << 10, &mut dice);
        fleet.stop(PATIENT);
        fleet.start(PATIENT);
        fleet.wait_ready(&[PATIENT]);
        Self { fleet, book: Arc::new(book), shards, dice }
    }

    /// Damages a file while the node is down, starts it, and sees what it does: the file's name, the outcome, and whether the node is well
    /// again.
    pub(crate) fn treat(&mut self, kind: Kind, damage: Damage) -> (String, Outcome, bool) {
        // Something new since the last case, which stands in the log alone.
        std::thread::sleep(Duration::from_millis(150));
        if kind == Kind::Manifest {
            // It is only written when there are tables to be noted.
            let client = self.fleet.client().clone();
            self.book.fill(&client, &[1, 2], &self.shards, 768 << 10, &mut self.dice);
        }
        if kind == Kind::Wal || self.dice.below(2) == 0 {
            self.fleet.kill(&[PATIENT]);
        } else {
            self.fleet.stop(PATIENT);
        }
        let (home, kept) = (self.fleet.cluster.home(PATIENT), self.fleet.kept().join("n3"));
        let files = kind.files(&home);
        let file =
            if kind == Kind::Table && files.len() > 1 { self.dice.below(files.len() as u64) as usize } else { files.len() - 1 };
        let file = files[file].clone();
        if !file.exists() {
            self.recover();
            return (format!("{kind:?}"), Outcome::Right, true);
        }
        let _ = fs::remove_dir_all(&kept);
        copy(&home, &kept);
        let sound = fs::read(&file).unwrap();
        damage.apply(&file, &mut self.dice);
        let before = self.book.acknowledged();
        self.fleet.start(PATIENT);
        let outcome = self.watch(kind);
        let name = format!("{kind:?} `{}`", file.file_name().unwrap().to_string_lossy()).to_lowercase();
        let is_well = self.heal(kind, &outcome, &file, &sound, &kept);
        assert!(self.book.acknowledged() > before, "{name}, {damage}: the other two did not go on");
        let (client, nodes): (_, &[u64]) = (self.fleet.client().clone(), if is_well { &[1, 2, 3] } else { &[1, 2] });
        self.book.check_some(&client, nodes, &mut self.dice, 15);
        (name, outcome, is_well)
    }

    /// What the node does, from its start until that is clear.
    fn watch(&mut self, kind: Kind) -> Outcome {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.fleet.ended(PATIENT) {
                return self.judge_end(status.code(), status.signal());
            }
            let said = self.fleet.said_in_last_life(PATIENT);
            let word = |what: &str| said.lines().find(|line| line.contains(what)).map(|line| from_message(line).to_owned());
            if let Some(line) = word("shard set aside") {
                return Outcome::SetAside(line);
            }
            if self.fleet.is_ready(PATIENT) {
                return self.check_ready();
            }
            if begun.elapsed() > UNDECIDED {
                if let Some(line) = word("comes with another data directory").or_else(|| word("put back to an old state")) {
                    return Outcome::KeptOut(line);
                }
                assert_eq!(kind, Kind::Config, "neither ready nor gone, and no word of why: {said}");
                return Outcome::Elsewhere;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The node ended by itself: whether it said why, in one line, without a panic; and where it did not start, whether it does not the
    /// second time either.
    fn judge_end(&mut self, code: Option<i32>, signal: Option<i32>) -> Outcome {
        let complaint = |ward: &Self| {
            let said = ward.fleet.said_in_last_life(PATIENT);
            assert!(!said.contains("panicked"), "{said}");
            let lines: Vec<&str> =
                said.lines().filter(|line| line.starts_with("flotilla: ") || line.contains("the process ends")).collect();
            assert_eq!(lines.len(), 1, "one clear line is wanted: {said}");
            from_message(lines[0]).to_owned()
        };
        let line = complaint(self);
        if signal == Some(6) {
            return Outcome::Ended(line);
        }
        assert!(matches!(code, Some(1 | 2)), "ended with code {code:?}, signal {signal:?}: {line}");
        assert!(CURES.iter().any(|cure| line.contains(cure)), "it does not say what to do: {line}");
        // As whoever supervises it would. What was refused once must not be taken the next time.
        self.fleet.start(PATIENT);
        let again = self.fleet.wait_end(PATIENT, UNDECIDED);
        let again =
            again.unwrap_or_else(|| panic!("refused ({line}), and then it starts: {}", self.fleet.said_in_last_life(PATIENT)));
        assert_eq!(again.code(), code, "refused ({line}), and then something else: {again}, {}", complaint(self));
        drop(complaint(self));
        Outcome::Refused(line)
    }

    /// The node says that it is ready: it must be equal to the others, and show nothing that is wrong; unless it notices on the way.
    fn check_ready(&mut self) -> Outcome {
        let (client, book) = (self.fleet.client().clone(), self.book.clone());
        let is_equal = book.at_rest(|| self.fleet.wait_equal_or_end(PATIENT, Duration::from_secs(30)));
        // Its own replicas; then whoever leads, asked through it.
        if is_equal && book.check_stale(&client, PATIENT).is_some() {
            book.at_rest(|| book.check_all(&client, PATIENT));
        }
        let said = self.fleet.said_in_last_life(PATIENT);
        if let Some(line) = said.lines().find(|line| line.contains("shard set aside")) {
            return Outcome::SetAside(from_message(line).to_owned());
        }
        match self.fleet.ended(PATIENT) {
            None => Outcome::Right,
            Some(status) => self.judge_end(status.code(), status.signal()),
        }
    }

    /// Makes the node well again, where that is possible, and checks that it is.
    fn heal(&mut self, kind: Kind, outcome: &Outcome, file: &Path, sound: &[u8], kept: &Path) -> bool {
        let home = self.fleet.cluster.home(PATIENT);
        match outcome {
            // It is, if it is also after another start.
            Outcome::Right => self.fleet.kill(&[PATIENT]),
            Outcome::Refused(_) if kind.is_data() => restore(&kept.join("data"), &home.join("data")),
            Outcome::Refused(_) => fs::write(file, sound).unwrap(),
            Outcome::Elsewhere => {
                self.fleet.kill(&[PATIENT]);
                fs::write(file, sound).unwrap();
            }
            Outcome::KeptOut(_) => {
                self.fleet.kill(&[PATIENT]);
                restore(&kept.join("data"), &home.join("data"));
                if !kind.is_data() {
                    fs::write(file, sound).unwrap();
                }
            }
            // A table never changes; it may have been read while it was broken, but nothing was made of that.
            Outcome::Ended(_) if kind == Kind::Table => fs::write(file, sound).unwrap(),
            Outcome::Ended(_) => return false,
            Outcome::SetAside(_) => {
                self.fleet.kill(&[PATIENT]);
                return false;
            }
        }
        self.recover();
        true
    }

    fn recover(&mut self) {
        self.fleet.start(PATIENT);
        self.fleet.wait_ready(&[PATIENT]);
        self.book.clone().at_rest(|| self.fleet.cluster.wait_equal(Duration::from_secs(30)));
    }
}

/// A logged line without the time in front and the like.
fn from_message(line: &str) -> &str {
    let start = ["storage failed", "shard set aside", "flotilla: ", "can't connect"].iter().find_map(|what| line.find(what));
    &line[start.unwrap_or(0)..]
}
