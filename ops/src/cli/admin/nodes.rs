//! `flotilla node`: lists, one node with its disk, and orders.

use super::{bytes, items, or_dash, order, shown, typed, word};
use crate::admin::{DiskView, NodeView};
use crate::cli::client::{Client, Request};
use crate::cli::console::Console;
use crate::cli::failure::Failure;
use flotilla_router::NodeId;
use http::Method;
use serde_json::Value;
use std::time::Duration;

/// What to do with nodes.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
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

impl Command {
    /// Whether it changes anything in the cluster.
    pub(in crate::cli) fn is_write(&self) -> bool {
        !matches!(self, Self::List | Self::Show { .. })
    }
}

/// Carries it out.
pub(in crate::cli) async fn run(
    command: Command,
    client: &Client,
    console: &mut Console,
) -> Result<(), Failure> {
    match command {
        Command::List => {
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
        Command::Show { id } => {
            let reply = client.call(Request::get(format!("/v1/admin/nodes/{id}"))).await?;
            shown::<NodeView>(&reply, "node", console, show_node)
        }
        Command::Drain { id } => {
            order(
                Request::new(Method::POST, format!("/v1/admin/nodes/{id}/drain")),
                client,
                console,
            )
            .await
        }
        Command::Remove { id } => {
            order(Request::new(Method::DELETE, format!("/v1/admin/nodes/{id}")), client, console)
                .await
        }
    }
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
