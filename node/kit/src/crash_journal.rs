//! The journal of a crash test: what was tried, what was acknowledged and what was seen, in a file that no crash of the cluster can
//! touch; and the judge who reads it.
//!
//! One line per fact, appended in one system call before anybody acts on it, so that the file alone can be judged, also by the next
//! process:
//!
//! ```text
//! key  <key> <shard> <path>              a key, by its number from here on
//! try  <key> <attempt> put|delete        about to be sent
//! ack  <key> <attempt> <revision>        acknowledged; of a deletion the revision is not told, and stands as 0
//! not  <key> <attempt> <status>          certainly not applied: the HTTP status, or 0 where no connection was made
//! saw  <key> <node> <revision> <attempt> a read through that node showed the value of that attempt
//! gone <key> <node>                      a read through that node showed nothing
//! ```
//!
//! An attempt without `ack` or `not` is open for ever: it may take effect at any time, once, or never. Attempts at one key follow one
//! another; reads of a key never run while an attempt at it is being made. So [`Judge::take`] can say of each line whether it may be:
//!
//! - The revisions of a key rise with every write of it. What is seen at the revision that is known holds the value that is known; what
//!   is seen above it is an open attempt, which is settled by that; what is seen below it means that something was lost.
//! - A key that is not there was deleted, by an acknowledged attempt or an open one, or never written.
//! - Revisions are given out by shard, each once: two writes with the same one mean that the shard forgot the first, even where
//!   nobody looked in time.
//! - A condition fails only where an open attempt may have changed the key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// What an attempt wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The key is to hold the attempt's value.
    Put,
    /// The key is to be gone.
    Delete,
}

/// What a read showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Nothing,
    /// A value.
    Value {
        /// Its revision.
        revision: u64,
        /// The attempt that it is of.
        attempt: u64,
    },
}

/// The file, and who judges it while it grows.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new one.
    pub fn new(path: &Path) -> Self {
        let file = File::options().create_new(true).append(true).open(path).unwrap();
        Self { path: path.to_owned(), file }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line. It is with the kernel when this returns, and survives this process.
    pub fn say(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Numbers of a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts.
    pub tried: u64,
    /// Attempts that were acknowledged.
    pub acknowledged: u64,
    /// Attempts that certainly had no effect.
    pub refused: u64,
    /// Open attempts that were seen to have taken effect.
    pub settled: u64,
    /// Reads.
    pub looks: u64,
}

impl Totals {
    /// Attempts of which nobody knows.
    pub fn unknown(&self) -> u64 {
        self.tried - self.acknowledged - self.refused - self.settled
    }
}

/// What a key is known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Present { revision: u64, attempt: u64 },
}

/// What the journal says of one key.
struct Key {
    shard: u64,
    path: String,
    state: State,
    /// The highest revision that is known.
    floor: u64,
    /// Attempts whose outcome is open.
    open: BTreeMap<u64, Wish>,
    /// The attempt of each revision that is known.
    written: BTreeMap<u64, u64>,
}

/// Reads a journal from its beginning, and says whether it may be so.
#[derive(Default)]
pub struct Judge {
    keys: Vec<Key>,
    /// The revisions that each shard gave out: key and attempt.
    given: BTreeMap<(u64, u64), (usize, u64)>,
    read_bytes: u64,
    /// Numbers so far.
    pub totals: Totals,
}

impl Judge {
    /// Reads on where it stopped, to the end of the file. An error says what can't be, and where.
    pub fn read_on(&mut self, path: &Path) -> Result<(), String> {
        let mut file = File::open(path).map_err(|error| error.to_string())?;
        file.seek(SeekFrom::Start(self.read_bytes)).map_err(|error| error.to_string())?;
        let (mut reader, mut line) = (BufReader::with_capacity(1 << 20, file), String::new());
        loop {
            line.clear();
            let bytes = reader.read_line(&mut line).map_err(|error| error.to_string())?;
            if bytes == 0 || !line.ends_with('\n') {
                return Ok(());
            }
            let at = self.read_bytes;
            self.read_bytes += bytes as u64;
            self.take(line.trim_end()).map_err(|why| format!("{}, byte {at}: {}: {why}", path.display(), line.trim_end()))?;
        }
    }

