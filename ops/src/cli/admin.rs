//! `flotilla shard` and `flotilla node`: what the admin API shows, as tables, and orders.
//!
//! With `--json` the server's answers are printed as they came; of lists, one object per line. An
//! order that the server does not have yet is sent all the same: the server says so (exit code 1),
//! and a newer server carries it out.

use super::client::{Client, Reply, Request};
use super::console::Console;
use super::failure::Failure;
use super::key;
use crate::admin::{
    DiskView, Explanation, NodeView, RangeView, ReplicaState, ReplicaView, ShardView, Transfer,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flotilla_router::{NodeId, ShardId};
use http::Method;
use http::header::IF_MATCH;
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::fmt::Display;
use std::time::Duration;

/// What to do with shards.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ShardCommand {
    /// Lists every shard: range, leader, replicas, size
    #[command(after_help = "Example:\n  flotilla shard list")]
    List,
    /// Shows one shard and the progress of its replicas
    #[command(
        after_help = "Examples:\n  flotilla shard show 3\n  flotilla shard show 3 --hash -e \
                      http://127.0.0.1:7002"
    )]
    Show {
        /// The shard
        id: ShardId,
        /// Works out the state hash of the replica on the node that answers; reads all of its data
        #[arg(long)]
        hash: bool,
    },
    /// Says where a key lives, and why there
    #[command(after_help = "Example:\n  flotilla shard explain user/42")]
    Explain {
        /// The key
        key: OsString,
        /// %XX in the key stands for any byte
        #[arg(long)]
        escaped: bool,
    },
    /// Hands a shard's leadership to the replica on another node
    #[command(after_help = "Example:\n  flotilla shard transfer 3 --to 2")]
    Transfer {
        /// The shard
        id: ShardId,
        /// The node that shall lead it
        #[arg(long, value_name = "NODE")]
        to: NodeId,
        /// Only if the shard is at this epoch, as show prints it
        #[arg(long, value_name = "EPOCH")]
        if_match: Option<String>,
        /// Only shows what would happen
        #[arg(long)]
        dry_run: bool,
    },
    /// Splits a shard at a key, or in its middle (the server does not have it yet)
    #[command(after_help = "Example:\n  flotilla shard split 3 --at m")]
    Split {
        /// The shard
        id: ShardId,
        /// The first key of the new shard
        #[arg(long, value_name = "KEY")]
        at: Option<OsString>,
        /// %XX in the key stands for any byte
        #[arg(long)]
        escaped: bool,
    },
    /// Merges a shard with its right neighbour (the server does not have it yet)
    #[command(after_help = "Example:\n  flotilla shard merge 3")]
    Merge {
        /// The shard
        id: ShardId,
    },
    /// Moves a shard to another set of nodes (the server does not have it yet)
    #[command(after_help = "Example:\n  flotilla shard move 3 --voters 1,2,4")]
    Move {
        /// The shard
        id: ShardId,
        /// The nodes that vote afterwards
        #[arg(long, value_name = "NODES", required = true)]
        #[arg(value_delimiter = ',', value_parser = super::in_list)]
        voters: Vec<NodeId>,
        /// The nodes that only receive the log afterwards
        #[arg(long, value_name = "NODES", value_delimiter = ',', value_parser = super::in_list)]
        learners: Vec<NodeId>,
    },
}

/// What to do with nodes.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum NodeCommand {
    /// Lists every node: address, state, leaders, disk
    #[command(after_help = "Example:\n  flotilla node list")]
    List,
    /// Shows one node
    #[command(after_help = "Example:\n  flotilla node show 2")]
    Show {
        /// The node
        id: NodeId,
    },
    /// Empties a node, so that it can be removed (the server does not have it yet)
    #[command(after_help = "Example:\n  flotilla node drain 2")]
    Drain {
        /// The node
        id: NodeId,
    },
    /// Takes a node out of the cluster for good (the server does not have it yet)
    #[command(after_help = "Example:\n  flotilla node remove 2")]
    Remove {
        /// The node
        id: NodeId,
    },
}

