//! A node made of memory: three shards, `[, g)`, `[g, p)` and `[p, )`, numbered 2 to 4, over one
//! ordered map.

use bytes::Bytes;
use flotilla_ops::admin::*;
use flotilla_ops::{Admin, Check, Inspect, Kv, Ordered, Readiness};
use flotilla_router::call::Staleness;
use flotilla_router::range::successor_of_key;
use flotilla_router::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The last revision, and each key's value and revision.
type Data = (u64, BTreeMap<Bytes, (Bytes, u64)>);

#[derive(Default)]
pub(crate) struct Fake {
    data: Mutex<Data>,
    /// What a shard answers instead.
    pub(crate) faults: Mutex<HashMap<ShardId, Refusal>>,
    /// How long everything takes.
    pub(crate) delay: Mutex<Duration>,
    /// Writes that took effect.
    pub(crate) writes: AtomicUsize,
    /// Questions under way, and the most that ever were.
    under_way: AtomicUsize,
    pub(crate) under_way_max: AtomicUsize,
    pub(crate) scans: AtomicUsize,
    /// A scan shows no more items than these, as where its time is up; 0 for any number.
    pub(crate) scan_items_max: AtomicUsize,
    pub(crate) unwell: AtomicBool,
    /// What streams go on in: the data as they were.
    views: Mutex<HashMap<u64, Data>>,
    /// How many views there were.
    views_taken: AtomicUsize,
    /// After each part of a stream, every value is changed.
    pub(crate) restless: AtomicBool,
    /// Views are given up as soon as they were promised.
    pub(crate) forgetful: AtomicBool,
}

const BOUNDS: [(&str, Option<&str>); 3] = [("", Some("g")), ("g", Some("p")), ("p", None)];

fn shards() -> impl DoubleEndedIterator<Item = (ShardId, KeyRange)> {
    BOUNDS.into_iter().enumerate().map(|(i, (start, end))| {
        (ShardId(2 + i as u64), KeyRange::new(start, end.map(Bytes::from)))
    })
}

impl Fake {
    pub(crate) fn break_shard(&self, shard: u64, refusal: Refusal) {
        self.faults.lock().unwrap().insert(ShardId(shard), refusal);
    }

    /// Views that are kept.
    pub(crate) fn views(&self) -> usize {
        self.views.lock().unwrap().len()
    }

    /// A part of a stream, in the view that it began in.
    fn part(
        &self,
        shard: ShardId,
        owned: KeyRange,
        scan: Scan,
        view: Option<HeldView>,
    ) -> Result<Answer, Refusal> {
        let data = match view {
            None => self.data.lock().unwrap().clone(),
            Some(view) => {
                self.views.lock().unwrap().remove(&view.id).ok_or(Refusal::ViewGivenUp { shard })?
            }
        };
        let page = self.page(&data.1, &owned, &scan);
        let more = page.rest.as_ref().is_some_and(|rest| rest.overlaps(&owned));
        let view = more.then(|| {
            let id = self.views_taken.fetch_add(1, Ordering::SeqCst) as u64;
            if !self.forgetful.load(Ordering::SeqCst) {
                self.views.lock().unwrap().insert(id, data);
            }
            HeldView { node: NodeId(9), shard, id }
        });
        if self.restless.load(Ordering::SeqCst) {
            let (last_revision, map) = &mut *self.data.lock().unwrap();
            *last_revision += 1;
            map.values_mut().for_each(|(value, revision)| {
                *value = format!("written at {last_revision}").into();
                *revision = *last_revision;
            });
        }
        Ok(Answer::Part { page, view })
    }

