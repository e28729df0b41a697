//! Whole nodes on loopback, each in a runtime of its own, so that one can die without a word as a
//! killed process does.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use bytes::Bytes;
use flotilla_router::{ClusterId, Incarnation, NodeId};
use flotilla_transport::{
    ClusterCa, Config, Credentials, Handler, Identity, Lane, Responder, Staging, Transport,
    TransportError,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub const CLUSTER: ClusterId = ClusterId(0x00ab_cdef_0123_4567);

/// What a node was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Frame(NodeId, Lane, Bytes),
    Reachable(NodeId, Incarnation),
    Unreachable(NodeId),
    SnapshotStaged(Bytes, PathBuf),
    SnapshotFailed(Bytes, PathBuf),
}

/// What a node does with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Habit {
    /// Answers with `<node>:<request>`.
    #[default]
    Answer,
    /// Keeps the responder.
    Keep,
    /// Drops it.
    Drop,
}

#[derive(Default)]
pub struct Record {
    node: NodeId,
    habit: Mutex<Habit>,
    told: Mutex<Vec<Told>>,
    pub kept: Mutex<Vec<Responder>>,
    /// Where snapshots go; without one they are refused.
    pub stage: Mutex<Option<PathBuf>>,
    /// Why staged snapshots are refused.
    pub verdict: Mutex<Option<String>>,
    /// Verdicts that are held back.
    pub held: Mutex<Vec<oneshot::Sender<Result<(), String>>>>,
    pub hold_verdicts: Mutex<bool>,
}

impl Record {
    pub fn set_habit(&self, habit: Habit) {
        *self.habit.lock().unwrap() = habit;
    }

    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    pub fn frames(&self, lane: Lane) -> Vec<Bytes> {
        let is_it = |told: &Told| match told {
            Told::Frame(_, found, frame) if *found == lane => Some(frame.clone()),
            _ => None,
        };
        self.told.lock().unwrap().iter().filter_map(is_it).collect()
    }

    pub fn count(&self, is_it: impl Fn(&Told) -> bool) -> usize {
        self.told.lock().unwrap().iter().filter(|told| is_it(told)).count()
    }

    fn note(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }
}

impl Handler for Record {
    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
        self.note(Told::Frame(from, lane, frame));
    }

    fn request(&self, from: NodeId, request: Bytes, responder: Responder) {
        match *self.habit.lock().unwrap() {
            Habit::Answer => {
                let mut answer = format!("{}<{}:", self.node, from).into_bytes();
                answer.extend_from_slice(&request);
                responder.respond(answer.into());
            }
            Habit::Keep => self.kept.lock().unwrap().push(responder),
            Habit::Drop => drop(responder),
        }
    }

    fn reachable(&self, node: NodeId, incarnation: Incarnation) {
        self.note(Told::Reachable(node, incarnation));
    }

    fn unreachable(&self, node: NodeId) {
        self.note(Told::Unreachable(node));
    }

    fn stage_snapshot(&self, _from: NodeId, header: &Bytes) -> Result<Staging, String> {
        let dir = self.stage.lock().unwrap().clone().ok_or("this node wants no snapshot")?;
        // A header may end with how many bytes it announces.
        let header = String::from_utf8_lossy(header).into_owned();
        let bytes_max =
            header.rsplit_once(' ').map_or(u64::MAX, |(_, bytes)| bytes.parse().unwrap());
        Ok(Staging { dir: dir.join(header), bytes_max })
    }

    fn snapshot_staged(
        &self,
        _from: NodeId,
        header: Bytes,
        dir: PathBuf,
        done: oneshot::Sender<Result<(), String>>,
    ) {
        self.note(Told::SnapshotStaged(header, dir));
        if *self.hold_verdicts.lock().unwrap() {
            self.held.lock().unwrap().push(done);
            return;
        }
        let verdict = self.verdict.lock().unwrap().clone().map_or(Ok(()), Err);
        let _ = done.send(verdict);
    }

    fn snapshot_failed(&self, _from: NodeId, header: Bytes, dir: PathBuf) {
        let _ = std::fs::remove_dir_all(&dir);
        self.note(Told::SnapshotFailed(header, dir));
    }
}

