//! Golden scripts: `testdata/<behaviour>.txt`, each one behaviour of a cluster, in the format of
//! the crate `goldenscript`.
//!
//! ```text
//! # A comment.
//! (run 8)            A command whose output is of no interest,
//! tick all 3         one that says what comes of it,
//! ---                and below the line what came of both, up to an empty line.
//! n1@1 pre-candidate of s2
//! n1 -> n2  s2 t2 MsgRequestPreVote log ends at 1@1
//! …
//! ```
//!
//! Every effect of a core is a line ([`trace`](crate::sim::trace)); above the effects of a pass
//! stands which replica is in another term or role now. A script begins with a cluster of three
//! nodes and one shard. `UPDATE_GOLDENFILES=1 cargo test -p flotilla-node --no-default-features
//! golden` writes the output anew; read what it wrote before you commit it.

use super::cluster::{self, Cluster, FOREVER, SHARD, config};
use crate::core::{Event, Ticket};
use crate::sim::member::Lane;
use flotilla_router::{
    Change, ChangeKind, Consistency, Epoch, MemberChange, NodeId, OperationId, ReplicaId, ShardId,
    Transition,
};
use goldenscript::Context;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

test_each_file::test_each_path! { for ["txt"] in "node/testdata" => |[path]: [&Path; 1]| run(path) }

fn run(path: &Path) {
    let cluster = Cluster::new(3, 1, config());
    goldenscript::run(&mut Script { cluster }, path).unwrap();
}

/// A script while it runs.
struct Script {
    cluster: Cluster,
}

