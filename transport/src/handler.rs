//! What the transport tells, and asks, whoever runs it.

use crate::answers::Responder;
use crate::handshake::Identity;
use crate::lane::Lane;
use bytes::Bytes;
use flotilla_router::{Incarnation, NodeId};
use std::path::PathBuf;
use tokio::sync::oneshot;

/// Where the files of a snapshot go, and how many bytes they have at most.
#[derive(Clone, Debug)]
pub struct Staging {
    /// The folder.
    pub dir: PathBuf,
    /// What was announced: for no more is there room.
    pub bytes_max: u64,
}

/// Takes what peers send. `from` is always proved by certificate and handshake.
///
/// Except for the snapshot calls, every method is called where frames are read or written: it must
/// hand on and return, without waiting for anything. [`Handler::unreachable`] may also be called on
/// the thread that called [`crate::Transport::send`].
pub trait Handler: Send + Sync + 'static {
    /// A frame came. Frames of one lane come in the order in which they were sent, as long as the
    /// connection lasts.
    fn frame(&self, from: NodeId, lane: Lane, frame: Bytes);

    /// A request came. It is answered through `responder`, from any thread, at any time; one that
    /// is dropped tells the asker that its request is lost.
    fn request(&self, from: NodeId, request: Bytes, responder: Responder);

    /// Whether a node is let in, once its certificate and its handshake are found to be in order;
    /// if not, why, in words that say what to do. Called for every connection, both ways.
    fn admit(&self, identity: Identity) -> Result<(), String> {
        let _ = identity;
        Ok(())
    }

    /// A connection to `node` is up: what is sent from now on has a chance to arrive.
    fn reachable(&self, node: NodeId, incarnation: Incarnation);

    /// Something for `node` was dropped, or the connection to it was lost. Called at most every 100
    /// ms per node while frames are dropped, and once for each lost connection.
    fn unreachable(&self, node: NodeId);

    /// A snapshot is about to come: says into which folder its files go (it is made where it is
    /// missing) and how many bytes they have at most, or why it is not wanted, which the sender is
    /// told. May take its time; is not called on a thread that carries frames.
    fn stage_snapshot(&self, from: NodeId, header: &Bytes) -> Result<Staging, String>;

    /// All files of a snapshot are in `dir`, checked and durable. The folder belongs to the handler
    /// from here on. The verdict given to `done` is what the sender is told; a dropped `done`
    /// counts as a no. A verdict later than the sender's `snapshot_stall_timeout` comes too late.
    fn snapshot_staged(
        &self,
        from: NodeId,
        header: Bytes,
        dir: PathBuf,
        done: oneshot::Sender<Result<(), String>>,
    );

    /// A snapshot broke off after [`Handler::stage_snapshot`] had named `dir`: remove what is
    /// there. Called exactly once, and never after [`Handler::snapshot_staged`].
    fn snapshot_failed(&self, from: NodeId, header: Bytes, dir: PathBuf);
}
