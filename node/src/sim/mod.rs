//! A whole cluster in one thread, from one seed: the real core with real raft-rs, the real apply,
//! log, recovery and snapshots, on engines in memory that forget in a crash what was not synced; a
//! network and disks in simulated time; clients; and faults.
//!
//! [`run`] takes a seed through two phases. In the **fault phase** faults strike and clients fight
//! over a few keys, and after every step all [`invariants`] are looked at. Then everything is
//! **healed**, but for what the hardware is like: every shard must take a write and answer a
//! linearizable read, within a bounded number of ticks; then that, too, gets better, and every
//! replica must catch up. At the end the clients' histories must be linearizable.
//!
//! - [`plan`]: what a seed stands for, drawn with [`Rng`].
//! - [`world`]: the queue of what happens; [`faults`], and [`rivals`]; [`network`]: the links.
//! - [`member`]: one node; [`hands`]: what its core asks for; [`effects`]: what is around it.
//! - [`clients`], and [`answers`]: what they are told.
//! - [`invariants`]: what must hold, one file each.
//! - [`models`]: what no cluster can show yet.
//! - [`trace`]: what a core does, in words.
//!
//! The binary `flotilla-sim` runs many seeds; `docs/simulation.md` says how.

pub(crate) mod hands;
pub(crate) mod invariants;
pub(crate) mod member;
pub(crate) mod network;
pub(crate) mod plan;
pub(crate) mod trace;

mod answers;
mod clients;
mod effects;
mod faults;
mod members;
mod models;
mod rivals;
mod world;

use crate::check;
use crate::rng::Rng;
use plan::{MS, Plan, SECOND};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Within so many ticks every shard of a healed cluster must take writes and answer reads, and
/// within as many more every replica must have caught up.
const HEALED_TICKS_MAX: u64 = 600;

/// How a seed went.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was broken, if anything was.
    pub violation: Option<String>,
    /// A hash of everything that happened: equal whenever the seed is run.
    pub trace_hash: u64,
    /// How many things happened.
    pub steps: u64,
    /// Simulated time.
    pub simulated: std::time::Duration,
    /// Operations of clients, and how many of them were answered well.
    pub operations: u64,
    /// See above.
    pub answered: u64,
    /// How often each kind of fault struck, by name; packets lost, doubled and late; what cores
    /// were brought to by all this.
    pub faults: Vec<(String, u64)>,
    /// What happened, in words, where they were wanted.
    pub words: Vec<String>,
}

/// How to run seeds.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Tell what happens, in words.
    pub tell: bool,
    /// The kinds of faults that strike, by name; empty for what each seed draws.
    pub faults: Vec<String>,
}

/// The names of all kinds of faults.
pub fn fault_names() -> Vec<String> {
    plan::Fault::ALL.iter().map(|fault| format!("{fault:?}")).collect()
}

/// Runs a seed.
pub fn run(seed: u64, options: &Options) -> Report {
    let mut rng = Rng::new(seed);
    let mut plan = Plan::draw(seed, &mut rng);
    if !options.faults.is_empty() {
        plan.faults = plan::Fault::ALL
            .into_iter()
            .filter(|fault| options.faults.contains(&format!("{fault:?}")))
            .collect();
        assert!(
            !plan.faults.is_empty(),
            "none of {:?} is a kind of fault: {:?}",
            options.faults,
            fault_names()
        );
    }
    let tell = options.tell;
    let mut words = if tell { vec![format!("{plan:#?}")] } else { Vec::new() };
    let mut world = match catch_unwind(|| World::new(plan, rng, tell)) {
        Ok(Ok(world)) => world,
        Ok(Err(why)) => return Report::never_started(why),
        Err(panic) => return Report::never_started(panic_words(&*panic)),
    };
    let live = AssertUnwindSafe(|| models::check(seed).and_then(|()| live(&mut world)));
    let violation = match catch_unwind(live) {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(panic_words(&*panic)),
    };
    let mut faults: Vec<_> =
        world.faults.counts.iter().map(|(fault, count)| (format!("{fault:?}"), *count)).collect();
    let network = &world.network;
    for (name, count) in [
        ("LostPacket", network.lost),
        ("DoubledPacket", network.doubled),
        ("LatePacket", network.late),
    ] {
        faults.push((name.into(), count));
    }
    faults.extend(world.met.iter().map(|(name, count)| ((*name).into(), *count)));
    words.extend(world.words.take().unwrap_or_default());
    let history = &world.clients.history;
    let answered = history
        .iter()
        .filter(|o| !matches!(o.output, check::Output::Refused | check::Output::Unknown))
        .count();
    Report {
        violation,
        trace_hash: world.trace_hash(),
        steps: world.steps,
        simulated: std::time::Duration::from_nanos(world.now),
        operations: history.len() as u64,
        answered: answered as u64,
        faults,
        words,
    }
}

