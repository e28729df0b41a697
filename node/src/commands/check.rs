//! `flotilla check`: is what a cluster answers linearizable?
//!
//! A workload from several clients against a running cluster, over HTTP like anybody else's, or a
//! history that was kept (`--verify`); then the verdict. Data (the summary, and with `--json` one
//! object) goes to standard output, everything else to standard error. Exit codes: 0 linearizable,
//! 1 not, or undecided, 2 bad usage, 3 unreachable.

use super::err;
use clap::{Args, ValueEnum};
use flotilla_node::check::figures::Told;
use flotilla_node::check::keys::prefixes;
use flotilla_node::check::lines::{Header, Verified, Writer, verify};
use flotilla_node::check::workload::{Load, Outcome, Plan};
use flotilla_node::check::{Summary, Undecided, Verdict};
use flotilla_ops::cli::probe::Probe;
use flotilla_ops::cli::{Endpoints, Exit, patience};
use humantime_serde::re::humantime;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the list of shards is asked for before the cluster counts as unreachable.
const SHARDS_TRIES: usize = 5;
/// The pause between two tries.
const SHARDS_PAUSE: Duration = Duration::from_millis(200);

/// Checks that what a cluster answers is linearizable.
///
/// Writes, reads and deletes keys of its own, in every shard, from several clients at a time and
/// through every endpoint; then looks for an order of all operations that explains every answer.
/// Where there is none, it shows the few operations that contradict each other.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  flotilla check --endpoint \
                        http://10.0.0.1:7001,http://10.0.0.2:7001 --duration 5m\n  flotilla check \
                        --history history.ndjson && flotilla check --verify history.ndjson\n\n\
                        Exit codes: 0 linearizable, 1 not linearizable or undecided, 2 bad usage, \
                        3 unreachable.")]
pub(crate) struct Check {
    /// A node's HTTP address; repeat it, or list several with commas. Name all nodes, so that all
    /// of them are asked
    #[arg(
        short,
        long = "endpoint",
        env = "FLOTILLA_ENDPOINTS",
        value_name = "URL",
        default_value = "http://127.0.0.1:7001"
    )]
    endpoints: Vec<Endpoints>,
    /// How long to go on
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = patience)]
    duration: Duration,
    /// How many clients ask at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1024))]
    clients: u64,
    /// How many keys are in use at a time
    #[arg(long, value_name = "N", default_value_t = 24)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    keys: u64,
    /// What the clients' choices are drawn from; by default another one each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = patience)]
    timeout: Duration,
    /// How to read
    #[arg(long, value_name = "WORD", default_value = "linearizable")]
    consistency: Consistency,
    /// Keeps the history in this file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Leaves the keys where they are
    #[arg(long)]
    keep: bool,
    /// Checks a history that was kept, and asks no cluster
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["history", "keep", "duration", "clients", "keys", "seed"])]
    #[arg(conflicts_with = "consistency")]
    verify: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Consistency {
    /// By a quorum.
    Linearizable,
    /// By the leader's lease.
    Lease,
}

/// Carries it out.
pub(crate) fn run(check: &Check) -> ExitCode {
    let done = match &check.verify {
        Some(path) => verify_file(check, path),
        None => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(check_cluster(check)),
            Err(error) => Err((Exit::Usage, format!("start the runtime: {error}"))),
        },
    };
    let (exit, complaint) = match done {
        Ok(exit) => (exit, None),
        Err((exit, why)) => (exit, Some(why)),
    };
    if let Some(why) = complaint {
        if check.json {
            let code = if exit == Exit::Unreachable { "unreachable" } else { "usage" };
            err(&json!({ "code": code, "detail": why }).to_string());
        } else {
            err(&format!("error: {why}"));
        }
    }
    exit.into()
}

/// How a check that could not be carried out ends, and why.
type Failed = (Exit, String);

fn file_failed(action: &str, path: &Path, error: impl std::fmt::Display) -> Failed {
    (Exit::Usage, format!("can't {action} {}: {error}", path.display()))
}

/// The file in which a history goes, which must be new: what another run found is never
/// overwritten.
fn new_file(path: &Path) -> Result<File, Failed> {
    File::options()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| file_failed("create", path, error))
}