/// Carries it out.
pub(super) async fn run_shard(
    command: ShardCommand,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        ShardCommand::List => list_shards(client, console).await,
        ShardCommand::Show { id, hash } => {
            let query = if hash { "?hash=1" } else { "" };
            let reply = client.call(Request::get(format!("/v1/admin/shards/{id}{query}"))).await?;
            shown::<ShardView>(&reply, "shard", console, show_shard)
        }
        ShardCommand::Explain { key, escaped } => {
            let key = key::encode(&key::parse(&key, escaped)?);
            let reply = client.call(Request::get(format!("/v1/admin/explain/{key}"))).await?;
            shown::<Explanation>(&reply, "explanation", console, |explanation, console| {
                for sentence in &explanation.why {
                    console.line(sentence)?;
                }
                console.line("")?;
                show_shard(&explanation.shard, console)
            })
        }
        ShardCommand::Transfer { id, to, if_match, dry_run } => {
            let query = if dry_run { "?dry_run=1" } else { "" };
            let mut request =
                Request::new(Method::POST, format!("/v1/admin/shards/{id}/leader{query}"))
                    .json(&json!({ "node": to }));
            if let Some(epoch) = &if_match {
                request = request.header(IF_MATCH, &format!("\"{}\"", epoch.trim_matches('"')))?;
            }
            let reply = client.call(request).await?;
            shown::<Transfer>(&reply, "answer to a transfer", console, show_transfer)
        }
        ShardCommand::Split { id, at, escaped } => {
            let mut body = Map::new();
            if let Some(at) = at {
                let key = key::parse(&at, escaped)?;
                match String::from_utf8(key) {
                    Ok(text) => body.insert("key".into(), text.into()),
                    Err(error) => {
                        body.insert("key_b64".into(), STANDARD.encode(error.as_bytes()).into())
                    }
                };
            }
            order(
                Request::new(Method::POST, format!("/v1/admin/shards/{id}/split")).json(&body),
                client,
                console,
            )
            .await
        }
        ShardCommand::Merge { id } => {
            order(
                Request::new(Method::POST, format!("/v1/admin/shards/{id}/merge")).json(&json!({})),
                client,
                console,
            )
            .await
        }
        ShardCommand::Move { id, voters, learners } => {
            let body = json!({ "voters": voters, "learners": learners });
            order(
                Request::new(Method::PUT, format!("/v1/admin/shards/{id}/replicas")).json(&body),
                client,
                console,
            )
            .await
        }
    }
}

/// Carries it out.
pub(super) async fn run_node(
    command: NodeCommand,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        NodeCommand::List => {
            let reply = client.call(Request::get("/v1/admin/nodes")).await?;
            let mut answer: Value = reply.json("list of nodes", false)?;
            let nodes = items(&mut answer, "nodes")?;
            if console.json {
                return nodes.iter().try_for_each(|node| console.value(node));
            }
            let nodes = typed::<NodeView>(nodes, "list of nodes")?;
            let names = [
                "NODE",
                "STATE",
                "ADDRESS",
                "HTTP",
                "LEADERS",
                "REPLICAS",
                "LAG",
                "RTT",
                "DISK USED",
                "DISK FREE",
                "UP FOR",
            ];
            console.table(&names, nodes.iter().map(node_row).collect())
        }
        NodeCommand::Show { id } => {
            let reply = client.call(Request::get(format!("/v1/admin/nodes/{id}"))).await?;
            shown::<NodeView>(&reply, "node", console, show_node)
        }
        NodeCommand::Drain { id } => {
            order(
                Request::new(Method::POST, format!("/v1/admin/nodes/{id}/drain")),
                client,
                console,
            )
            .await
        }
        NodeCommand::Remove { id } => {
            order(Request::new(Method::DELETE, format!("/v1/admin/nodes/{id}")), client, console)
                .await
        }
    }
}

/// Gives an order whose answer has no form yet.
async fn order(request: Request, client: &Client, console: &mut Console) -> Result<(), Failure> {
    let reply = client.call(request).await?;
    match reply.header("location") {
        Some(location) if !console.json => console.line(&format!("under way: {location}")),
        _ => console.line(String::from_utf8_lossy(&reply.body).trim()),
    }
}