/// A node's end, as a process would have it.
pub struct Node {
    pub id: NodeId,
    pub transport: Arc<Transport>,
    pub record: Arc<Record>,
    runtime: Option<Runtime>,
}

impl Node {
    pub fn start(ca: &ClusterCa, id: u64, incarnation: u64, config: Config) -> Self {
        let (cert, key) = ca.node(NodeId(id), &[]).unwrap();
        let identity = Identity {
            cluster: ca.cluster(),
            node: NodeId(id),
            incarnation: Incarnation(incarnation),
            bootstrap: 0,
            directory: 1,
            leases: None,
        };
        Self::start_as(
            identity,
            &Credentials::from_pem(ca.cert_pem(), &cert, &key).unwrap(),
            config,
        )
        .unwrap()
    }

    pub fn start_as(
        identity: Identity,
        credentials: &Credentials,
        config: Config,
    ) -> Result<Self, TransportError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let record = Arc::new(Record { node: identity.node, ..Record::default() });
        let guard = runtime.enter();
        let transport = Arc::new(Transport::start(config, identity, credentials, record.clone())?);
        drop(guard);
        Ok(Self { id: identity.node, transport, record, runtime: Some(runtime) })
    }

    pub fn address(&self) -> String {
        self.transport.local_addr().to_string()
    }

    pub fn dial(&self, other: &Self) {
        self.transport.add_peer(other.id, other.address());
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    pub fn spawn<F: Future<Output: Send> + Send + 'static>(
        &self,
        future: F,
    ) -> tokio::task::JoinHandle<F::Output> {
        self.runtime.as_ref().unwrap().spawn(future)
    }

    pub fn request(
        &self,
        to: NodeId,
        request: impl Into<Bytes>,
    ) -> Result<Bytes, flotilla_transport::RequestError> {
        self.block_on(self.transport.request(
            to,
            request.into(),
            Instant::now() + Duration::from_secs(20),
        ))
    }

    /// Dies as `kill -9` would have it: the peers hear nothing.
    pub fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Gives its port free, orderly.
    pub fn stop(mut self) {
        self.block_on(self.transport.shutdown());
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(2));
    }

    pub fn wait_reachable(&self, other: NodeId) {
        eventually("a connection", || self.transport.reachable(other));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn ca() -> ClusterCa {
    ClusterCa::new(CLUSTER).unwrap()
}

/// Nodes 1, 2, ... that all know each other, connected.
pub fn cluster(size: u64, config: &Config) -> Vec<Node> {
    let ca = ca();
    let nodes: Vec<_> = (1..=size).map(|id| Node::start(&ca, id, 1, config.clone())).collect();
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.id != node.id) {
            node.dial(other);
        }
    }
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.id != node.id) {
            node.wait_reachable(other.id);
        }
    }
    nodes
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(15), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The lines that were logged while something ran. Logging is set up once for the whole test
/// process.
pub fn logged() -> &'static Mutex<Vec<String>> {
    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static SET_UP: std::sync::Once = std::sync::Once::new();
    SET_UP.call_once(|| tracing::subscriber::set_global_default(Lines).unwrap());
    struct Lines;
    impl tracing::Subscriber for Lines {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            metadata.target().starts_with("flotilla")
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut fields: HashMap<&str, String> = HashMap::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                fields.insert(field.name(), format!("{value:?}"));
            });
            LINES.lock().unwrap().push(format!("{} {fields:?}", event.metadata().level()));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    &LINES
}

pub fn was_logged(text: &str) -> bool {
    logged().lock().unwrap().iter().any(|line| line.contains(text))
}
