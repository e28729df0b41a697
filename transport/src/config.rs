//! What can be set about the transport, with defaults for a cluster in one place.

use crate::error::TransportError;
use crate::lane::APPEND_LANES_MAX;
use flotilla_router::{NodeId, sizes};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How fast a sender may go before the network says no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Loss-based, as TCP does it by default.
    #[default]
    Cubic,
    /// Loss-based, the older and simpler one.
    NewReno,
    /// By measured bandwidth; for lossy links over long distances.
    Bbr,
}

/// Everything that can be set about the transport.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; a UDP socket. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where the peers are: host and port, looked up anew for every connect. An entry for this node
    /// itself is ignored.
    pub peers: BTreeMap<NodeId, String>,
    /// How many append lanes to each peer, 1 to 16.
    pub append_lanes: u8,
    /// How many bytes may wait in one lane to one peer, those being written included. Beyond that
    /// frames are dropped.
    pub outbox_bytes_max: usize,
    /// The largest frame, both ways. A larger one is dropped here, and closes the connection where
    /// it arrives.
    pub frame_bytes_max: usize,
    /// How many bytes of requests to one peer may be without an answer. Beyond that a request fails
    /// as full, and is not sent: it would only wait, out of sight, for a peer that is busy with
    /// what it has. Twice as much may requests and answers of a peer have that are at hand here:
    /// beyond it no more are read from that connection.
    pub request_bytes_in_flight_max: usize,
    /// How often a quiet connection says that it is alive.
    pub keep_alive: Duration,
    /// After how long a silence a connection counts as lost. Requests that wait on it fail then, so
    /// it is short.
    pub idle_timeout: Duration,
    /// The first wait before dialling a peer again; each further one is about twice as long.
    pub connect_backoff_min: Duration,
    /// The longest wait before dialling a peer again.
    pub connect_backoff_max: Duration,
    /// How fast snapshots leave, all together, and how fast they are taken in, all together.
    pub snapshot_bytes_per_second: u64,
    /// How many snapshots may come in at a time; further ones are told to try later.
    pub snapshots_at_once: usize,
    /// How long a snapshot may stand still: in transfer, or while the receiver judges it.
    pub snapshot_stall_timeout: Duration,
    /// What the UDP socket's buffers are set to, as far as the system allows.
    pub socket_buffer_bytes: usize,
    /// Congestion control.
    pub congestion: Congestion,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            peers: BTreeMap::new(),
            append_lanes: 2,
            outbox_bytes_max: 64 << 20,
            frame_bytes_max: sizes::FRAME_BYTES_MAX,
            request_bytes_in_flight_max: 4 << 20,
            keep_alive: Duration::from_millis(250),
            idle_timeout: Duration::from_millis(1000),
            connect_backoff_min: Duration::from_millis(50),
            connect_backoff_max: Duration::from_secs(1),
            snapshot_bytes_per_second: 256 << 20,
            snapshots_at_once: 2,
            snapshot_stall_timeout: Duration::from_secs(30),
            socket_buffer_bytes: 4 << 20,
            congestion: Congestion::Cubic,
        }
    }
}

impl Config {
    /// Refuses settings that can't work, naming the key.
    pub(crate) fn validate(&self) -> Result<(), TransportError> {
        let refuse = |why: String| Err(TransportError::Config { why });
        if !(1..=APPEND_LANES_MAX).contains(&self.append_lanes) {
            return refuse(format!(
                "append_lanes is {}; 1 to {APPEND_LANES_MAX} are allowed",
                self.append_lanes
            ));
        }
        if !(4096..=1 << 30).contains(&self.frame_bytes_max) {
            return refuse(format!(
                "frame_bytes_max is {}; 4096 bytes to 1 GiB are allowed",
                self.frame_bytes_max
            ));
        }
        if self.outbox_bytes_max < self.frame_bytes_max {
            return refuse(
                "outbox_bytes_max is below frame_bytes_max, so that a frame of that size could \
                 never leave"
                    .into(),
            );
        }
        if self.idle_timeout < Duration::from_millis(50)
            || self.idle_timeout > Duration::from_secs(600)
        {
            return refuse(format!(
                "idle_timeout is {:?}; 50 ms to 10 min are allowed",
                self.idle_timeout
            ));
        }
        if self.keep_alive.is_zero() || self.keep_alive * 2 > self.idle_timeout {
            return refuse(
                "keep_alive must be above 0 and at most half of idle_timeout, or quiet connections \
                 are cut"
                    .into(),
            );
        }
        if self.connect_backoff_min.is_zero() || self.connect_backoff_min > self.connect_backoff_max
        {
            return refuse(
                "connect_backoff_min must be above 0 and not above connect_backoff_max".into(),
            );
        }
        if self.snapshot_bytes_per_second == 0
            || self.snapshots_at_once == 0
            || self.snapshot_stall_timeout.is_zero()
        {
            return refuse(
                "snapshot_bytes_per_second, snapshots_at_once and snapshot_stall_timeout must be \
                 above 0"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_what_cannot_work_is_named() {
        assert!(Config::default().validate().is_ok());
        let cases: [(&str, Config); 5] = [
            ("append_lanes", Config { append_lanes: 0, ..Config::default() }),
            ("frame_bytes_max", Config { frame_bytes_max: 1, ..Config::default() }),
            ("outbox_bytes_max", Config { outbox_bytes_max: 5000, ..Config::default() }),
            ("keep_alive", Config { keep_alive: Duration::from_secs(1), ..Config::default() }),
            ("snapshots_at_once", Config { snapshots_at_once: 0, ..Config::default() }),
        ];
        for (key, config) in cases {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }
}