/// Prints an answer: as it came with `--json`, otherwise as `show` does.
fn shown<T: serde::de::DeserializeOwned>(
    reply: &Reply,
    what: &str,
    console: &mut Console,
    show: impl FnOnce(&T, &mut Console) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if console.json {
        return console.value(&reply.json(what, false)?);
    }
    show(&reply.json(what, false)?, console)
}

/// The objects of a list.
fn items(answer: &mut Value, name: &str) -> Result<Vec<Value>, Failure> {
    match answer.get_mut(name).map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(Failure::unreadable("list", format!("no {name}"), false)),
    }
}

fn typed<T: serde::de::DeserializeOwned>(items: Vec<Value>, what: &str) -> Result<Vec<T>, Failure> {
    items
        .into_iter()
        .map(|item| {
            serde_json::from_value(item).map_err(|error| Failure::unreadable(what, error, false))
        })
        .collect()
}

async fn list_shards(client: &Client, console: &mut Console) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut query = "?limit=1000".to_owned();
    loop {
        let reply = client.call(Request::get(format!("/v1/admin/shards{query}"))).await?;
        let mut answer: Value = reply.json("list of shards", false)?;
        let shards = items(&mut answer, "shards")?;
        if console.json {
            shards.iter().try_for_each(|shard| console.value(shard))?;
        } else {
            rows.extend(typed::<ShardView>(shards, "list of shards")?.iter().map(shard_row));
        }
        match answer.get("cursor").and_then(Value::as_str) {
            // Each page must go on behind the one before, or we would walk for ever.
            Some(cursor) if !query.ends_with(&format!("cursor={cursor}")) => {
                query = format!("?limit=1000&cursor={cursor}")
            }
            _ => break,
        }
    }
    if console.json {
        return Ok(());
    }
    console.table(
        &[
            "SHARD", "START", "END", "EPOCH", "LEADER", "REPLICAS", "TERM", "APPLIED", "LOG",
            "DATA", "STATE",
        ],
        rows,
    )
}

fn shard_row(shard: &ShardView) -> Vec<String> {
    let replicas: Vec<String> =
        shard.replicas.iter().map(|replica| replica.node.to_string()).collect();
    let (start, end) =
        if shard.id.is_meta() { ("(meta)".into(), "-".into()) } else { bounds(&shard.range) };
    vec![
        shard.id.to_string(),
        start,
        end,
        shard.epoch.to_string(),
        or_dash(shard.leader),
        replicas.join(","),
        or_dash(shard.term),
        or_dash(shard.applied),
        or_dash(shard.log_bytes.map(bytes)),
        or_dash(shard.size_bytes.map(bytes)),
        if shard.awake { "awake" } else { "asleep" }.into(),
    ]
}

fn show_shard(shard: &ShardView, console: &mut Console) -> Result<(), Failure> {
    let (start, end) = bounds(&shard.range);
    let keys = if shard.id.is_meta() {
        "the cluster's own keys".into()
    } else {
        format!("keys from {start} to {end}")
    };
    console.line(&format!("shard {} · epoch {} · {keys}", shard.id, shard.epoch))?;
    let leader = shard
        .leader
        .map_or_else(|| "no leader known".to_owned(), |node| format!("led by node {node}"));
    console.line(&format!(
        "{leader} in term {} · {}",
        or_dash(shard.term),
        if shard.awake { "awake" } else { "asleep" }
    ))?;
    console.line(&format!(
        "log {} to {}, {} · committed {} · applied {} · data {}",
        or_dash(shard.log_first),
        or_dash(shard.last),
        or_dash(shard.log_bytes.map(bytes)),
        or_dash(shard.committed),
        or_dash(shard.applied),
        or_dash(shard.size_bytes.map(bytes)),
    ))?;
    if let Some(local) = &shard.local {
        let hash = local.hash.as_deref().map_or_else(String::new, |hash| format!(" · hash {hash}"));
        let keys = local.keys.map_or_else(String::new, |keys| format!(" · {keys} keys"));
        console.line(&format!(
            "on node {}, which answers: applied {}{keys}{hash}",
            local.node, local.applied
        ))?;
    }
    console.line("")?;
    let names = ["NODE", "REPLICA", "ROLE", "STATE", "MATCH", "NEXT", "LAG", "ACTIVE", "PROGRESS"];
    console.table(&names, shard.replicas.iter().map(replica_row).collect())
}

