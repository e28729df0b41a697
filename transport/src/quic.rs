//! The QUIC endpoint: one UDP socket for all connections, in both directions, and how they are
//! tuned.
//!
//! - Keep-alive is on and the idle timeout short: a peer that died is noticed soon, and a quiet
//!   connection is not lost. No migration, no early data.
//! - Windows: every stream may have [`STREAM_WINDOW_BYTES`] in flight, and the connection as much
//!   as all streams together, so that a full append lane never takes the control lane's share.
//! - MTU discovery stays at its defaults: a fixed MTU of 8,900 collapsed on loopback.
//! - Close codes are for programs, close reasons for people: a reason says what to do.

use crate::config::{Config, Congestion};
use crate::error::TransportError;
use crate::lane::APPEND_LANES_MAX;
use crate::tls::Credentials;
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TransportConfig,
    VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// How much of one stream may be sent and not yet read.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// The streams that a node opens beside its append lanes: control, requests, handshake.
const OTHER_STREAMS: u32 = 3;
/// What is sent before the first acknowledgement: peers are near, and a pass of the loop should
/// leave at once.
const INITIAL_WINDOW_BYTES: u64 = 128 << 10;
/// Packets after which the other end acknowledges.
const ACK_EVERY_PACKETS: u32 = 16;
/// The longest that it may wait with fewer.
const ACK_DELAY_MAX: Duration = Duration::from_millis(5);
/// What a round trip is taken for before it is measured.
const INITIAL_RTT: Duration = Duration::from_millis(20);

/// Why a connection was closed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// The process ends.
    ShuttingDown = 1,
    /// The handshake was refused.
    Refused = 2,
    /// The peer broke the protocol.
    Protocol = 3,
    /// Another connection took its place.
    Superseded = 4,
    /// What it was for is done.
    Done = 5,
}

impl From<Close> for VarInt {
    fn from(close: Close) -> Self {
        Self::from_u32(close as u32)
    }
}

/// How connections are accepted, and how they are dialled.
pub(crate) fn configs(
    config: &Config,
    credentials: &Credentials,
) -> Result<(quinn::ServerConfig, quinn::ClientConfig), TransportError> {
    let refuse =
        |error: &dyn std::error::Error| TransportError::Config { why: format!("TLS: {error}") };
    let server_tls = QuicServerConfig::try_from(credentials.server().map_err(|e| refuse(&e))?)
        .map_err(|e| refuse(&e))?;
    let client_tls = QuicClientConfig::try_from(credentials.client().map_err(|e| refuse(&e))?)
        .map_err(|e| refuse(&e))?;

    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server_tls));
    let mut taken = tuning(config)?;
    taken.max_concurrent_uni_streams(VarInt::from_u32(u32::from(APPEND_LANES_MAX) + 1));
    taken.max_concurrent_bidi_streams(VarInt::from_u32(2));
    server.transport_config(Arc::new(taken));
    server.migration(false);

    let mut client = quinn::ClientConfig::new(Arc::new(client_tls));
    let mut dialled = tuning(config)?;
    // Whoever is dialled only answers.
    dialled.max_concurrent_uni_streams(VarInt::from_u32(0));
    dialled.max_concurrent_bidi_streams(VarInt::from_u32(0));
    client.transport_config(Arc::new(dialled));
    Ok((server, client))
}

/// Opens the socket and starts to listen.
pub(crate) fn endpoint(
    config: &Config,
    server: quinn::ServerConfig,
) -> Result<Endpoint, TransportError> {
    let bind = |source| TransportError::Bind { address: config.listen, source };
    let socket = socket(config.listen, config.socket_buffer_bytes).map_err(bind)?;
    Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(quinn::TokioRuntime))
        .map_err(bind)
}

fn socket(address: SocketAddr, buffer_bytes: usize) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // Many peers burst at once into this one socket. The system may grant less; it does so
    // silently.
    socket.set_recv_buffer_size(buffer_bytes)?;
    socket.set_send_buffer_size(buffer_bytes)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn tuning(config: &Config) -> Result<TransportConfig, TransportError> {
    let idle_timeout = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|error| TransportError::Config { why: format!("idle_timeout: {error}") })?;
    let window = STREAM_WINDOW_BYTES * (u32::from(config.append_lanes) + OTHER_STREAMS);
    let mut tuning = TransportConfig::default();
    tuning
        .max_idle_timeout(Some(idle_timeout))
        .keep_alive_interval(Some(config.keep_alive))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(window.into())
        .initial_rtt(INITIAL_RTT)
        .ack_frequency_config(Some(acknowledge_rarely()))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(congestion(config.congestion));
    Ok(tuning)
}

/// An acknowledgement for every other packet would be a third of all packets: messages between
/// nodes are small, and the answer to one is on its way already. Loss is noticed as soon as before,
/// since a gap is acknowledged at once.
fn acknowledge_rarely() -> AckFrequencyConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY_PACKETS))
        .max_ack_delay(Some(ACK_DELAY_MAX));
    acks
}

fn congestion(congestion: Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(INITIAL_WINDOW_BYTES);
            Arc::new(cubic)
        }
        Congestion::NewReno => {
            let mut reno = NewRenoConfig::default();
            reno.initial_window(INITIAL_WINDOW_BYTES);
            Arc::new(reno)
        }
        Congestion::Bbr => {
            let mut bbr = BbrConfig::default();
            bbr.initial_window(INITIAL_WINDOW_BYTES);
            Arc::new(bbr)
        }
    }
}

/// What ended a connection, in words for a person; with what to do where TLS said no, for TLS
/// itself is terse.
pub(crate) fn describe(error: &ConnectionError) -> String {
    // A TLS alert travels as 0x100 + its number (RFC 9001, §4.8).
    let (code, by_peer, text) = match error {
        ConnectionError::ApplicationClosed(close) => {
            return String::from_utf8_lossy(&close.reason).into_owned();
        }
        ConnectionError::ConnectionClosed(close) => {
            (u64::from(close.error_code), true, error.to_string())
        }
        ConnectionError::TransportError(error) => (u64::from(error.code), false, error.to_string()),
        ConnectionError::TimedOut => return "no answer".into(),
        ConnectionError::LocallyClosed => return "closed by this node".into(),
        other => return other.to_string(),
    };
    // An authority of the same name but with another key shows as a bad signature: 51, not 48.
    let hint = match code.wrapping_sub(0x100) {
        48 | 51 if by_peer => {
            "the peer trusts another CA than the one that made this node's certificate"
        }
        48 | 51 => "the peer's certificate was not made by the CA that this node trusts",
        42 if by_peer => {
            "the peer dialled another node or cluster than the one that this node's certificate \
             names"
        }
        42 => {
            "another node or cluster than the one dialled answers at that address: check it in \
             `peers`"
        }
        45 => {
            "a certificate has expired: make a new one with `flotilla cert node`, and check the \
             clocks"
        }
        116 => {
            "a connection without a certificate: every node needs one, made by `flotilla cert node`"
        }
        120 => "the other end is no flotilla node, or one of another protocol version",
        _ => return text,
    };
    format!("{hint} ({text})")
}
