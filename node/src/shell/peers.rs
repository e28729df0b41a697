//! What comes from other nodes: frames for the core, forwarded requests, snapshots.

use super::Engine;
use super::admin::Admin;
use super::mailbox::{Mail, Mailbox};
use super::service::Service;
use super::snapshots::Snapshots;
use crate::core::Event;
use crate::core::wire::{self, Item};
use bytes::Bytes;
use flotilla_ops::Metrics;
use flotilla_router::call::{self, Forwarded};
use flotilla_router::cure::NO_WAY_BACK;
use flotilla_router::{Incarnation, NodeId, Refusal, Reply, Request, ShardId, Throttle};
use flotilla_storage::fatal;
use flotilla_transport::{Handler, Identity, Lane, Responder, Staging};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Who answers what other nodes ask.
pub struct Answerers {
    /// About keys.
    pub service: Arc<Service>,
    /// About the node and its shards.
    pub admin: Arc<Admin>,
}

/// Takes what peers send.
pub struct Peers {
    /// Where known data directories are kept.
    pub engine: Arc<Engine>,
    /// The nodes of the cluster, as this one was told.
    pub members: BTreeSet<NodeId>,
    /// When it was last said that a peer sends what makes no sense: frames, requests.
    pub complaints: [Throttle; 2],
    /// With which data directory each node was met.
    pub known_directories: Mutex<BTreeMap<NodeId, u64>>,
    /// The loop.
    pub mailbox: Mailbox,
    /// Staging.
    pub snapshots: Arc<Snapshots>,
    /// Who answers forwarded requests; set once the node is complete.
    pub answerers: OnceLock<Answerers>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where requests run.
    pub runtime: Handle,
}

impl Peers {
    /// A line about what a peer sends, but only now and then: it decides how often there is reason
    /// to.
    fn complain(&self, kind: usize, from: NodeId, error: &dyn Display, what: &str) {
        if let Some(unsaid) = self.complaints[kind].pass(Instant::now()) {
            tracing::warn!(%from, %error, unsaid, "{what}");
        }
    }
}

/// Whether a node is one of those that this one was told of.
fn check_member(members: &BTreeSet<NodeId>, node: NodeId) -> Result<(), String> {
    if members.contains(&node) {
        return Ok(());
    }
    Err(format!(
        "node {node} is not in `peers`: its certificate is good, but a node talks only to those \
         that it was told of; if it is one of the cluster's first nodes, put it back into `peers` \
         on every node that lacks it, and start those again; this version takes in no others"
    ))
}

impl Handler for Peers {
    fn admit(&self, identity: Identity) -> Result<(), String> {
        let Identity { node, directory, .. } = identity;
        check_member(&self.members, node)?;
        let mut known = self.known_directories.lock().expect("nothing panics with it held");
        match known.get(&node) {
            Some(known) if *known == directory => {}
            Some(_) => {
                return Err(format!(
                    "node {node} comes with another data directory than the one that it was met \
                     with: it has forgotten what it promised, and would endanger acknowledged \
                     writes; give it its old directory back; {NO_WAY_BACK}"
                ));
            }
            None => {
                known.insert(node, directory);
                let engine = self.engine.clone();
                self.runtime.spawn_blocking(move || {
                    fatal::or_abort(flotilla_storage::remember_directory(
                        &*engine, node, directory,
                    ));
                });
            }
        }
        Ok(())
    }

    fn frame(&self, from: NodeId, _lane: Lane, frame: Bytes) {
        let (mut events, bytes) = (Vec::new(), frame.len());
        let decoded = wire::decode_frame(frame, |item| {
            events.push(match item {
                Item::Message(envelope) => Event::Message { from, envelope: *envelope },
                Item::Beat(beat) => Event::Beat { from, beat },
            });
        });
        if let Err(error) = decoded {
            self.metrics.malformed_messages.inc();
            self.complain(0, from, &error, "a frame from a peer makes no sense");
        }
        // Dropped when too much waits, as the network may do.
        self.mailbox.offer(Mail::Events { events, bytes });
    }

    fn request(&self, from: NodeId, request: Bytes, responder: Responder) {
        self.metrics.forwarded_received.inc();
        let decoded = call::decode::<Forwarded>("forwarded request", &request)
            .map_err(|error| error.to_string());
        let forwarded = match decoded.and_then(Forwarded::checked) {
            Ok(forwarded) => forwarded,
            Err(why) => {
                self.complain(1, from, &why, "a request from a peer makes no sense");
                self.metrics.malformed_messages.inc();
                let refusal: Result<Reply, Refusal> = Err(Refusal::Invalid { why });
                return responder.respond(call::encode(&refusal));
            }
        };
        let Some(Answerers { service, admin }) = self.answerers.get() else {
            let refusal: Result<Reply, Refusal> = Err(Refusal::ShuttingDown);
            return responder.respond(call::encode(&refusal));
        };
        // Its own way back takes time, too; the asker counts for itself.
        let deadline = forwarded.deadline(Instant::now());
        if let Request::Admin(question) = forwarded.request {
            let admin = admin.clone();
            self.runtime.spawn(async move {
                let answer =
                    tokio::time::timeout_at(deadline.into(), admin.answer_peer(&question)).await;
                let unknown = Err(Refusal::OutcomeUnknown { shard: ShardId::META });
                super::forward::respond(responder, &answer.unwrap_or(unknown));
            });
            return;
        }
        let service = service.clone();
        if let Some((forwarded, responder)) = service.answer_at_once(forwarded, responder) {
            self.runtime.spawn(async move {
                let response = service.answer_forwarded(forwarded, deadline).await;
                super::forward::respond(responder, &response);
            });
        }
    }

    fn reachable(&self, node: NodeId, incarnation: Incarnation) {
        self.mailbox.report(Event::NodeReachable { node, incarnation });
    }

    fn unreachable(&self, node: NodeId) {
        self.mailbox.report(Event::NodeUnreachable { node });
    }

    fn stage_snapshot(&self, _from: NodeId, header: &Bytes) -> Result<Staging, String> {
        self.snapshots.stage(header.clone())
    }

    fn snapshot_staged(
        &self,
        from: NodeId,
        header: Bytes,
        dir: PathBuf,
        done: oneshot::Sender<Result<(), String>>,
    ) {
        // Reads every file once more.
        let snapshots = self.snapshots.clone();
        self.runtime.spawn_blocking(move || snapshots.staged(from, header, dir, done));
    }

    fn snapshot_failed(&self, from: NodeId, _header: Bytes, dir: PathBuf) {
        self.metrics.snapshots_failed.inc();
        tracing::info!(%from, "a snapshot from a peer broke off");
        self.snapshots.clear_staged(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_alone_lets_nobody_in() {
        let members = BTreeSet::from([NodeId(1), NodeId(3)]);
        assert_eq!(check_member(&members, NodeId(3)), Ok(()));
        let why = check_member(&members, NodeId(9)).unwrap_err();
        assert!(why.contains("node 9 is not in `peers`") && why.contains("put it back"), "{why}");
    }
}
