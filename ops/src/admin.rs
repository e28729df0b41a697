//! What the admin API shows, as it stands in JSON: the answers of [`crate::Admin`], one struct
//! each.
//!
//! Written for the operator who asks: is everything up, does every shard have a leader, who is
//! behind and by how much, where is the disk going. Member names are `snake_case`; ids are numbers;
//! epochs are objects, and `"membership.range"` in ETags; durations are in seconds. What nobody
//! knows (a node that is down, a replica elsewhere) is `null`, never a made-up zero.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flotilla_router::{ClusterId, Epoch, Incarnation, KeyRange, NodeId, ReplicaId, Role, ShardId};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

/// `GET /v1/admin/cluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The cluster's id: 16 hexadecimal digits.
    pub id: ClusterId,
    /// The version of the node that answers.
    pub version: String,
    /// The node that answers.
    pub answered_by: NodeId,
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them are up, seen from the node that answers.
    pub nodes_up: usize,
    /// How many shards there are, the meta shard not counted.
    pub shards: usize,
    /// How many of them have no leader that the answering node knows of.
    pub shards_without_leader: usize,
    /// How many shards each node leads, as far as is known, in the order of nodes.
    pub leaders_per_node: Vec<LeaderCount>,
    /// Running operations. Always empty so far.
    pub operations: Vec<serde_json::Value>,
}

/// How many shards a node leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderCount {
    /// The node.
    pub node: NodeId,
    /// The shards that it leads.
    pub leaders: usize,
}

/// Whether a node is there, seen from the node that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It is connected, or it is the one that answers.
    Up,
    /// It was connected, or should be, and is not.
    Down,
    /// Nobody tried yet.
    Unknown,
}

/// `GET /v1/admin/nodes/{id}`, and an item of `GET /v1/admin/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Where other nodes reach it (QUIC).
    pub address: String,
    /// Where clients reach it (HTTP), where that is known.
    pub http: Option<String>,
    /// Whether it is there.
    pub state: NodeState,
    /// Which start of the node this is, where it is known.
    pub incarnation: Option<Incarnation>,
    /// Its version, where it is known.
    pub version: Option<String>,
    /// Replicas that it holds, by the descriptors.
    pub replicas: usize,
    /// Shards that it leads, as far as is known.
    pub leaders: usize,
    /// The file system of its data, where it is known.
    pub disk: Option<DiskView>,
    /// Committed entries that it has not applied, over all its replicas, where it is known.
    pub apply_lag: Option<u64>,
    /// The round trip to it, from the node that answers.
    pub rtt_seconds: Option<f64>,
    /// Since when the process runs, in seconds, where it is known.
    pub uptime_seconds: Option<f64>,
}

/// A file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// What Flotilla's data takes.
    pub used_bytes: u64,
    /// What is free to it.
    pub free_bytes: u64,
    /// What the file system holds in all.
    pub capacity_bytes: u64,
}

/// A range of keys in JSON: each a string where it is UTF-8, otherwise base64 under a name of its
/// own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RangeView {
    /// The first key, where it is UTF-8.
    #[serde(default)]
    pub start: Option<String>,
    /// The first key, where it is not.
    #[serde(default)]
    pub start_b64: Option<String>,
    /// The first key above the range, where there is one and it is UTF-8. `null`, and no `end_b64`,
    /// for "to the end".
    #[serde(default)]
    pub end: Option<String>,
    /// The first key above the range, where there is one and it is not UTF-8.
    #[serde(default)]
    pub end_b64: Option<String>,
}

impl Serialize for RangeView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        match &self.start_b64 {
            Some(start) => map.serialize_entry("start_b64", start)?,
            None => map.serialize_entry("start", self.start.as_deref().unwrap_or_default())?,
        }
        match &self.end_b64 {
            Some(end) => map.serialize_entry("end_b64", end)?,
            None => map.serialize_entry("end", &self.end)?,
        }
        map.end()
    }
}

impl From<&KeyRange> for RangeView {
    fn from(range: &KeyRange) -> Self {
        let (start, start_b64) = text_or_base64(&range.start);
        let (end, end_b64) = range.end.as_ref().map_or((None, None), |end| text_or_base64(end));
        Self { start, start_b64, end, end_b64 }
    }
}

/// The two ways in which bytes stand in JSON; exactly one is taken.
pub fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// The bytes that stand in JSON in one of the two ways; `None` where both do, or neither, or the
/// base64 is none.
pub fn bytes_of(text: Option<&str>, base64: Option<&str>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), None) => Some(text.as_bytes().to_vec()),
        (None, Some(base64)) => STANDARD.decode(base64).ok(),
        _ => None,
    }
}