async fn check_cluster(check: &Check) -> Result<Exit, Failed> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run = format!("{:x}-{:x}", since_epoch.as_nanos(), std::process::id());
    let seed = check.seed.unwrap_or(since_epoch.subsec_nanos().into());
    let lease = check.consistency == Consistency::Lease;
    let probe = Probe::new(Endpoints::all(&check.endpoints), check.timeout, lease);
    let ranges = shards(&probe).await?;
    let prefixes = prefixes(&ranges, &run);
    if prefixes.is_empty() {
        return Err((Exit::Refused, "no shard has room for keys of the check".into()));
    }
    if !check.json {
        let seconds = humantime::format_duration(check.duration);
        let shards = prefixes.len();
        err(&format!(
            "{} clients, {} keys in {shards} shards, for {seconds} (--seed {seed})",
            check.clients, check.keys
        ));
        if shards < ranges.len() {
            err(&format!(
                "{} shards have no room for keys of the check, and are left out",
                ranges.len() - shards
            ));
        }
    }
    let consistency = if lease { "lease" } else { "linearizable" };
    let header = Header::new(
        seed,
        Endpoints::all(&check.endpoints).iter().map(ToString::to_string).collect(),
        consistency,
    );
    let file = check
        .history
        .as_deref()
        .map(|path| new_file(path).map(|file| (file, header.clone())))
        .transpose()?;
    let keys = usize::try_from(check.keys).unwrap_or(usize::MAX);
    let plan = Plan { duration: check.duration, clients: check.clients, keys, seed };
    let load = Load::new(plan, probe, prefixes, file).map_err(|error| {
        file_failed("write", check.history.as_deref().unwrap_or(Path::new("the history")), error)
    })?;
    let outcome = watched(check, &load).await;
    if outcome.figures.told(outcome.lasted).is_empty() {
        let why = outcome.last_refusal.unwrap_or_else(|| "nothing was asked".into());
        return Err((Exit::Unreachable, format!("nothing was answered: {why}")));
    }
    let evidence = evidence(check, &outcome, &header, &run)?;
    // Whoever looks for the reason of a violation wants to find the keys as they are.
    let keep = check.keep || !outcome.verdict.is_linearizable();
    if !keep && !load.clean_up().await {
        err(&format!("some keys could not be removed; they are under …/flotilla-check/{run}/"));
    }
    printed(show(check, &outcome, evidence.as_deref(), keep.then_some(&run)))?;
    match &outcome.history_error {
        Some(error) => Err(file_failed(
            "write",
            check.history.as_deref().unwrap_or(Path::new("the history")),
            error,
        )),
        None => Ok(exit_of(&outcome.verdict)),
    }
}

/// The ranges of all shards.
async fn shards(probe: &Probe) -> Result<Vec<flotilla_router::KeyRange>, Failed> {
    let mut why = String::new();
    for at in 0..SHARDS_TRIES {
        match probe.shards(at).await {
            Ok(ranges) => return Ok(ranges),
            Err(error) => why = error,
        }
        tokio::time::sleep(SHARDS_PAUSE).await;
    }
    Err((
        Exit::Unreachable,
        format!(
            "{why}\n       → is the cluster up? Name its nodes with --endpoint or \
             FLOTILLA_ENDPOINTS"
        ),
    ))
}

/// Runs the load, shows how it goes where somebody looks, and ends it on Ctrl-C.
async fn watched(check: &Check, load: &Arc<Load>) -> Outcome {
    let person = !check.json && io::stderr().is_terminal();
    let mut running = std::pin::pin!(load.clone().run());
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    // One listener throughout, so that no signal falls between two.
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut interrupted = false;
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            _ = tick.tick(), if person => {
                let (figures, so_far) = load.figures();
                let Told { ok, unknown, ok_per_second, .. } = figures.told(so_far);
                let all = humantime::format_duration(check.duration);
                let seconds = so_far.as_secs();
                let _ = write!(
                    io::stderr(),
                    "\r\x1b[2K{seconds} s of {all}: {ok} ok ({ok_per_second:.0}/s), {unknown} \
                     unknown"
                );
            }
            ended = &mut interrupt, if !interrupted => {
                interrupted = true;
                // Without the signal there is no way to end it early, and it ends by itself.
                if ended.is_ok() {
                    load.stop();
                }
            }
        }
    };
    if person {
        let _ = write!(io::stderr(), "\r\x1b[2K");
    }
    outcome
}