/// What a script can ask for. Nodes go by their numbers.
#[derive(goldenscript::Command)]
enum Command {
    /// A new cluster: `cluster nodes=3 shards=1 lease=on`.
    Cluster(#[arg(optional)] Vec<(String, String)>),
    /// Time passes on one node or `all`, so many ticks; nothing is delivered: `tick 1 3`.
    Tick(String, #[arg(optional)] Option<u64>),
    /// So many ticks everywhere, and everything that comes of them.
    Run(u64),
    /// All that is not held is delivered and done, until nothing is left.
    Settle,
    /// Time passes on a node, which does not notice, in milliseconds: `pause 1 899`.
    Pause(NodeId, u64),
    /// Packets of a link arrive, one or so many or `all`, and the receiver takes them in: `deliver
    /// 1 3`.
    Deliver(NodeId, NodeId, Option<String>),
    /// The same packets get lost.
    Drop(NodeId, NodeId, Option<String>),
    /// Nodes are cut off from all others, or `from` one: `partition 1 2`.
    Partition(Vec<NodeId>, #[arg(key = "from")] Option<NodeId>),
    /// One direction is cut.
    Cut(NodeId, NodeId),
    /// No link is cut or held.
    Heal,
    /// A lane of a node waits, or its link to another: `hold 1 persist`, `hold 1 n3`.
    Hold(NodeId, String),
    /// It goes on.
    Release(NodeId, String),
    /// A node does the oldest job of a lane.
    Work(NodeId, String),
    /// A node loses power; the first `keep` of its unsynced writes survive.
    Crash(NodeId, #[arg(key = "keep", optional)] usize),
    /// A node starts.
    Start(NodeId),
    /// A node is asked to put, all in one pass, `within` milliseconds: `put 1 a=1 b=2`.
    Put {
        node: NodeId,
        #[arg(key)]
        within: Option<u64>,
        pairs: Vec<(String, String)>,
    },
    /// So many puts of so many bytes, each in an entry of its own: `fill 1 12 100000`.
    Fill(NodeId, u64, usize),
    /// A node is asked for keys, all in one pass: `get 1 a b consistency=stale age_max=500`.
    Get {
        node: NodeId,
        keys: Vec<String>,
        #[arg(key)]
        consistency: Option<String>,
        #[arg(key)]
        age_max: Option<u64>,
    },
    /// A node is asked to hand a shard over: `transfer 1 3 shard=2`.
    Transfer(NodeId, NodeId, #[arg(key = "shard")] Option<ShardId>),
    /// A node is asked to change members, simply or by way of a joint group, at the epoch that it
    /// knows: `change 1 simple learner=3`, `change 1 joint learner=2 voter=3`.
    Change { node: NodeId, transition: String, members: Vec<(String, String)> },
    /// A node is asked to drain.
    Drain(NodeId),
    /// What a node's disk has free, and what it is to keep free: `disk 1 10 100`.
    Disk(NodeId, u64, u64),
    /// Where every replica is.
    Status,
    /// How many shards each node leads.
    Leaders,
    /// What a restart of a node would find.
    DiskLog(NodeId),
    /// What is applied on a node under these keys.
    Look(NodeId, Vec<String>),
    /// Whether all nodes that run hold the same data.
    Same,
    /// What a node's core counted.
    Counters(NodeId),
    /// A heartbeat of a leader that knows more of the receiver's log than the receiver:
    /// `forge_heartbeat 1 2 99`.
    ForgeHeartbeat(NodeId, NodeId, u64),
}

impl goldenscript::Runner for Script {
    type Command = Command;

    /// What a command says itself comes behind what the nodes did.
    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let said = self.command(command)?;
        let mut lines = self.cluster.take_trace();
        lines.extend(said);
        Ok(lines.join("\n"))
    }
}

impl Script {
    fn command(&mut self, command: &Command) -> Result<Vec<String>, Box<dyn Error>> {
        let cluster = &mut self.cluster;
        match command {
            Command::Cluster(options) => self.cluster = bootstrapped(options)?,
            Command::Tick(who, ticks) => {
                let nodes = if who == "all" { cluster.nodes() } else { vec![who.parse()?] };
                for _ in 0..ticks.unwrap_or(1) {
                    for id in &nodes {
                        if cluster.is_up(*id) {
                            cluster.tick(*id, 1);
                        }
                    }
                }
            }
            Command::Run(ticks) => cluster.run(*ticks),
            Command::Settle => cluster.settle(),
            Command::Pause(id, ms) => cluster.pause(*id, Duration::from_millis(*ms)),
            Command::Deliver(from, to, count) => {
                for _ in 0..self.packets((*from, *to), count)? {
                    assert!(
                        self.cluster.deliver((*from, *to), 0),
                        "nothing waits between {from} and {to}"
                    );
                }
                self.cluster.pass(*to);
            }
            Command::Drop(from, to, count) => {
                for _ in 0..self.packets((*from, *to), count)? {
                    assert!(
                        self.cluster.drop_packet((*from, *to), 0),
                        "nothing waits between {from} and {to}"
                    );
                }
            }
            Command::Partition(side, from) => {
                let mut others = cluster.nodes();
                others.retain(|id| from.map_or(!side.contains(id), |from| from == *id));
                cluster.partition(side, &others);
            }
            Command::Cut(from, to) => cluster.cut((*from, *to)),
            Command::Heal => cluster.network.heal(),
            Command::Hold(id, what) => match what.strip_prefix('n') {
                Some(to) => cluster.network.hold((*id, to.parse()?)),
                None => cluster.running_mut(*id).hold(lane(what)?),
            },
            Command::Release(id, what) => match what.strip_prefix('n') {
                Some(to) => cluster.network.release((*id, to.parse()?)),
                None => cluster.running_mut(*id).release(lane(what)?),
            },
            Command::Work(id, name) => {
                assert!(cluster.work(*id, lane(name)?), "node {id} has nothing to do there");
                cluster.pass(*id);
            }
            Command::Crash(id, keep) => cluster.crash(*id, *keep),
            Command::Start(id) => cluster.start(*id),
            Command::Put { node, within, pairs } => {
                let deadline = within
                    .map_or(FOREVER, |ms| cluster.member(*node).now + Duration::from_millis(ms));
                let put =
                    |(key, value): &(String, String)| cluster.post_put(*node, key, value, deadline);
                let tickets: Vec<_> = pairs.iter().map(put).collect();
                return Ok(self.asked(*node, &tickets));
            }
            Command::Fill(id, puts, bytes) => {
                for i in 0..*puts {
                    let ticket =
                        cluster.post_put(*id, &format!("fill{i}"), &"x".repeat(*bytes), FOREVER);
                    cluster.settle();
                    assert!(cluster.answer(ticket).is_some(), "the put was not answered");
                }
            }
            Command::Get { node, keys, consistency, age_max } => {
                let consistency = match consistency.as_deref() {
                    None => Consistency::Linearizable,
                    Some("lease") => Consistency::Lease,
                    Some("stale") => {
                        Consistency::Stale { age_max: age_max.map(Duration::from_millis) }
                    }
                    Some(other) => return Err(format!("no consistency {other:?}").into()),
                };
                let get = |key: &String| cluster.post_get(*node, key, consistency, FOREVER);
                let tickets: Vec<_> = keys.iter().map(get).collect();
                return Ok(self.asked(*node, &tickets));
            }
            Command::Transfer(id, to, shard) => {
                cluster.post_transfer(*id, shard.unwrap_or(SHARD), *to);
                cluster.pass(*id);
            }
            Command::Change { node, transition, members } => {
                let descriptor = cluster.replica(*node, SHARD).unwrap().group.descriptor().clone();
                let change = change(descriptor.epoch, transition, members)?;
                let ticket = cluster.post_change(*node, change, FOREVER);
                return Ok(self.asked(*node, &[ticket]));
            }
            Command::Drain(id) => self.event(*id, Event::Drain),
            Command::Disk(id, free_bytes, reserve_bytes) => {
                self.event(
                    *id,
                    Event::Disk { free_bytes: *free_bytes, reserve_bytes: *reserve_bytes },
                );
            }
            Command::Status => return Ok(self.status()),
            Command::Leaders => {
                let up: Vec<_> =
                    cluster.nodes().into_iter().filter(|id| cluster.is_up(*id)).collect();
                let leaders =
                    up.into_iter().map(|id| (id, cluster.running_mut(id).core.counters().leaders));
                return Ok(leaders.map(|(id, leaders)| format!("n{id} leads {leaders}")).collect());
            }
            Command::DiskLog(id) => {
                let found = cluster.member(*id).on_disk(SHARD);
                let (truncated, last, hs) = (found.truncated, found.last, found.hard_state);
                return Ok(vec![format!(
                    "truncated {}@{}, last {}@{}, applied {}, term {} vote {} commit {}",
                    truncated.index,
                    truncated.term,
                    last.index,
                    last.term,
                    found.applied.index,
                    hs.term,
                    hs.vote,
                    hs.commit
                )]);
            }
            Command::Look(id, keys) => {
                let show = |key: &String| match cluster.look(*id, key) {
                    Some((revision, value)) => {
                        format!("{key}={} r{revision}", value.escape_ascii())
                    }
                    None => format!("{key} is missing"),
                };
                return Ok(keys.iter().map(show).collect());
            }
            Command::Same => {
                let hashes: Vec<_> =
                    cluster.nodes().into_iter().filter_map(|id| cluster.hash(id, SHARD)).collect();
                return Ok(vec![match hashes.windows(2).all(|pair| pair[0] == pair[1]) {
                    true => format!("all {} are the same", hashes.len()),
                    false => format!("they differ: {hashes:?}"),
                }]);
            }
            Command::Counters(id) => {
                let counted = cluster.running_mut(*id).core.counters();
                return Ok(vec![format!(
                    "commands {}, proposals {}, read contexts {}, lease reads {}, refused {}",
                    counted.commands,
                    counted.proposals,
                    counted.read_contexts,
                    counted.lease_reads,
                    counted.messages_refused
                )]);
            }
            Command::ForgeHeartbeat(from, to, commit) => {
                let envelope = cluster.forge(*from, *to, |message| {
                    message.set_msg_type(raft::eraftpb::MessageType::MsgHeartbeat);
                    message.commit = *commit;
                });
                self.event(*to, Event::Message { from: *from, envelope });
            }
        }
        Ok(Vec::new())
    }

    /// How many packets of a link are meant.
    fn packets(
        &self,
        link: (NodeId, NodeId),
        count: &Option<String>,
    ) -> Result<usize, Box<dyn Error>> {
        Ok(match count.as_deref() {
            None => 1,
            Some("all") => self.cluster.network.waiting(link),
            Some(count) => count.parse()?,
        })
    }

    fn event(&mut self, id: NodeId, event: Event) {
        self.cluster.post(id, event);
        self.cluster.pass(id);
    }

    /// A pass takes in what was asked; says what each ticket was told in it.
    fn asked(&mut self, id: NodeId, tickets: &[Ticket]) -> Vec<String> {
        self.cluster.pass(id);
        let told = |ticket: &Ticket| match self.cluster.answer(*ticket) {
            Some(answer) => format!("#{}: {}", ticket.0, cluster::answer(answer)),
            None => format!("#{} waits", ticket.0),
        };
        tickets.iter().map(told).collect()
    }

    /// One line per node and shard.
    fn status(&self) -> Vec<String> {
        let (cluster, mut lines) = (&self.cluster, Vec::new());
        for id in cluster.nodes() {
            if !cluster.is_up(id) {
                lines.push(format!("n{id} is down"));
                continue;
            }
            for shard in cluster.shard_ids() {
                let (role, group) =
                    (cluster.role(id, shard), &cluster.replica(id, shard).expect("it runs").group);
                let log = &group.raw.raft.raft_log;
                lines.push(format!(
                    "{} of s{shard}, log {}..{}, committed {}, applied {}{}",
                    role.expect("it runs"),
                    log.first_index(),
                    log.last_index(),
                    log.committed,
                    group.applied.index,
                    if group.quarantined.is_some() { ", quarantined" } else { "" },
                ));
            }
        }
        lines
    }
}

/// The cluster that options describe.
fn bootstrapped(options: &[(String, String)]) -> Result<Cluster, Box<dyn Error>> {
    let (mut nodes, mut shards, mut config) = (3, 1, config());
    for (key, value) in options {
        match key.as_str() {
            "nodes" => nodes = value.parse()?,
            "shards" => shards = value.parse()?,
            "lease" => config.reads.lease = value == "on",
            "balance" => config.raft.balance_leaders = value == "on",
            "inflight_writes" => config.raft.inflight_writes_max = value.parse()?,
            "entry_bytes" => config.raft.entry_bytes_max = value.parse()?,
            "log_bytes" => config.log.bytes_per_shard_max = value.parse()?,
            "cache_bytes" => config.log.cache_bytes_max = value.parse()?,
            other => return Err(format!("no option {other:?}").into()),
        }
    }
    Ok(Cluster::new(nodes, shards, config))
}

/// A lane by its name.
fn lane(name: &str) -> Result<Lane, String> {
    let of = |lane: &Lane| format!("{lane:?}").eq_ignore_ascii_case(name);
    Lane::ALL
        .into_iter()
        .find(of)
        .ok_or_else(|| format!("no lane {name:?}; there are {:?}", Lane::ALL))
}

/// A change of the first user shard's members, as a script writes it.
fn change(
    expected: Epoch,
    transition: &str,
    members: &[(String, String)],
) -> Result<Change, Box<dyn Error>> {
    let transition = match transition {
        "simple" => Transition::Simple,
        "joint" => Transition::EnterJoint,
        other => return Err(format!("no transition {other:?}").into()),
    };
    let member = |(kind, node): &(String, String)| -> Result<_, Box<dyn Error>> {
        let kind = match &**kind {
            "voter" => ChangeKind::Voter,
            "learner" => ChangeKind::Learner,
            "remove" => ChangeKind::Remove,
            other => return Err(format!("nobody becomes {other:?}").into()),
        };
        let node: NodeId = node.parse()?;
        Ok(MemberChange { kind, replica: ReplicaId(SHARD.0 * 10 + node.0), node })
    };
    let members = members.iter().map(member).collect::<Result<_, _>>()?;
    Ok(Change { operation: OperationId(1), expected, transition, members })
}