fn replica_row(replica: &ReplicaView) -> Vec<String> {
    // A leader's own progress says nothing.
    let progress = replica.progress.filter(|_| replica.state != ReplicaState::Leader);
    vec![
        replica.node.to_string(),
        replica.replica.to_string(),
        word(&replica.role),
        word(&replica.state),
        or_dash(replica.matched),
        or_dash(replica.next),
        or_dash(replica.lag),
        or_dash(replica.recent_active.map(|active| if active { "yes" } else { "no" })),
        or_dash(progress.map(|progress| word(&progress))),
    ]
}

fn show_transfer(transfer: &Transfer, console: &mut Console) -> Result<(), Failure> {
    let verb = if transfer.dry_run { "would go" } else { "went" };
    let (before, after) = (&transfer.quorum_before, &transfer.quorum_after);
    console.line(&format!(
        "shard {}: leadership {verb} from node {} to node {}",
        transfer.shard.id,
        or_dash(transfer.leader_before),
        transfer.leader_after
    ))?;
    console.line(&format!(
        "quorum before: {} of {} voters needed, {} up; after: {} of {}, {} up",
        before.needed, before.voters, before.up, after.needed, after.voters, after.up
    ))
}

fn node_row(node: &NodeView) -> Vec<String> {
    let disk = node.disk.as_ref();
    vec![
        node.id.to_string(),
        word(&node.state),
        node.address.clone(),
        or_dash(node.http.as_ref()),
        node.leaders.to_string(),
        node.replicas.to_string(),
        or_dash(node.apply_lag),
        or_dash(node.rtt_seconds.map(|seconds| format!("{:.2} ms", seconds * 1e3))),
        or_dash(disk.map(|disk| bytes(disk.used_bytes))),
        or_dash(disk.map(|disk| bytes(disk.free_bytes))),
        or_dash(node.uptime_seconds.map(|seconds| {
            humantime::format_duration(Duration::from_secs(seconds.max(0.0) as u64))
        })),
    ]
}

fn show_node(node: &NodeView, console: &mut Console) -> Result<(), Failure> {
    let disk = |DiskView { used_bytes, free_bytes, capacity_bytes }: &DiskView| {
        format!(
            "{} used by Flotilla, {} free of {}",
            bytes(*used_bytes),
            bytes(*free_bytes),
            bytes(*capacity_bytes)
        )
    };
    let row = node_row(node);
    let pairs = [
        ("node", node.id.to_string()),
        ("state", word(&node.state)),
        ("address", node.address.clone()),
        ("http", row[3].clone()),
        ("version", or_dash(node.version.as_ref())),
        ("incarnation", or_dash(node.incarnation)),
        ("leaders", row[4].clone()),
        ("replicas", row[5].clone()),
        ("apply lag", row[6].clone()),
        ("round trip", row[7].clone()),
        ("disk", or_dash(node.disk.as_ref().map(disk))),
        ("up for", row[10].clone()),
    ];
    pairs.iter().try_for_each(|(name, value)| console.line(&format!("{name:<12} {value}")))
}

/// A value, or a dash where nobody knows it.
fn or_dash(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// An enum's value as it stands in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// A size as people read it.
fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// The ends of a range as people read them; keys that are no text are escaped.
fn bounds(range: &RangeView) -> (String, String) {
    let decode = |text: &Option<String>, base64: &Option<String>| {
        let bytes = base64.as_ref().and_then(|base64| STANDARD.decode(base64).ok());
        bytes
            .or_else(|| text.as_ref().map(|text| text.as_bytes().to_vec()))
            .map(|bytes| key::show(&bytes, false))
    };
    let start = decode(&range.start, &range.start_b64).filter(|start| !start.is_empty());
    (
        start.unwrap_or_else(|| "(first)".into()),
        decode(&range.end, &range.end_b64).unwrap_or_else(|| "(last)".into()),
    )
}