/// The file that has the history of the key that is wrong or undecided, if there is such a key.
fn evidence(
    check: &Check,
    outcome: &Outcome,
    header: &Header,
    run: &str,
) -> Result<Option<PathBuf>, Failed> {
    if outcome.evidence.is_empty() || check.history.is_some() {
        return Ok(check.history.clone().filter(|_| !outcome.verdict.is_linearizable()));
    }
    let path = PathBuf::from(format!("flotilla-check-{run}.ndjson"));
    let write = |file: File| -> io::Result<()> {
        let mut writer = Writer::new(BufWriter::new(file), header)?;
        outcome
            .evidence
            .iter()
            .zip(1..)
            .try_for_each(|(operation, id)| writer.done(id, operation))?;
        writer.flush()
    };
    match new_file(&path)
        .and_then(|file| write(file).map_err(|error| file_failed("write", &path, error)))
    {
        Ok(()) => Ok(Some(path)),
        // The verdict matters more than where it is written down.
        Err((_, why)) => {
            err(&format!("error: {why}"));
            Ok(None)
        }
    }
}

fn verify_file(check: &Check, path: &Path) -> Result<Exit, Failed> {
    let file = File::open(path).map_err(|error| file_failed("read", path, error))?;
    let verified =
        verify(BufReader::new(file)).map_err(|error| file_failed("read", path, error))?;
    let Verified { verdict, pending, torn, .. } = &verified;
    if *torn {
        err(&format!("the last line of {} is torn, and was left out", path.display()));
    }
    if *pending > 0 {
        err(&format!(
            "{pending} writes were asked and not answered before the history ends: their outcome \
             is taken as unknown"
        ));
    }
    let mut out = io::stdout().lock();
    let printed = if check.json {
        let mut json = verdict_json(verdict);
        json.insert("torn".into(), (*torn).into());
        json.insert("pending".into(), (*pending).into());
        writeln!(out, "{}", Value::Object(json))
    } else {
        writeln!(out, "{verdict}")
    };
    self::printed(printed)?;
    Ok(exit_of(verdict))
}

/// Whoever reads no more knows the exit code all the same.
fn printed(printed: io::Result<()>) -> Result<(), Failed> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err((Exit::Refused, format!("can't print: {error}")))
        }
        _ => Ok(()),
    }
}

fn exit_of(verdict: &Verdict) -> Exit {
    if verdict.is_linearizable() { Exit::Done } else { Exit::Refused }
}

/// Prints what came of a load.
fn show(
    check: &Check,
    outcome: &Outcome,
    evidence: Option<&Path>,
    kept: Option<&String>,
) -> io::Result<()> {
    let told = outcome.figures.told(outcome.lasted);
    let mut out = io::stdout().lock();
    if check.json {
        let mut json = verdict_json(&outcome.verdict);
        if let Ok(Value::Object(figures)) = serde_json::to_value(&told) {
            json.extend(figures);
        }
        json.insert("history".into(), evidence.map(|path| path.display().to_string()).into());
        json.insert("kept_under".into(), kept.map(|run| format!("/flotilla-check/{run}/")).into());
        return writeln!(out, "{}", Value::Object(json));
    }
    let time = |seconds: f64| {
        if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
    };
    let Told { ok, condition_failed, failed, unknown, .. } = told;
    writeln!(
        out,
        "operations       {ok} ok ({:.0}/s), {condition_failed} condition failed, {failed} \
         refused, {unknown} unknown",
        told.ok_per_second
    )?;
    let [p50, p99, max] =
        [told.latency_p50_seconds, told.latency_p99_seconds, told.latency_max_seconds].map(time);
    writeln!(out, "latency          p50 {p50}, p99 {p99}, max {max}")?;
    writeln!(out, "longest silence  {}", time(told.longest_silence_seconds))?;
    if let Some(why) = &outcome.last_refusal {
        writeln!(out, "last refusal     {why}")?;
    }
    if let Some(run) = kept {
        writeln!(out, "keys kept under  …/flotilla-check/{run}/")?;
    }
    writeln!(out, "verdict          {}", outcome.verdict)?;
    match evidence {
        Some(path) => writeln!(
            out,
            "the history is in {0}; see it again with: flotilla check --verify {0}",
            path.display()
        ),
        None => Ok(()),
    }
}

/// The verdict for programs.
fn verdict_json(verdict: &Verdict) -> Map<String, Value> {
    let key = |key: &[u8]| key.escape_ascii().to_string();
    let value = match verdict {
        Verdict::Linearizable(Summary { keys, operations, steps }) => {
            json!({
                "verdict": "linearizable", "keys": keys, "operations": operations, "steps": steps,
            })
        }
        Verdict::Violation(violation) => json!({
            "verdict": "violation",
            "key": key(&violation.key),
            "operations": violation.operations,
            "part": violation.part.len(),
            "why": violation.why,
            "shown": violation.to_string(),
        }),
        Verdict::Undecided(Undecided { key: name, operations, steps }) => {
            json!({
                "verdict": "undecided", "key": key(name), "operations": operations, "steps": steps,
            })
        }
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
