//! The command-line client: `flotilla kv`, `flotilla shard`, `flotilla node`, over HTTP to any
//! node.
//!
//! The binary mounts [`Command`] among its own subcommands and hands it to [`run`]. One file per
//! story: [`client`] finds a node that answers and never sends a write twice, [`failure`] says what
//! went wrong and what to do, [`key`] turns arguments into keys and back, [`console`] is the
//! terminal (or, in tests, a buffer), [`text`] what may stand on one. Then the commands: [`kv`] for
//! one key, [`scan`] for many, [`import`] and [`export`] for all, [`admin`] for shards and nodes.
//! [`probe`] is for whoever must know exactly what is certain of a request: the checker.
//!
//! **Invariants.** Data goes to standard output, everything else (progress, counts, errors) to
//! standard error. With `--json` what is printed is JSON, lists one object per line, errors as the
//! problem that the server sent. Exit codes: see [`Exit`]. A write that may have reached a node is
//! never sent again; that its outcome is unknown is said.

mod admin;
mod client;
mod console;
mod export;
mod failure;
mod import;
mod item;
mod key;
mod kv;
pub mod probe;
pub mod probe_batch;
mod scan;
mod target;
#[cfg(test)]
mod tests;
mod text;

use admin::{nodes, shards};
use client::Client;
pub use client::{DEFAULT_ENDPOINT, Endpoint, Endpoints};
use console::Console;
use failure::Failure;
use std::time::Duration;

/// How a command ended, as its exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: it is done.
    Done,
    /// 1: the cluster said no, or a local file broke off, is damaged, or could not be written to
    /// its end.
    Refused,
    /// 2: it was asked for in a way that makes no sense, or names a file that can't be opened.
    Usage,
    /// 3: no node could be reached, or the connection was lost before the answer came.
    Unreachable,
}

impl Exit {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Reads a time as people write it: `5s`, `500ms`, `1m 30s`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let seconds =
        text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.map_or_else(
        || {
            humantime::parse_duration(text)
                .map_err(|error| format!("{error}; a time is 5s, 500ms or 2m"))
        },
        Ok,
    )
}

/// A time to wait, which is more than nothing.
pub fn patience(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than nothing, such as 5s".into()),
        time => Ok(time),
    }
}

/// A node of a list, which may have spaces behind its commas.
fn in_list(text: &str) -> Result<flotilla_router::NodeId, String> {
    text.trim().parse().map_err(|error| format!("{error}; a list is 1,2,4"))
}

/// What every command of the client takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// A node's HTTP address; repeat it, or list several with commas. Any node will do: one that
    /// can't be reached is passed over
    #[arg(
        short,
        long = "endpoint",
        global = true,
        env = "FLOTILLA_ENDPOINTS",
        value_name = "URL",
        default_value = DEFAULT_ENDPOINT
    )]
    endpoints: Vec<Endpoints>,
    /// Prints JSON: lists one object per line, errors as the problem that the server sent
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for an answer (of a stream: for each part of it)
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = patience)]
    timeout: Duration,
}

/// The client's commands. The binary mounts them with `#[command(flatten)]`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Reads and writes keys
    #[command(
        after_help = "Example:\n  flotilla kv put greeting hello && flotilla kv get greeting"
    )]
    Kv {
        /// What every command takes.
        #[command(flatten)]
        global: Global,
        /// What to do.
        #[command(subcommand)]
        command: kv::Command,
    },
    /// Shows shards, and gives orders about them
    #[command(after_help = "Example:\n  flotilla shard list")]
    Shard {
        /// What every command takes.
        #[command(flatten)]
        global: Global,
        /// What to do.
        #[command(subcommand)]
        command: shards::Command,
    },
    /// Shows nodes, and gives orders about them
    #[command(after_help = "Example:\n  flotilla node list")]
    Node {
        /// What every command takes.
        #[command(flatten)]
        global: Global,
        /// What to do.
        #[command(subcommand)]
        command: nodes::Command,
    },
}

impl Command {
    /// Whether it changes anything in the cluster.
    fn is_write(&self) -> bool {
        match self {
            Self::Kv { command, .. } => command.is_write(),
            Self::Shard { command, .. } => command.is_write(),
            Self::Node { command, .. } => command.is_write(),
        }
    }
}

/// Carries a command out on this process's terminal, and says how it ended. Runs on a tokio
/// runtime.
pub async fn run(command: Command) -> Exit {
    run_on(command, &mut Console::terminal()).await
}

/// [`run`] on any console.
async fn run_on(command: Command, console: &mut Console) -> Exit {
    let global = match &command {
        Command::Kv { global, .. }
        | Command::Shard { global, .. }
        | Command::Node { global, .. } => global,
    };
    console.json = global.json;
    let client = Client::new(Endpoints::all(&global.endpoints), global.timeout);
    let is_write = command.is_write();
    let outcome = match command {
        Command::Kv { command, .. } => kv::run(command, &client, console).await,
        Command::Shard { command, .. } => shards::run(command, &client, console).await,
        Command::Node { command, .. } => nodes::run(command, &client, console).await,
    };
    let outcome = outcome.and_then(|()| console.flush());
    match outcome {
        Ok(()) => Exit::Done,
        Err(Failure::Output(error))
            if is_write && error.kind() != std::io::ErrorKind::BrokenPipe =>
        {
            let failure = Failure::Local(format!(
                "it was done, and what came of it can't be printed: {error}"
            ));
            failure.show(console);
            failure.exit()
        }
        Err(failure) => {
            let exit = failure.exit();
            failure.show(console);
            exit
        }
    }
}
