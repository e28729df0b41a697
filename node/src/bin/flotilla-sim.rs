//! Runs simulated clusters, one per seed, on all cores, and says how to repeat what fails.
//!
//! Exit codes: 0 no promise was broken, 1 one was, 2 bad usage.

use clap::Parser;
use clap::builder::PossibleValuesParser;
use flotilla_node::sim::{self, Options, Report};
#[cfg(feature = "mutation")]
use flotilla_router::mutation::Mutation;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
#[cfg(feature = "mutation")]
use strum::VariantNames as _;

/// Whole clusters in simulated time, from seeds: faults strike, clients write and read, and every
/// promise is checked.
#[derive(Parser)]
#[command(name = "flotilla-sim", version, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// One seed alone, told in words on standard output
    #[arg(long, conflicts_with_all = ["seeds", "from", "twice"])]
    seed: Option<u64>,
    /// Runs every seed twice, and compares the hashes of all that happened
    #[arg(long)]
    twice: bool,
    /// How many seeds to run at once; one per core by default
    #[arg(long)]
    jobs: Option<usize>,
    /// Only these kinds of faults strike, instead of what each seed draws
    #[arg(long, value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(sim::fault_names()))]
    faults: Vec<String>,
    /// Goes on after a failure, and lists all that fail
    #[arg(long)]
    keep_going: bool,
    /// Puts a known mistake into the code, to see whether it is caught
    #[cfg(feature = "mutation")]
    #[arg(long, value_parser = PossibleValuesParser::new(Mutation::VARIANTS))]
    mutation: Option<String>,
}

const EXAMPLES: &str = "Examples:\n  flotilla-sim --seeds 100000\n  flotilla-sim --seed 17 | less";

/// What many seeds came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    operations: u64,
    answered: u64,
    simulated: Duration,
    faults: BTreeMap<String, u64>,
    failed: BTreeMap<u64, String>,
}

impl Sum {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.operations += report.operations;
        self.answered += report.answered;
        self.simulated += report.simulated;
        for (fault, count) in report.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        if let Some(why) = report.violation {
            self.failed.insert(seed, why);
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic inside a seed is that seed's failure, and is told there.
    std::panic::set_hook(Box::new(|_| {}));
    #[cfg(feature = "mutation")]
    if let Some(name) = &arguments.mutation {
        name.parse::<Mutation>().expect("the parser knows the names").switch_on();
        eprintln!("the code is mutated: {name}");
    }
    let options = Options { tell: arguments.seed.is_some(), faults: arguments.faults.clone() };
    match arguments.seed {
        Some(seed) => tell(seed, &options),
        None => many(&arguments, &options),
    }
}

/// One seed, in words.
fn tell(seed: u64, options: &Options) -> ExitCode {
    let report = sim::run(seed, options);
    for line in &report.words {
        println!("{line}");
    }
    match report.violation {
        None => {
            println!("seed {seed}: no promise was broken; trace hash {:016x}", report.trace_hash);
            ExitCode::SUCCESS
        }
        Some(why) => {
            println!("seed {seed}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Many seeds, on all cores.
fn many(arguments: &Arguments, options: &Options) -> ExitCode {
    let jobs = arguments
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    let (next, stop, sum) =
        (AtomicU64::new(arguments.from), AtomicBool::new(false), Mutex::new(Sum::default()));
    let end = arguments.from.saturating_add(arguments.seeds);
    let (progress, begun, told) = (bar(arguments.seeds), Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let report = once_or_twice(seed, options, arguments.twice);
                    if let Some(why) = &report.violation {
                        progress.suspend(|| {
                            eprintln!(
                                "seed {seed}: {why}\nrepeat it with\n  {}",
                                sim::repeat_command(seed, options)
                            )
                        });
                        stop.fetch_or(!arguments.keep_going, Ordering::Relaxed);
                    }
                    sum.lock().expect("nothing below panics").add(seed, report);
                    progress.inc(1);
                    // Where nobody watches a bar, a line a minute.
                    let minutes = begun.elapsed().as_secs() / 60;
                    if progress.is_hidden() && told.fetch_max(minutes, Ordering::Relaxed) < minutes
                    {
                        eprintln!(
                            "{minutes} min: {} of {} seeds",
                            progress.position(),
                            arguments.seeds
                        );
                    }
                }
            });
        }
    });
    progress.finish_and_clear();
    let sum = sum.into_inner().expect("all threads have ended");
    show(&sum, begun.elapsed(), jobs);
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn once_or_twice(seed: u64, options: &Options, twice: bool) -> Report {
    let mut report = sim::run(seed, options);
    if twice && report.violation.is_none() {
        let again = sim::run(seed, options);
        if (again.trace_hash, again.steps) != (report.trace_hash, report.steps) {
            let (first, second) = (report.trace_hash, again.trace_hash);
            report.violation = Some(format!(
                "run twice, it is two different runs: {first:016x} and {second:016x}"
            ));
        }
    }
    report
}

fn bar(seeds: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {pos} of {len} seeds, {per_sec}, {eta} left");
    ProgressBar::new(seeds).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(sum: &Sum, took: Duration, jobs: usize) {
    let seconds = took.as_secs_f64().max(1e-9);
    let faults: Vec<_> =
        sum.faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
    println!(
        "{} seeds in {took:.1?} on {jobs} threads, {:.1} seeds/s",
        sum.seeds,
        sum.seeds as f64 / seconds
    );
    println!(
        "simulated {:.1} h: {:.0} times real time, {:.0} steps/s",
        sum.simulated.as_secs_f64() / 3600.0,
        sum.simulated.as_secs_f64() / seconds,
        sum.steps as f64 / seconds
    );
    println!("operations {}, answered {}; {}", sum.operations, sum.answered, faults.join(", "));
    match sum.failed.len() {
        0 => println!("no promise was broken"),
        n => println!("{n} seeds failed: {:?}", sum.failed.keys().collect::<Vec<_>>()),
    }
}
