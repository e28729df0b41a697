//! Dialling: from a node's address to a connection on which both ends know each other.
//!
//! The address is looked up anew each time, for a node may have moved. TLS checks that the node
//! that was dialled answers; the handshake, that it is of this cluster and no former self.

use crate::certs::NodeName;
use crate::frame::FrameReader;
use crate::handshake::{HELLO_BYTES_MAX, Hello, Purpose, Refusal};
use crate::quic::{self, Close};
use crate::shared::Shared;
use crate::tls;
use bytes::Bytes;
use flotilla_router::{Incarnation, NodeId};
use quinn::{Connection, SendStream};
use std::net::SocketAddr;

/// Connects to `node` and shakes hands: gives a connection on which both ends know each other.
pub(crate) async fn dial(
    shared: &Shared,
    node: NodeId,
    address: String,
    purpose: Purpose,
) -> Result<(Connection, Incarnation), String> {
    let dialled = async {
        let connection = connect(shared, node, &address).await?;
        match greet(shared, node, &connection, purpose).await {
            Ok(incarnation) => {
                shared.stats.connections_opened.count();
                Ok((connection, incarnation))
            }
            Err(why) => {
                connection.close(Close::Refused.into(), why.as_bytes());
                Err(why)
            }
        }
    };
    // Each of its steps ends by the idle timeout; together they must not take for ever either.
    match tokio::time::timeout(shared.config.idle_timeout * 3, dialled).await {
        Ok(result) => result.map_err(|why| format!("{address}: {why}")),
        Err(_) => Err(format!("{address}: no answer")),
    }
}

async fn connect(shared: &Shared, node: NodeId, address: &str) -> Result<Connection, String> {
    let name = NodeName { node, cluster: shared.identity.cluster }.to_string();
    let local = shared.endpoint.local_addr().map_err(|error| error.to_string())?;
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(|error| format!("look the address up: {error}"))?
        .collect();
    if let Some(peer) = shared.peer(node) {
        peer.found_at(&found);
    }
    let mut failure =
        "the address leads nowhere that can be reached from the `quic` address of this node"
            .to_owned();
    for address in found.into_iter().filter(|address| address.is_ipv4() || local.is_ipv6()) {
        let client =
            shared.client.read().expect("nothing panics while it holds the configuration").clone();
        match shared.endpoint.connect_with(client, address, &name) {
            Ok(connecting) => match connecting.await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = quic::describe(&error),
            },
            Err(error) => failure = error.to_string(),
        }
    }
    Err(failure)
}

/// The dialling end's part of the handshake.
async fn greet(
    shared: &Shared,
    node: NodeId,
    connection: &Connection,
    purpose: Purpose,
) -> Result<Incarnation, String> {
    // Where the other end closes the connection, its reason says more than the stream's error.
    let lost =
        |error: String| connection.close_reason().map_or(error, |reason| quic::describe(&reason));
    let (mut send, receive) = connection.open_bi().await.map_err(|error| quic::describe(&error))?;
    send_hello(&mut send, &shared.hello(purpose)).await.map_err(lost)?;
    let hello = receive_hello(FrameReader::new(receive, HELLO_BYTES_MAX)).await.map_err(lost)?;
    let check = || {
        let hello = Hello::decode(hello)?;
        hello.check(
            shared.identity,
            tls::peer_name(connection).map_err(Refusal::NoName)?,
            Some(node),
        )?;
        shared.admit(hello.identity)?;
        Ok::<_, Refusal>(hello.identity.incarnation)
    };
    check().map_err(|refusal| refusal.to_string())
}

/// Sends the handshake, and ends its stream.
pub(crate) async fn send_hello(stream: &mut SendStream, hello: &Hello) -> Result<(), String> {
    let hello = hello.encode();
    let length = u32::try_from(hello.len()).expect("a handshake is short").to_be_bytes();
    stream.write_all(&[&length, &hello[..]].concat()).await.map_err(|error| error.to_string())?;
    stream.finish().map_err(|error| error.to_string())
}

/// Reads the handshake.
pub(crate) async fn receive_hello(mut frames: FrameReader) -> Result<Bytes, String> {
    match frames.next().await {
        Ok(Some(hello)) => Ok(hello),
        Ok(None) => Err("no handshake came".into()),
        Err(error) => Err(format!("handshake: {error}")),
    }
}