impl Report {
    fn never_started(why: String) -> Self {
        Self {
            violation: Some(why),
            trace_hash: 0,
            steps: 0,
            simulated: std::time::Duration::ZERO,
            operations: 0,
            answered: 0,
            faults: Vec::new(),
            words: Vec::new(),
        }
    }
}

/// The command that repeats a seed, in words.
pub fn repeat_command(seed: u64, options: &Options) -> String {
    let faults = match options.faults.is_empty() {
        true => String::new(),
        false => format!(" --faults {}", options.faults.join(",")),
    };
    format!(
        "cargo run --release -p flotilla-node --no-default-features --features sim --bin \
         flotilla-sim -- --seed {seed}{faults}"
    )
}

/// Both phases, and the verdict.
fn live(world: &mut World) -> Result<(), String> {
    world.run_until(world.plan.fault_phase, |_| false)?;
    world.heal()?;
    world.clients_probe();
    let tick = world.plan.config.raft.tick_ms * MS;
    let deadline = world.now + HEALED_TICKS_MAX * tick;
    if !world.run_until(deadline, World::serves)? {
        return Err(format!(
            "not served {HEALED_TICKS_MAX} ticks after everything was healed: {}",
            world.what_lacks()
        ));
    }
    world.hurry();
    let deadline = world.now + HEALED_TICKS_MAX * tick;
    if !world.run_until(deadline, World::has_recovered)? {
        return Err(format!(
            "not recovered {HEALED_TICKS_MAX} ticks after everything was healed: {}",
            world.what_lacks()
        ));
    }
    // Whoever still waits is answered, or gives up.
    world.run_until(world.now + 20 * SECOND, |world| {
        world.clients.waiting.is_empty() && world.has_recovered()
    })?;
    world.clients_end();
    world.invariants.end()?;
    if let Some(refused) = world.met.get("refused frames") {
        return Err(format!("{refused} frames were larger than the transport carries"));
    }
    match check::check(&world.clients.history) {
        check::Verdict::Linearizable(_) => Ok(()),
        verdict => Err(format!("the clients' history is not linearizable\n{verdict}")),
    }
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", words.unwrap_or("without words"))
}

impl World {
    /// Whether every shard has taken a write and answered a linearizable read since all was healed.
    fn serves(&self) -> bool {
        self.clients.probed.values().all(|probed| probed.written && probed.read)
    }

    /// The same, every replica has applied all that is committed, and every change of members that
    /// was begun is complete.
    fn has_recovered(&self) -> bool {
        self.serves() && self.behind().is_none() && self.invariants.joint().is_none()
    }

    /// A replica that has not applied all that is committed.
    fn behind(&self) -> Option<String> {
        for descriptor in &self.plan.shards {
            let last = self.invariants.last_committed(descriptor.id);
            for replica in &descriptor.replicas {
                let applied = flotilla_storage::read::applied(
                    &self.seats[&replica.node].member.engine,
                    descriptor.id,
                );
                if applied.as_ref().map_or(0, |at| at.index) < last {
                    return Some(format!(
                        "shard {} on node {} is at {applied:?} of {last}",
                        descriptor.id, replica.node
                    ));
                }
            }
        }
        None
    }

    fn what_lacks(&self) -> String {
        let lacks = |of: fn(&clients::Probed) -> bool| {
            let shards = self
                .clients
                .probed
                .iter()
                .filter(|(_, probed)| !of(probed))
                .map(|(shard, _)| shard.0);
            shards.collect::<Vec<_>>()
        };
        let (written, read) = (lacks(|probed| probed.written), lacks(|probed| probed.read));
        let joint = self.invariants.joint().map(|shard| format!("; half changed: {shard:?}"));
        format!(
            "shards without a write: {written:?}, without a read: {read:?}; {}{}",
            self.behind().unwrap_or_else(|| "every replica has caught up".into()),
            joint.unwrap_or_default()
        )
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
