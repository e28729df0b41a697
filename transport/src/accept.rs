//! Connections that peers dial: proved, then read.
//!
//! A connection is taken only after TLS and handshake have agreed on who dialled. From then on one task reads each stream and
//! hands every frame on where it reads it. Whatever breaks the protocol (a frame too large, an unknown lane, a batch that can't be
//! read) closes the whole connection with the reason: a peer that does this once is not to be trusted with the rest. Why somebody was turned
//! away is logged, but not again and again.

use crate::answers::Answers;
use crate::dial::{receive_hello, send_hello};
use crate::frame::{FrameError, FrameReader};
use crate::handshake::{HELLO_BYTES_MAX, Hello, Identity, Purpose, Refusal};
use crate::lane::Lane;
use crate::peer::FLUSH;
use crate::quic::{self, Close};
use crate::shared::{Shared, stopped};
use crate::{batch, snapshot, tls, writer};
use flotilla_router::NodeId;
use quinn::{Connection, Incoming, RecvStream, SendStream};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many connections may be in TLS or handshake at a time: what strangers can make this node do at once.
const HANDSHAKES_MAX: usize = 64;

/// A complaint is logged again after so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// So many different complaints are remembered: what strangers make this node remember.
const COMPLAINTS_MAX: usize = 64;

/// Why connections were refused, and when that was last said.
#[derive(Default)]
struct Complaints(Mutex<HashMap<String, Instant>>);

impl Complaints {
    /// Whether this was not said lately; notes that it is said now.
    fn is_new(&self, why: &str) -> bool {
        let (now, mut said) = (Instant::now(), self.0.lock().expect("nothing panics with it held"));
        said.retain(|_, at| now.duration_since(*at) < COMPLAIN_EVERY);
        if said.contains_key(why) {
            return false;
        }
        if said.len() < COMPLAINTS_MAX {
            said.insert(why.to_owned(), now);
        }
        true
    }
}

/// Takes connections until the endpoint is closed.
pub(crate) async fn run(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let complaints = Arc::new(Complaints::default());
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            shared.stats.connections_refused.count();
            incoming.refuse();
            continue;
        };
        let (shared, complaints) = (shared.clone(), complaints.clone());
        shared.runtime.clone().spawn(async move {
            let address = incoming.remote_address();
            let greeted = tokio::time::timeout(shared.config.idle_timeout * 2, greet(&shared, incoming)).await;
            drop(permit);
            match greeted.unwrap_or_else(|_| Err("no handshake came in time".into())) {
                Ok((connection, identity, purpose)) => {
                    shared.stats.connections_accepted.count();
                    match purpose {
                        Purpose::Lanes => carry(&shared, connection, identity).await,
                        Purpose::Snapshot => snapshot::receive(&shared, connection, identity.node).await,
                    }
                }
                Err(why) => {
                    shared.stats.connections_refused.count();
                    // The same complaint several times a second would hide all others.
                    if complaints.is_new(&why) {
                        tracing::warn!(%address, why, "connection refused");
                    }
                }
            }
        });
    }
}

/// The dialled end's part of the handshake.
async fn greet(shared: &Shared, incoming: Incoming) -> Result<(Connection, Identity, Purpose), String> {
    let connection = incoming.await.map_err(|error| quic::describe(&error))?;
    let lost = |error: String| connection.close_reason().map_or(error, |reason| quic::describe(&reason));
    let (mut send, receive) = connection.accept_bi().await.map_err(|error| quic::describe(&error))?;
    let hello = receive_hello(FrameReader::new(receive, HELLO_BYTES_MAX)).await.map_err(lost)?;
    let check = || {
        let hello = Hello::decode(hello)?;
        hello.check(shared.identity, tls::peer_name(&connection).map_err(Refusal::NoName)?, None)?;
        shared.admit(hello.identity)?;
        Ok::<_, Refusal>(hello)
    };
    let hello = check().map_err(|refusal| {
        let why = refusal.to_string();
        connection.close(Close::Refused.into(), why.as_bytes());
        why
    })?;
    send_hello(&mut send, &shared.hello(hello.purpose)).await.map_err(lost)?;
    Ok((connection, hello.identity, hello.purpose))
}