/// What a replica is doing in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It leads.
    Leader,
    /// It follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It asks whether it would get votes.
    PreCandidate,
    /// Not known to the node that answers.
    Unknown,
}

/// How a leader sends to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressState {
    /// One message at a time, until it is known where the replica is.
    Probe,
    /// A stream of entries.
    Replicate,
    /// A snapshot is under way.
    Snapshot,
}

/// One replica of a shard. Its progress is known to the shard's leader alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// The node that holds it.
    pub node: NodeId,
    /// Its Raft id.
    pub replica: ReplicaId,
    /// What it may do.
    pub role: Role,
    /// What it is doing.
    pub state: ReplicaState,
    /// The last entry that the leader knows it to hold.
    #[serde(rename = "match")]
    pub matched: Option<u64>,
    /// The next entry that the leader will send it.
    pub next: Option<u64>,
    /// How many entries it is behind the leader's last.
    pub lag: Option<u64>,
    /// Whether the leader heard of it within the last election timeout.
    pub recent_active: Option<bool>,
    /// How the leader sends to it.
    pub progress: Option<ProgressState>,
}

/// The replica that the answering node holds itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalView {
    /// The node that answers.
    pub node: NodeId,
    /// Its replica's Raft id.
    pub replica: ReplicaId,
    /// What it may do.
    pub role: Role,
    /// What it is doing.
    pub state: ReplicaState,
    /// The last entry that it applied.
    pub applied: u64,
    /// The hash of its state at `applied`, 16 hexadecimal digits, where it was asked for: equal on
    /// every replica at the same applied index.
    pub hash: Option<String>,
    /// Keys that it holds, where that was counted.
    pub keys: Option<u64>,
}

/// `GET /v1/admin/shards/{id}`, and an item of `GET /v1/admin/shards`. Its ETag is the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardView {
    /// Its id.
    pub id: ShardId,
    /// The keys that it owns: `start`, `end` (or `start_b64`, `end_b64`).
    #[serde(flatten)]
    pub range: RangeView,
    /// How often it changed.
    pub epoch: Epoch,
    /// The node that leads it, as far as is known.
    pub leader: Option<NodeId>,
    /// Its term, where the answering node knows it.
    pub term: Option<u64>,
    /// The last committed entry.
    pub committed: Option<u64>,
    /// The last applied entry, of the replica that tells.
    pub applied: Option<u64>,
    /// The last entry of the log.
    pub last: Option<u64>,
    /// The first entry that the log still has.
    pub log_first: Option<u64>,
    /// What the log takes.
    pub log_bytes: Option<u64>,
    /// What the data takes, about.
    pub size_bytes: Option<u64>,
    /// Writes per second, of late.
    pub writes_per_second: Option<f64>,
    /// Reads per second, of late.
    pub reads_per_second: Option<f64>,
    /// Its members.
    pub replicas: Vec<ReplicaView>,
    /// Whether its group ticks; an idle one sleeps and costs nothing.
    pub awake: bool,
    /// The replica on the node that answers, if it holds one.
    pub local: Option<LocalView>,
}

/// `GET /v1/admin/explain/{key}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The key, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// The key, where it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_b64: Option<String>,
    /// The shard that owns it.
    pub shard: ShardView,
    /// The node that answers.
    pub answered_by: NodeId,
    /// Why it is where it is, sentence by sentence.
    pub why: Vec<String>,
}

/// How many voters a shard has, needs, and can reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Voters.
    pub voters: usize,
    /// How many of them must agree.
    pub needed: usize,
    /// How many of them are up, seen from the node that answers.
    pub up: usize,
}

/// `POST /v1/admin/shards/{id}/leader`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Whether it was only shown.
    pub dry_run: bool,
    /// Who led before.
    pub leader_before: Option<NodeId>,
    /// Who leads now, or would.
    pub leader_after: NodeId,
    /// The quorum before.
    pub quorum_before: Quorum,
    /// The quorum after.
    pub quorum_after: Quorum,
    /// The shard as it is now; its members stand beside these.
    #[serde(flatten)]
    pub shard: ShardView,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn ranges_stand_in_json_as_text_or_base64() {
        let json = |range| serde_json::to_string(&RangeView::from(&range)).unwrap();
        assert_eq!(json(KeyRange::new("", None)), r#"{"start":"","end":null}"#);
        assert_eq!(json(KeyRange::new("ä", Some("m".into()))), r#"{"start":"ä","end":"m"}"#);
        let odd = KeyRange::new(&b"\xff"[..], Some(Bytes::from_static(b"\xff\xfe")));
        assert_eq!(json(odd), r#"{"start_b64":"/w==","end_b64":"//4="}"#);
    }
}
