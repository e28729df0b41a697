//! Connections that peers dial: proved, then read.
//!
//! A connection is taken only after TLS and handshake have agreed on who dialled. From then on one
//! task reads each stream and hands every frame on where it reads it. Whatever breaks the protocol
//! (a frame too large, an unknown lane, a batch that can't be read) closes the whole connection
//! with the reason: a peer that does this once is not to be trusted with the rest. Why somebody was
//! turned away is logged, but only now and then: strangers decide how often there is reason to, and
//! what the reason says.

use crate::answers::Answers;
use crate::dial::{receive_hello, send_hello};
use crate::doors::{Answer, Doors};
use crate::frame::{FrameError, FrameReader};
use crate::handshake::{HELLO_BYTES_MAX, Hello, Identity, Purpose, Refusal};
use crate::lane::Lane;
use crate::peer::FLUSH;
use crate::quic::{self, Close};
use crate::shared::{Shared, stopped};
use crate::{batch, snapshot, tls, writer};
use flotilla_router::{NodeId, Throttle};
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream, TransportErrorCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A complaint of the same kind is logged again after so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// So much of a reason is logged: strangers write it.
const REASON_CHARS_MAX: usize = 400;

/// Why somebody was turned away.
enum Away {
    /// There is no connection: TLS said no, or the caller did.
    Connection(String),
    /// The caller left before anybody said no: a node that has waited too long, or is stopped,
    /// gives up. Nothing is wrong with it.
    Gone,
    /// The caller has a certificate of the cluster's, and is refused all the same.
    Handshake(String),
    /// The caller took too long.
    Late,
}

impl Away {
    /// Why a connection has ended before its handshake was done.
    fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) if close.reason.is_empty() => Self::Gone,
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
            {
                Self::Gone
            }
            error => Self::Connection(quic::describe(error)),
        }
    }
}

/// When each kind of complaint was last logged: about strangers, and about those who come from
/// where a peer is. What strangers do must not hide what is wrong with a node.
struct Complaints([[Throttle; 3]; 2]);

impl Complaints {
    fn new() -> Self {
        let kinds = || std::array::from_fn(|_| Throttle::new(COMPLAIN_EVERY));
        Self([kinds(), kinds()])
    }

    fn log(&self, address: SocketAddr, is_peer: bool, away: &Away) {
        let (kind, why) = match away {
            Away::Connection(why) => (0, why.as_str()),
            Away::Handshake(why) => (1, why.as_str()),
            Away::Late => (2, "no handshake came in time"),
            Away::Gone => {
                return tracing::debug!(%address, "a connection ended before its handshake");
            }
        };
        if let Some(unsaid) = self.0[usize::from(is_peer)][kind].pass(Instant::now()) {
            let why: String = why.chars().take(REASON_CHARS_MAX).collect();
            tracing::warn!(%address, why, unsaid, "connection refused");
        }
    }
}

/// Takes connections until the endpoint is closed.
pub(crate) async fn run(shared: Arc<Shared>) {
    let (doors, complaints) = (Doors::default(), Arc::new(Complaints::new()));
    while let Some(incoming) = shared.endpoint.accept().await {
        let address = incoming.remote_address();
        let is_peer = shared.is_peer_at(address);
        let place = match doors.knock(address, incoming.remote_address_validated(), is_peer) {
            Answer::Enter(place) => place,
            Answer::Prove => {
                shared.stats.addresses_challenged.count();
                // Fails only for an address that is proved.
                let _ = incoming.retry();
                continue;
            }
            Answer::Full => {
                shared.stats.connections_refused.count();
                incoming.refuse();
                continue;
            }
        };
        let (shared, complaints) = (shared.clone(), complaints.clone());
        shared.runtime.clone().spawn(async move {
            let greeted =
                tokio::time::timeout(shared.config.idle_timeout * 2, greet(&shared, incoming))
                    .await;
            drop(place);
            match greeted.unwrap_or(Err(Away::Late)) {
                Ok((connection, identity, purpose)) => {
                    shared.stats.connections_accepted.count();
                    match purpose {
                        Purpose::Lanes => carry(&shared, connection, identity).await,
                        Purpose::Snapshot => {
                            snapshot::receive(&shared, connection, identity.node).await
                        }
                    }
                }
                Err(away) => {
                    shared.stats.connections_refused.count();
                    complaints.log(address, is_peer, &away);
                }
            }
        });
    }
}

/// The dialled end's part of the handshake.
async fn greet(
    shared: &Shared,
    incoming: Incoming,
) -> Result<(Connection, Identity, Purpose), Away> {
    let connection = incoming.await.map_err(|error| Away::of(&error))?;
    let lost = |error: String| {
        connection.close_reason().map_or(Away::Connection(error), |reason| Away::of(&reason))
    };
    let (mut send, receive) = connection.accept_bi().await.map_err(|error| Away::of(&error))?;
    let hello = receive_hello(FrameReader::new(receive, HELLO_BYTES_MAX)).await.map_err(lost)?;
    let check = || {
        let hello = Hello::decode(hello)?;
        hello.check(
            shared.identity,
            tls::peer_name(&connection).map_err(Refusal::NoName)?,
            None,
        )?;
        shared.admit(hello.identity)?;
        Ok::<_, Refusal>(hello)
    };
    let hello = check().map_err(|refusal| {
        let why = refusal.to_string();
        connection.close(Close::Refused.into(), why.as_bytes());
        Away::Handshake(why)
    })?;
    send_hello(&mut send, &shared.hello(hello.purpose)).await.map_err(lost)?;
    Ok((connection, hello.identity, hello.purpose))
}

/// Reads all streams of a connection until it ends.
async fn carry(shared: &Arc<Shared>, connection: Connection, identity: Identity) {
    let node = identity.node;
    shared.supersede(node, identity.incarnation, &connection);
    // Whoever dials opens its lanes once it is content with us, too. Only then is it worth dialling
    // back at once: a node that turns us away would otherwise have us try again each time it dials.
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
                    let (streams, writers) = (&mut streams, &mut writers);
                    start_requests(shared, node, &answers, send, receive, streams, writers);
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
                let drained = async { while writers.join_next().await.is_some() {} };
                let _ = tokio::time::timeout(FLUSH, drained).await;
                connection.close(Close::ShuttingDown.into(), b"this node is shutting down");
                break;
            }
        };
        if let Some(why) = broken {
            shared.stats.protocol_errors.count();
            if let Some(unsaid) = shared.protocol_complaints.pass(Instant::now()) {
                tracing::warn!(peer = %node, why, unsaid, "connection closed: the peer breaks the \
                                                           protocol");
            }
            connection.close(Close::Protocol.into(), why.as_bytes());
            break;
        }
    }
    writers.shutdown().await;
    answers.close();
    // Frames that came before the connection ended are worth having: readers end by themselves when
    // they have read them.
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
    let write = writer::write(
        answers.clone(),
        send,
        shared.stats.clone(),
        |stats| &stats.requests,
        shared.stop.subscribe(),
    );
    // An error of the writer is one of the connection.
    writers.spawn_on(async { drop(write.await) }, &shared.runtime);
    streams
        .spawn_on(read_requests(shared.clone(), node, answers.clone(), receive), &shared.runtime);
}

/// Hands on the frames of a lane.
async fn read_lane(
    shared: Arc<Shared>,
    node: NodeId,
    mut stream: RecvStream,
) -> Result<(), FrameError> {
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
async fn read_requests(
    shared: Arc<Shared>,
    node: NodeId,
    answers: Arc<Answers>,
    stream: RecvStream,
) -> Result<(), FrameError> {
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