    fn page(&self, map: &BTreeMap<Bytes, (Bytes, u64)>, owned: &KeyRange, scan: &Scan) -> ScanPage {
        self.scans.fetch_add(1, Ordering::SeqCst);
        assert!(scan.limit > 0 && scan.bytes_max > 0, "a scan of nothing");
        let items_max = match self.scan_items_max.load(Ordering::SeqCst) {
            0 => scan.limit as usize,
            max => max.min(scan.limit as usize),
        };
        let mine = scan.range.intersect(owned);
        let inside = map.iter().filter(|(key, _)| mine.contains(key));
        let found: Vec<_> = if scan.reverse { inside.rev().collect() } else { inside.collect() };
        let (mut items, mut bytes) = (Vec::new(), 0);
        let mut rest = if scan.reverse {
            let below = KeyRange::new(scan.range.start.clone(), Some(owned.start.clone()));
            Some(below).filter(|range| !range.is_empty())
        } else {
            let above = owned.end.clone().map(|end| KeyRange::new(end, scan.range.end.clone()));
            above.filter(|range| !range.is_empty())
        };
        for (key, (value, revision)) in found {
            let size = key.len() + if scan.keys_only { 0 } else { value.len() };
            if items.len() == items_max
                || (!items.is_empty() && bytes + size > scan.bytes_max as usize)
            {
                rest = Some(if scan.reverse {
                    KeyRange::new(scan.range.start.clone(), Some(successor_of_key(key)))
                } else {
                    KeyRange::new(key.clone(), scan.range.end.clone())
                });
                break;
            }
            bytes += size;
            let value = if scan.keys_only { Bytes::new() } else { value.clone() };
            items.push(Item { key: key.clone(), value, revision: Revision(*revision) });
        }
        ScanPage { items, rest }
    }

    fn answer(&self, shard: ShardId, owned: KeyRange, request: Request) -> Answer {
        let mut data = self.data.lock().unwrap();
        let (last_revision, map) = &mut *data;
        match request {
            Request::Get { key, .. } => match map.get(&key) {
                Some((value, revision)) => {
                    Answer::Value { value: value.clone(), revision: Revision(*revision) }
                }
                None => Answer::Missing,
            },
            Request::Scan { scan, .. } => Answer::Page(self.page(map, &owned, &scan)),
            Request::Part { .. } => unreachable!("parts are answered elsewhere"),
            Request::Write(command) => {
                if let Op::DeleteRange { range } = command.op() {
                    let mine = range.intersect(&owned);
                    let before = map.len();
                    map.retain(|key, _| !mine.contains(key));
                    self.writes.fetch_add(1, Ordering::SeqCst);
                    let above = owned
                        .end
                        .map(|end| KeyRange::new(end, range.end.clone()))
                        .filter(|range| !range.is_empty());
                    return Answer::DeletedRange {
                        count: (before - map.len()) as u64,
                        rest: above,
                    };
                }
                let key = command.routing_key().clone();
                let current = map.get(&key).map(|(_, revision)| Revision(*revision));
                if !command.condition().holds(current) {
                    return Answer::ConditionFailed { current };
                }
                self.writes.fetch_add(1, Ordering::SeqCst);
                match command.op() {
                    Op::Put { key, value } => {
                        *last_revision += 1;
                        map.insert(key.clone(), (value.clone(), *last_revision));
                        Answer::Written { revision: Revision(*last_revision) }
                    }
                    _ => {
                        map.remove(&key);
                        Answer::Deleted
                    }
                }
            }
            Request::Admin(_) => panic!("shard {shard} got an admin question"),
        }
    }
}

impl Kv for Fake {
    async fn call(&self, request: Request, deadline: Instant) -> Result<Reply, Refusal> {
        assert!(deadline > Instant::now(), "no time to answer");
        let (shard, owned) = match &request {
            Request::Scan { scan, .. } | Request::Part { scan, .. } if scan.reverse => {
                let below = |start: &Bytes| scan.range.end.as_ref().is_none_or(|end| start < end);
                shards().rev().find(|(_, owned)| below(&owned.start)).unwrap()
            }
            _ => {
                shards().find(|(_, owned)| owned.contains(request.routing_key().unwrap())).unwrap()
            }
        };
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.under_way_max.fetch_max(under_way, Ordering::SeqCst);
        let delay = *self.delay.lock().unwrap();
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        let fault = self.faults.lock().unwrap().get(&shard).cloned();
        if let Some(refusal) = fault {
            return Err(refusal);
        }
        let stale = matches!(&request, Request::Get { consistency: Consistency::Stale { .. }, .. });
        let staleness =
            stale.then_some(Staleness { applied: 77, age: Some(Duration::from_millis(1250)) });
        let answer = match request {
            Request::Part { scan, view, .. } => self.part(shard, owned, scan, view)?,
            request => self.answer(shard, owned, request),
        };
        Ok(Reply { shard, node: NodeId(9), answer, staleness })
    }

    fn let_go(&self, view: HeldView) {
        self.views.lock().unwrap().remove(&view.id);
    }
}

const EPOCH: Epoch = Epoch { membership: 3, range: 1 };