/// Reads all streams of a connection until it ends.
async fn carry(shared: &Arc<Shared>, connection: Connection, identity: Identity) {
    let node = identity.node;
    shared.supersede(node, identity.incarnation, &connection);
    // Whoever dials opens its lanes once it is content with us, too. Only then is it worth dialling back at once: a node that turns us
    // away would otherwise have us try again each time it dials.
    let mut content = false;
    let answers = Arc::new(Answers::new(
        shared.stats.clone(),
        2 * shared.config.request_bytes_in_flight_max,
        shared.config.frame_bytes_max,
    ));
    let mut streams = JoinSet::new();
    let mut writers = JoinSet::new();
    let mut has_requests = false;
    let mut stop = shared.stop.subscribe();
    loop {
        let broken = tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    if !std::mem::replace(&mut content, true)
                        && let Some(peer) = shared.peer(node)
                    {
                        peer.wake.notify_one();
                    }
                    streams.spawn_on(read_lane(shared.clone(), node, stream), &shared.runtime);
                    None
                }
                Err(_) => break,
            },
            streams_of_requests = connection.accept_bi() => match streams_of_requests {
                Ok(_) if has_requests => Some("a second stream of requests".into()),
                Ok((send, receive)) => {
                    has_requests = true;
                    start_requests(shared, node, &answers, send, receive, &mut streams, &mut writers);
                    None
                }
                Err(_) => break,
            },
            Some(ended) = streams.join_next() => match ended {
                Ok(Err(FrameError::Read(_))) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Ok(Ok(())) => None,
                Err(_) => Some("a reader ended".into()),
            },
            () = stopped(&mut stop) => {
                let _ = tokio::time::timeout(FLUSH, async { while writers.join_next().await.is_some() {} }).await;
                connection.close(Close::ShuttingDown.into(), b"this node is shutting down");
                break;
            }
        };
        if let Some(why) = broken {
            shared.stats.protocol_errors.count();
            tracing::warn!(peer = %node, why, "connection closed: the peer breaks the protocol");
            connection.close(Close::Protocol.into(), why.as_bytes());
            break;
        }
    }
    writers.shutdown().await;
    answers.close();
    // Frames that came before the connection ended are worth having: readers end by themselves when they have read them.
    while streams.join_next().await.is_some() {}
    shared.forget(node, &connection);
    let why = connection.close_reason().map_or_else(String::new, |reason| quic::describe(&reason));
    tracing::debug!(peer = %node, why, "incoming connection ended");
}

fn start_requests(
    shared: &Arc<Shared>,
    node: NodeId,
    answers: &Arc<Answers>,
    send: SendStream,
    receive: RecvStream,
    streams: &mut JoinSet<Result<(), FrameError>>,
    writers: &mut JoinSet<()>,
) {
    let write = writer::write(answers.clone(), send, shared.stats.clone(), |stats| &stats.requests, shared.stop.subscribe());
    // An error of the writer is one of the connection.
    writers.spawn_on(async { drop(write.await) }, &shared.runtime);
    streams.spawn_on(read_requests(shared.clone(), node, answers.clone(), receive), &shared.runtime);
}

/// Hands on the frames of a lane.
async fn read_lane(shared: Arc<Shared>, node: NodeId, mut stream: RecvStream) -> Result<(), FrameError> {
    let mut tag = [0];
    if stream.read_exact(&mut tag).await.is_err() {
        return Ok(());
    }
    let lane = Lane::from_tag(tag[0]).ok_or(FrameError::UnknownLane(tag[0]))?;
    let stats = shared.stats.lane(lane);
    let mut frames = FrameReader::new(stream, shared.config.frame_bytes_max);
    while let Some(frame) = frames.next().await? {
        stats.frames_received.count();
        stats.bytes_received.add(frame.len() as u64);
        shared.handler.frame(node, lane, frame);
    }
    Ok(())
}

/// Hands on requests, each with its responder.
async fn read_requests(shared: Arc<Shared>, node: NodeId, answers: Arc<Answers>, stream: RecvStream) -> Result<(), FrameError> {
    let mut frames = FrameReader::new(stream, shared.config.frame_bytes_max);
    while let Some(frame) = frames.next().await? {
        shared.stats.requests.frames_received.count();
        shared.stats.requests.bytes_received.add(frame.len() as u64);
        let mut requests = batch::Requests::new(frame);
        while let Some((id, request)) = requests.next()? {
            let responder = answers.admit(id, request.len()).await;
            shared.handler.request(node, request, responder);
        }
    }
    Ok(())
}