    /// Takes one line.
    pub fn take(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| -> Result<u64, String> {
            words.get(i).and_then(|word| word.parse().ok()).ok_or_else(|| format!("no number as word {i}"))
        };
        if words[0] == "key" {
            let (shard, path) = (number(2)?, words.get(3).ok_or("no path")?.to_string());
            let (open, written) = Default::default();
            self.keys.push(Key { shard, path, state: State::Absent, floor: 0, open, written });
            return Ok(());
        }
        let index = number(1)? as usize;
        let Self { keys, given, totals, .. } = self;
        let key = keys.get_mut(index).ok_or("a key without a line of its own")?;
        match words[0] {
            "try" => {
                totals.tried += 1;
                let wish = if words.get(3) == Some(&"delete") { Wish::Delete } else { Wish::Put };
                let before = key.open.insert(number(2)?, wish);
                before.map_or(Ok(()), |_| Err("an attempt was made twice".into()))
            }
            "ack" => {
                totals.acknowledged += 1;
                key.acknowledge(number(2)?, number(3)?)?;
                key.give(given, index)
            }
            "not" => {
                totals.refused += 1;
                key.refuse(number(2)?, number(3)?)
            }
            "saw" => {
                totals.looks += 1;
                totals.settled += u64::from(key.see(Seen::Value { revision: number(3)?, attempt: number(4)? })?);
                key.give(given, index)
            }
            "gone" => {
                totals.looks += 1;
                totals.settled += u64::from(key.see(Seen::Nothing)?);
                Ok(())
            }
            other => Err(format!("{other:?} begins no line of a journal")),
        }
        .map_err(|why| format!("shard {}, {}: {why}", keys[index].shard, keys[index].path))
    }

    /// Whether a stale read may show this: what the key was at some time. `Err` says why not.
    pub fn may_have_been(&self, key: usize, seen: Seen) -> Result<(), String> {
        let key = &self.keys[key];
        let Seen::Value { revision, attempt } = seen else { return Ok(()) };
        match key.written.get(&revision) {
            Some(written) if *written == attempt => Ok(()),
            Some(written) => Err(format!("{}: revision {revision} was attempt {written}, and shows {attempt}", key.path)),
            None if key.open.get(&attempt) == Some(&Wish::Put) => Ok(()),
            None => Err(format!("{}: revision {revision} shows attempt {attempt}, which is none that may be", key.path)),
        }
    }

    /// How many keys are known to be there.
    pub fn present(&self) -> usize {
        self.keys.iter().filter(|key| matches!(key.state, State::Present { .. })).count()
    }
}

impl Key {
    fn acknowledge(&mut self, attempt: u64, revision: u64) -> Result<(), String> {
        match self.open.remove(&attempt).ok_or("an acknowledgement of what is not open")? {
            Wish::Put if revision <= self.floor => {
                return Err(format!(
                    "acknowledged at revision {revision}, and {} was known before: a write was forgotten",
                    self.floor
                ));
            }
            Wish::Put => {
                self.state = State::Present { revision, attempt };
                self.floor = revision;
            }
            // Its own revision, above the floor, is not told.
            Wish::Delete => self.state = State::Absent,
        }
        Ok(())
    }

    fn refuse(&mut self, attempt: u64, status: u64) -> Result<(), String> {
        self.open.remove(&attempt).ok_or("a refusal of what is not open")?;
        if status == 412 && self.open.is_empty() {
            return Err(format!("a condition on what is known ({:?}) failed, and nothing is open", self.state));
        }
        Ok(())
    }

    /// Takes in a read; whether it settled an open attempt.
    fn see(&mut self, seen: Seen) -> Result<bool, String> {
        match (seen, self.state) {
            (Seen::Nothing, State::Absent) => Ok(false),
            (Seen::Nothing, State::Present { revision, .. }) => {
                let delete = self.open.iter().find(|(_, wish)| **wish == Wish::Delete).map(|(attempt, _)| *attempt);
                let delete = delete.ok_or_else(|| format!("lost: it had revision {revision}, and nobody tried to delete it"))?;
                self.open.remove(&delete);
                self.state = State::Absent;
                Ok(true)
            }
            (Seen::Value { revision, attempt }, State::Present { revision: known, attempt: held }) if revision == known => {
                if attempt == held {
                    Ok(false)
                } else {
                    Err(format!("wrong value: revision {known} was attempt {held}"))
                }
            }
            (Seen::Value { revision, .. }, state) if revision <= self.floor => {
                Err(format!("lost: {} was known, and then {state:?}; this is older", self.floor))
            }
            (Seen::Value { revision, attempt }, state) => {
                if self.open.remove(&attempt) != Some(Wish::Put) {
                    return Err(format!("a value that nobody may see here: {state:?} was known, attempt {attempt} is not open"));
                }
                self.state = State::Present { revision, attempt };
                self.floor = revision;
                Ok(true)
            }
        }
    }