fn view(id: ShardId, range: &KeyRange) -> ShardView {
    ShardView {
        id,
        range: range.into(),
        epoch: EPOCH,
        leader: Some(NodeId(9)),
        term: Some(4),
        committed: Some(10),
        applied: Some(10),
        last: Some(10),
        log_first: Some(1),
        log_bytes: Some(100),
        size_bytes: Some(200),
        writes_per_second: None,
        reads_per_second: None,
        replicas: vec![],
        awake: true,
        local: None,
    }
}

fn node_view(id: NodeId) -> NodeView {
    NodeView {
        id,
        address: "127.0.0.1:7101".into(),
        http: None,
        state: NodeState::Up,
        incarnation: Some(Incarnation(1)),
        version: None,
        replicas: 3,
        leaders: 3,
        disk: None,
        apply_lag: None,
        rtt_seconds: None,
        uptime_seconds: None,
    }
}

impl Admin for Fake {
    async fn cluster(&self) -> Result<ClusterView, Refusal> {
        let leaders_per_node = vec![LeaderCount { node: NodeId(9), leaders: 3 }];
        let (id, version) = (ClusterId(7), "0".to_owned());
        let operations = vec![];
        Ok(ClusterView {
            id,
            version,
            answered_by: NodeId(5),
            nodes: 1,
            nodes_up: 1,
            shards: 3,
            shards_without_leader: 0,
            leaders_per_node,
            operations,
        })
    }
    async fn nodes(&self) -> Result<Vec<NodeView>, Refusal> {
        Ok(vec![node_view(NodeId(5)), node_view(NodeId(9))])
    }
    async fn node(&self, id: NodeId) -> Result<NodeView, Refusal> {
        if id.0 == 9 {
            Ok(node_view(id))
        } else {
            Err(Refusal::NotFound { what: format!("node {id}") })
        }
    }
    async fn shards(
        &self,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<ShardView>, Refusal> {
        Ok(shards()
            .filter(|(id, _)| after.is_none_or(|after| *id > after))
            .take(limit)
            .map(|(id, range)| view(id, &range))
            .collect())
    }
    async fn shard(&self, id: ShardId, hash: bool) -> Result<ShardView, Refusal> {
        let found = shards()
            .find(|(shard, _)| *shard == id)
            .ok_or(Refusal::NotFound { what: format!("shard {id}") })?;
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        let mut view = view(found.0, &found.1);
        let local = |hash| LocalView {
            node: NodeId(5),
            replica: ReplicaId(1),
            role: Role::Voter,
            state: ReplicaState::Follower,
            applied: 10,
            hash: Some(hash),
            keys: None,
        };
        view.local = hash.then(|| local("00000000000000ff".to_owned()));
        Ok(view)
    }
    async fn explain(&self, key: &[u8]) -> Result<Explanation, Refusal> {
        let (id, range) = shards().find(|(_, range)| range.contains(key)).unwrap();
        let (key, key_b64) = text_or_base64(key);
        Ok(Explanation {
            key,
            key_b64,
            shard: view(id, &range),
            answered_by: NodeId(5),
            why: vec!["since the start".into()],
        })
    }
    async fn transfer(
        &self,
        shard: ShardId,
        to: NodeId,
        if_match: Option<Epoch>,
        dry_run: bool,
    ) -> Result<Ordered<Transfer>, Refusal> {
        if if_match.is_some_and(|epoch| epoch != EPOCH) {
            return Ok(Ordered::EpochMoved { current: EPOCH });
        }
        if to == NodeId(8) {
            return Err(Refusal::Conflict { why: "node 8 holds no voter".into() });
        }
        let quorum = Quorum { voters: 3, needed: 2, up: 3 };
        Ok(Ordered::Done(Transfer {
            dry_run,
            leader_before: Some(NodeId(9)),
            leader_after: to,
            quorum_before: quorum.clone(),
            quorum_after: quorum,
            shard: self.shard(shard, false).await?,
        }))
    }
}

impl Inspect for Fake {
    fn node(&self) -> NodeId {
        NodeId(5)
    }
    fn live(&self) -> Result<(), String> {
        if self.unwell.load(Ordering::SeqCst) {
            Err("the loop stands still".into())
        } else {
            Ok(())
        }
    }
    fn ready(&self) -> Readiness {
        let ok = !self.unwell.load(Ordering::SeqCst);
        let check =
            |name: &str, ok, detail: &str| Check { name: name.into(), ok, detail: detail.into() };
        Readiness {
            ready: ok,
            checks: vec![
                check("joined", true, ""),
                check("leaders", ok, "7 of 8 shards have a leader"),
            ],
        }
    }
    fn collect(&self) {}
}
