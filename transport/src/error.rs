//! Every way in which the transport says no, each with what to do.

use std::io;
use std::net::SocketAddr;

/// Why the transport can't start, or a certificate can't be made. All fatal: a person has to change
/// something.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The UDP socket could not be had.
    #[error("{}", bind_message(.address, .source))]
    Bind {
        /// Where it should have listened.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate or key is missing, unreadable, expired or of another cluster.
    #[error("{what}: {why}")]
    Credentials {
        /// Which file or part.
        what: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A certificate could not be made.
    #[error("make certificate: {why}")]
    Certificate {
        /// What is wrong.
        why: String,
    },
    /// A setting that can't work.
    #[error("transport settings: {why}")]
    Config {
        /// Which, and what is allowed.
        why: String,
    },
    /// It was started outside of a tokio runtime.
    #[error("start transport: there is no tokio runtime here; call it within one")]
    NoRuntime,
}

fn bind_message(address: &SocketAddr, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is in use; choose another with `quic = ...`")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "{address} may not be opened by this user; choose a port above 1023 with `quic = \
                 ...`"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "{address} is not an address of this machine; choose one that is, or 0.0.0.0, with \
                 `quic = ...`"
            )
        }
        _ => format!("listen on {address}: {source}"),
    }
}

/// Why a forwarded request has no answer. The variants tell what may have happened to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not one byte of it was handed to the network: it is certain that the peer never saw it.
    #[error("request not sent: {0}")]
    NotSent(&'static str),
    /// The same, because its time ran out before it left. That says nothing about the peer.
    #[error("request not sent: its time ran out before it left")]
    TooLate,
    /// The same, because too many bytes of requests to that peer are under way; it is there, and
    /// may have room in a moment.
    #[error("request not sent: {limit} bytes of requests to that node are under way")]
    Full {
        /// How many bytes may be.
        limit: usize,
    },
    /// It was sent, and then the connection was lost, or the peer gave it up without an answer. It
    /// may have been carried out.
    #[error("request lost: the peer may or may not have carried it out")]
    Lost,
    /// It was sent, and its time ran out before an answer came. It may have been carried out.
    #[error("request expired after it was sent: the peer may or may not have carried it out")]
    Expired,
    /// It was answered, and there is no room here for so large an answer: too many others wait to
    /// be taken. Only answers that carry data are so large.
    #[error("request answered, but there is no room for the answer")]
    NoRoom,
}

/// Why a snapshot did not arrive. The receiver has nothing of it, or was told to throw it away.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The peer could not be reached, or refused the connection.
    #[error("send snapshot: {0}")]
    Unreachable(String),
    /// The peer takes in as many snapshots as it may; try later.
    #[error("send snapshot: the peer is busy with others")]
    Busy,
    /// The peer does not want it.
    #[error("send snapshot: the peer says: {0}")]
    Refused(String),
    /// The connection broke, or nothing moved for too long.
    #[error("send snapshot: {0}")]
    Lost(String),
    /// A file to be sent could not be read.
    #[error("send snapshot: read {file}: {source}")]
    Read {
        /// Its name in the snapshot.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was to be sent can't be: a bad file name, too many files, too long a header.
    #[error("send snapshot: {0}")]
    Invalid(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let error = TransportError::Bind {
            address: ([127, 0, 0, 1], 7101).into(),
            source: io::ErrorKind::AddrInUse.into(),
        };
        assert_eq!(error.to_string(), "127.0.0.1:7101 is in use; choose another with `quic = ...`");
    }
}
