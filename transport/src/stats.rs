//! Counters for the metrics page. They only ever grow, and reading one costs nothing to whoever
//! counts.

use crate::lane::Lane;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// What it has come to.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn count(&self) {
        self.add(1);
    }
}

/// What went over the lanes of one kind, to and from all peers.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Frames handed to QUIC.
    pub frames_sent: Counter,
    /// Their bytes, lengths included.
    pub bytes_sent: Counter,
    /// Writes that took them there: frames per write is how well they gather.
    pub writes: Counter,
    /// Frames that arrived.
    pub frames_received: Counter,
    /// Their bytes, without lengths.
    pub bytes_received: Counter,
    /// Frames dropped: no connection, a full outbox, or a connection lost while they waited.
    pub frames_dropped: Counter,
    /// Their bytes.
    pub bytes_dropped: Counter,
}

/// What the transport has done since it started.
#[derive(Debug, Default)]
pub struct Stats {
    /// The control lane.
    pub control: LaneStats,
    /// The append lanes.
    pub append: LaneStats,
    /// Forwarded requests and their answers; a frame has many.
    pub requests: LaneStats,
    /// Connections made to peers.
    pub connections_opened: Counter,
    /// Attempts to connect to a peer that came to nothing.
    pub connections_failed: Counter,
    /// Connections to peers that were made and then lost.
    pub connections_lost: Counter,
    /// Connections taken from peers.
    pub connections_accepted: Counter,
    /// Addresses that had to be proved first, because many handshakes were under way.
    pub addresses_challenged: Counter,
    /// Connections from others that were refused, in TLS or in the handshake.
    pub connections_refused: Counter,
    /// Connections closed because the peer sent what no node sends: an oversized frame, an unknown
    /// lane, a broken batch.
    pub protocol_errors: Counter,
    /// Requests handed to QUIC.
    pub requests_sent: Counter,
    /// Requests that were answered.
    pub requests_answered: Counter,
    /// Requests that failed as not sent.
    pub requests_not_sent: Counter,
    /// Requests sent and lost with their connection, or given up by the peer.
    pub requests_lost: Counter,
    /// Requests sent that ran out of time, or whose asker went away.
    pub requests_expired: Counter,
    /// Requests that came from peers.
    pub requests_received: Counter,
    /// Requests from peers that this node gave up without an answer.
    pub requests_abandoned: Counter,
    /// Answers to peers that were replaced by a refusal, since too many others waited to be
    /// written.
    pub answers_refused: Counter,
    /// Snapshots that arrived at a peer and were taken.
    pub snapshots_sent: Counter,
    /// Snapshots that did not.
    pub snapshots_send_failed: Counter,
    /// Bytes of files sent in snapshots, those that failed included.
    pub snapshot_bytes_sent: Counter,
    /// Snapshots that came from peers and were handed on, staged.
    pub snapshots_received: Counter,
    /// Snapshots from peers that were refused or broke off.
    pub snapshots_receive_failed: Counter,
    /// Bytes of files received in snapshots.
    pub snapshot_bytes_received: Counter,
}

impl Stats {
    /// The counters of the kind of `lane`.
    pub fn lane(&self, lane: Lane) -> &LaneStats {
        match lane {
            Lane::Control => &self.control,
            Lane::Append(_) => &self.append,
        }
    }
}
