//! `flotilla shard`: lists, one shard with its replicas, the reason why a key is where it is, and
//! orders.

use super::{bounds, bytes, items, or_dash, order, shown, typed, word};
use crate::admin::{Explanation, ReplicaState, ReplicaView, ShardView, Transfer};
use crate::cli::client::{Client, Request};
use crate::cli::console::Console;
use crate::cli::failure::Failure;
use crate::cli::key;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flotilla_router::{NodeId, ShardId};
use http::Method;
use http::header::IF_MATCH;
use serde_json::{Map, Value, json};
use std::ffi::OsString;

/// What to do with shards.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
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
        #[arg(value_delimiter = ',', value_parser = crate::cli::in_list)]
        voters: Vec<NodeId>,
        /// The nodes that only receive the log afterwards
        #[arg(long, value_name = "NODES")]
        #[arg(value_delimiter = ',', value_parser = crate::cli::in_list)]
        learners: Vec<NodeId>,
    },
}

impl Command {
    /// Whether it changes anything in the cluster.
    pub(in crate::cli) fn is_write(&self) -> bool {
        !matches!(self, Self::List | Self::Show { .. } | Self::Explain { .. })
    }
}

/// Carries it out.
pub(in crate::cli) async fn run(
    command: Command,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::List => list_shards(client, console).await,
        Command::Show { id, hash } => {
            let query = if hash { "?hash=1" } else { "" };
            let reply = client.call(Request::get(format!("/v1/admin/shards/{id}{query}"))).await?;
            shown::<ShardView>(&reply, "shard", console, show_shard)
        }
        Command::Explain { key, escaped } => {
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
        Command::Transfer { id, to, if_match, dry_run } => {
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
        Command::Split { id, at, escaped } => {
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
        Command::Merge { id } => {
            order(
                Request::new(Method::POST, format!("/v1/admin/shards/{id}/merge")).json(&json!({})),
                client,
                console,
            )
            .await
        }
        Command::Move { id, voters, learners } => {
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