    /// Notes that its shard gave out the revision that is known now.
    fn give(&mut self, given: &mut BTreeMap<(u64, u64), (usize, u64)>, index: usize) -> Result<(), String> {
        let State::Present { revision, attempt } = self.state else { return Ok(()) };
        self.written.insert(revision, attempt);
        match given.insert((self.shard, revision), (index, attempt)) {
            Some(before) if before != (index, attempt) => {
                Err(format!("revision {revision} was given out twice: the shard forgot attempt {} at key {}", before.1, before.0))
            }
            _ => Ok(()),
        }
    }
}

/// The net is tested too: small journals, and what the judge must say of each.
pub fn try_the_judge() {
    let key = "key 0 2 a\nkey 1 2 b\n";
    let fine = [
        "try 0 1 put\nack 0 1 5\nsaw 0 1 5 1\nsaw 0 2 5 1",
        "gone 0 1\ntry 0 1 put\ngone 0 1\nsaw 0 1 7 1\nsaw 0 3 7 1",
        "try 0 1 put\nack 0 1 5\ntry 0 2 delete\nack 0 2 0\ngone 0 1\ntry 0 3 put\nack 0 3 9\nsaw 0 1 9 3",
        "try 0 1 put\nack 0 1 5\ntry 0 2 delete\nsaw 0 1 5 1\ngone 0 1\ngone 0 2",
        // An attempt that was given up may still come after a later one.
        "try 0 1 put\ntry 0 2 put\nack 0 2 5\nsaw 0 1 6 1\nsaw 0 1 6 1",
        "try 0 1 put\nack 0 1 5\ntry 0 2 put\ntry 0 3 put\nnot 0 3 412\nsaw 0 1 6 2",
        "try 0 1 put\nnot 0 1 503\ngone 0 1",
        "try 0 1 put\nack 0 1 5\ntry 1 1 put\nack 1 1 6\nsaw 0 1 5 1\nsaw 1 1 6 1",
    ];
    let wrong = [
        ("try 0 1 put\nack 0 1 5\ngone 0 1", "lost"),
        ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 6\nsaw 0 1 5 1", "lost"),
        ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 6\nsaw 0 1 6 1", "wrong value"),
        ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 5", "forgotten"),
        ("try 0 1 put\nack 0 1 5\ntry 1 1 put\nack 1 1 5", "given out twice"),
        ("try 0 1 put\nack 0 1 5\ntry 0 2 delete\nack 0 2 0\nsaw 0 1 5 1", "lost"),
        ("try 0 1 put\nack 0 1 5\ntry 0 2 delete\ngone 0 1\nsaw 0 1 5 1", "lost"),
        ("try 0 1 put\nnot 0 1 503\nsaw 0 1 5 1", "nobody may see"),
        ("saw 0 1 5 1", "nobody may see"),
        ("try 0 1 put\nack 0 1 5\ntry 0 2 put\nnot 0 2 412", "condition"),
        // One open deletion explains one disappearance.
        ("try 0 1 put\nack 0 1 5\ntry 0 2 delete\ngone 0 1\ntry 0 3 put\nack 0 3 8\ngone 0 1", "lost"),
        // An open put is applied once.
        ("try 0 1 put\nsaw 0 1 5 1\ntry 0 2 put\nack 0 2 6\nsaw 0 1 7 1", "nobody may see"),
    ];
    let judge = |lines: &str| -> Result<Totals, String> {
        let mut judge = Judge::default();
        key.lines().chain(lines.lines()).try_for_each(|line| judge.take(line))?;
        Ok(judge.totals)
    };
    for lines in fine {
        judge(lines).unwrap_or_else(|why| panic!("{why}, in\n{lines}"));
    }
    for (lines, wanted) in wrong {
        let why = judge(lines).expect_err(lines);
        assert!(why.contains(wanted), "{why:?} does not say {wanted:?}, of\n{lines}");
    }
    let totals = judge("try 0 1 put\nack 0 1 5\ntry 0 2 put\ntry 0 3 put\nnot 0 3 503\ntry 0 4 put\nsaw 0 1 9 4").unwrap();
    assert_eq!(totals, Totals { tried: 4, acknowledged: 1, refused: 1, settled: 1, looks: 1 });
    assert_eq!(totals.unknown(), 1);
    let mut judge = Judge::default();
    "key 0 2 a\ntry 0 1 put\nack 0 1 5\ntry 0 2 put\nack 0 2 7\ntry 0 3 put".lines().for_each(|line| judge.take(line).unwrap());
    let of = |revision, attempt| judge.may_have_been(0, Seen::Value { revision, attempt });
    assert!(of(5, 1).is_ok() && of(7, 2).is_ok() && of(8, 3).is_ok() && judge.may_have_been(0, Seen::Nothing).is_ok());
    assert!(of(5, 2).is_err() && of(7, 3).is_err() && of(8, 2).is_err() && of(9, 4).is_err());
    assert_eq!(judge.present(), 1);
}
