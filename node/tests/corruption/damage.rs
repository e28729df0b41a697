//! What can be wrong with the files of a node that is down: which kinds there are, and how each is
//! damaged.

use flotilla_kit::Rng;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A kind of file in, or beside, a node's data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// RocksDB's write-ahead log, as `kill -9` leaves it.
    Wal,
    /// A table of RocksDB.
    Table,
    /// RocksDB's list of what it consists of.
    Manifest,
    /// Which manifest is in force.
    Current,
    /// RocksDB's name for itself.
    DbIdentity,
    /// The options that RocksDB was opened with.
    Options,
    /// What RocksDB logs.
    DbLog,
    /// RocksDB's lock file.
    DbLock,
    /// Our own lock file.
    Lock,
    /// What the directory remembers of its last start.
    Started,
    /// A file of a snapshot that was left from the life before.
    Leftover,
    /// The node's certificate.
    Certificate,
    /// Its private key.
    Key,
    /// The certificate of the cluster's authority.
    Authority,
    /// The configuration.
    Config,
    /// The file with the process id.
    PidFile,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 16] = [
        Self::Wal,
        Self::Table,
        Self::Manifest,
        Self::Current,
        Self::DbIdentity,
        Self::Options,
        Self::DbLog,
        Self::DbLock,
        Self::Lock,
        Self::Started,
        Self::Leftover,
        Self::Certificate,
        Self::Key,
        Self::Authority,
        Self::Config,
        Self::PidFile,
    ];

    /// Whether it lies in the data directory, and is put back with it.
    pub(crate) fn is_data(self) -> bool {
        !matches!(
            self,
            Self::Certificate | Self::Key | Self::Authority | Self::Config | Self::PidFile
        )
    }

    /// The files of this kind at a node whose folder is `home`, the most interesting last.
    pub(crate) fn files(self, home: &Path) -> Vec<PathBuf> {
        let (db, data) = (home.join("data/db"), home.join("data"));
        let named = |folder: PathBuf, fits: fn(&str) -> bool| -> Vec<PathBuf> {
            let all = fs::read_dir(folder)
                .unwrap()
                .flatten()
                .filter(|entry| fits(&entry.file_name().to_string_lossy()));
            let mut all: Vec<(u64, PathBuf)> =
                all.map(|entry| (entry.metadata().unwrap().len(), entry.path())).collect();
            all.sort();
            all.into_iter().map(|(_, path)| path).collect()
        };
        match self {
            Self::Wal => named(db, |name| name.ends_with(".log")),
            Self::Table => named(db, |name| name.ends_with(".sst")),
            Self::Manifest => named(db, |name| name.starts_with("MANIFEST")),
            Self::Current => vec![db.join("CURRENT")],
            Self::DbIdentity => vec![db.join("IDENTITY")],
            Self::Options => named(db, |name| name.starts_with("OPTIONS")),
            Self::DbLog => vec![db.join("LOG")],
            Self::DbLock => vec![db.join("LOCK")],
            Self::Lock => vec![data.join("flotilla.lock")],
            Self::Started => vec![data.join("flotilla.started")],
            Self::Leftover => {
                let folder = data.join("snapshots/in/7");
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("000000.sst"), [7; 4096]).unwrap();
                vec![folder.join("000000.sst")]
            }
            Self::Certificate => vec![home.join("node.pem")],
            Self::Key => vec![home.join("node.key")],
            Self::Authority => vec![home.join("../ca.pem")],
            Self::Config => vec![home.join("flotilla.toml")],
            Self::PidFile => {
                fs::write(home.join("flotilla.pid"), "4194304\n").unwrap();
                vec![home.join("flotilla.pid")]
            }
        }
    }
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Damage {
    /// Bits of one byte change, so many thousandths into the file.
    Flip(u64),
    /// So many thousandths of it are left.
    Cut(u64),
    /// Nothing is left in it.
    Empty,
    /// It is gone.
    Gone,
}

impl Damage {
    /// The kinds of damage, at places that are drawn.
    pub(crate) fn drawn(rng: &mut Rng) -> [Self; 5] {
        let (flip, cut) = (rng.below(1000), 200 + rng.below(799));
        // The head of a file is what its readers trust most.
        [Self::Flip(flip), Self::Flip(rng.below(20)), Self::Cut(cut), Self::Empty, Self::Gone]
    }

    /// Does it.
    pub(crate) fn apply(self, path: &Path, rng: &mut Rng) {
        let bytes = fs::metadata(path).unwrap().len();
        match self {
            Self::Flip(_) if bytes == 0 => {}
            Self::Flip(permille) => {
                flip(path, (bytes * permille / 1000).min(bytes - 1), 1 << rng.below(8))
            }
            Self::Cut(permille) => cut(path, bytes * permille / 1000),
            Self::Empty => cut(path, 0),
            Self::Gone => fs::remove_file(path).unwrap(),
        }
    }
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flip(permille) => write!(f, "flipped at {permille} ‰"),
            Self::Cut(permille) => write!(f, "cut at {permille} ‰"),
            Self::Empty => write!(f, "empty"),
            Self::Gone => write!(f, "gone"),
        }
    }
}

/// Changes bits of one byte.
pub(crate) fn flip(path: &Path, at: u64, mask: u8) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

fn cut(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}
