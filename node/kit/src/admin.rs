//! What the nodes of a fleet show of themselves: shards and their leaders, logs that were cut,
//! replicas that are equal.

use super::{Fleet, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The meta shard, which holds no keys of users.
const META: u64 = 1;

/// Bytes that an answer shows as text, or in base64 where they are none.
pub(crate) fn bytes_of(shown: &Value, name: &str) -> Option<Vec<u8>> {
    match (shown[name].as_str(), shown[format!("{name}_b64")].as_str()) {
        (Some(text), _) => Some(text.as_bytes().to_vec()),
        (None, base64) => base64.map(|text| BASE64.decode(text).unwrap()),
    }
}

/// A key, or what it begins with, as it stands in a path.
pub(crate) fn escaped(key: &[u8]) -> String {
    key.iter().map(|byte| format!("%{byte:02X}")).collect()
}

impl Fleet {
    /// What a node shows of each shard, the meta shard among them; `None` where it does not answer.
    fn shards_shown(&self, via: u64) -> Option<Vec<(u64, Value)>> {
        let answer = self.client.send(via, "GET", "/v1/admin/shards?limit=1000", &[], None).ok()?;
        let list = answer.ok()?.json();
        let shards = list["shards"].as_array()?.iter();
        Some(shards.map(|shard| (shard["id"].as_u64().unwrap(), shard.clone())).collect())
    }

    fn shards(&self, via: u64) -> Vec<(u64, Value)> {
        self.shards_shown(via).unwrap_or_else(|| panic!("node {via} does not list its shards"))
    }

    /// For each shard that holds keys: its id, and what keys begin with that are its own and have
    /// this name in them.
    pub(crate) fn shard_prefixes(&self, via: u64, name: &str) -> Vec<(u64, Vec<u8>)> {
        let prefix = |(id, shard): (u64, Value)| {
            let (start, end) = (bytes_of(&shard, "start").unwrap(), bytes_of(&shard, "end"));
            // A shard that ends at "/" needs something smaller.
            let keys =
                ["/", "!"].map(|mark| [&start, mark.as_bytes(), name.as_bytes(), b"/"].concat());
            let key = keys.into_iter().find(|key| end.as_ref().is_none_or(|end| key < end));
            let key = key.unwrap_or_else(|| panic!("{shard} has no room for {name}"));
            (id, key)
        };
        self.shards(via).into_iter().filter(|(id, _)| *id != META).map(prefix).collect()
    }

    /// The same as paths under `/v1/kv/`.
    pub fn shard_paths(&self, via: u64, name: &str) -> Vec<(u64, String)> {
        self.shard_prefixes(via, name)
            .into_iter()
            .map(|(id, prefix)| (id, escaped(&prefix)))
            .collect()
    }

    /// Who leads each shard, seen from one node.
    pub fn leaders(&self, via: u64) -> BTreeMap<u64, Option<u64>> {
        self.shards(via).into_iter().map(|(id, shard)| (id, shard["leader"].as_u64())).collect()
    }

    /// Waits until a node leads something; how many groups. After a restart elections fall as they
    /// may, and a node that got none is handed some by the others after a few seconds.
    pub fn wait_leading(&self, node: u64) -> u64 {
        until(&format!("node {node} leads something"), Duration::from_secs(20), || {
            let leads =
                self.leaders(node).values().filter(|leader| **leader == Some(node)).count() as u64;
            (leads > 0).then_some(leads)
        })
    }

    /// Asks for a shard to be led by a node, until it is.
    pub fn hand_over(&self, shard: u64, node: u64) {
        let (path, body) =
            (format!("/v1/admin/shards/{shard}/leader"), format!("{{\"node\":{node}}}"));
        let kind = [("content-type", "application/json")];
        until(&format!("node {node} leads shard {shard}"), Duration::from_secs(20), || {
            drop(self.client.send(node, "POST", &path, &kind, Some(body.as_bytes())));
            (self.leaders(node).get(&shard) == Some(&Some(node))).then_some(())
        });
    }

    /// The last index of every shard that holds keys, as a node has it.
    pub fn last_indexes(&self, via: u64) -> BTreeMap<u64, u64> {
        let shards = self.shards(via).into_iter().filter(|(id, _)| *id != META);
        shards.map(|(id, shard)| (id, shard["last"].as_u64().unwrap())).collect()
    }

    /// Which of these shards have cut their logs, on every one of these nodes, beyond what another
    /// node had: it can catch up with them by a snapshot only.
    pub fn cut_beyond(&self, shards: &[u64], nodes: &[u64], had: &BTreeMap<u64, u64>) -> Vec<u64> {
        let shown: Vec<BTreeMap<u64, Value>> = nodes
            .iter()
            .map(|node| self.shards_shown(*node).unwrap_or_default().into_iter().collect())
            .collect();
        let is_cut = |shard: &u64| {
            let first = |shown: &BTreeMap<u64, Value>| shown.get(shard)?["log_first"].as_u64();
            shown.iter().all(|shown| first(shown).is_some_and(|first| first > had[shard] + 1))
        };
        shards.iter().copied().filter(is_cut).collect()
    }

    /// On which nodes each shard is, the meta shard among them.
    pub fn placement(&self) -> BTreeMap<u64, Vec<u64>> {
        let shown = self
            .all()
            .into_iter()
            .find_map(|node| self.shards_shown(node))
            .expect("some node answers");
        let nodes = |shard: &Value| {
            let replicas = shard["replicas"].as_array().unwrap().iter();
            replicas.map(|replica| replica["node"].as_u64().unwrap()).collect()
        };
        shown.iter().map(|(id, shard)| (*id, nodes(shard))).collect()
    }

    /// Whether all replicas of a shard have applied the same, and all answer. Two that differ at
    /// the same index are a failure.
    pub fn is_equal(&self, shard: u64, nodes: &[u64]) -> bool {
        let path = format!("/v1/admin/shards/{shard}?hash=1");
        let shown = |node: &u64| {
            let answer = self.client.send(*node, "GET", &path, &[], None).ok()?.ok()?.json();
            let local = &answer["local"];
            Some((local["applied"].as_u64()?, local["hash"].as_str()?.to_owned()))
        };
        let Some(seen) = nodes.iter().map(shown).collect::<Option<Vec<_>>>() else { return false };
        let same = seen.iter().all(|(applied, _)| *applied == seen[0].0);
        let equal = seen.iter().all(|one| *one == seen[0]);
        assert!(
            !same || equal,
            "shard {shard}: replicas on {nodes:?} differ at the same index: {seen:?}"
        );
        same
    }

    /// Waits until all replicas of all shards have applied the same, and are equal by hash. How
    /// long that took.
    pub fn wait_equal(&self, patience: Duration) -> Duration {
        let begun = Instant::now();
        for (shard, nodes) in self.placement() {
            let what = format!("all replicas of shard {shard} are equal");
            until(&what, patience, || self.is_equal(shard, &nodes).then_some(()));
        }
        begun.elapsed()
    }
}
