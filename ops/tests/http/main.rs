//! The HTTP server from outside: every call of the HTTP API that exists, over real sockets, against
//! a node made of memory.
//!
//! [`fake`] is that node: three shards over one ordered map, faithful to what `Request` promises,
//! with faults to order. [`client`] speaks HTTP/1.1 by hand, so that malformed input can be sent
//! too; [`h2`] speaks as much HTTP/2 as it takes to be rude.

mod batch;
mod client;
mod crowded;
mod doors;
mod early;
mod fake;
mod h2;
mod halves;
mod keys;
mod operators;
mod protocol;
mod ranges;
mod slow;
mod targets;

use client::{Answer, Client};
use fake::Fake;
use flotilla_ops::{Limits, Metrics, Pages, Server, Serves};
use std::net::SocketAddr;
use std::sync::Arc;

/// A server in front of a fake node.
struct Rig {
    server: Server,
    fake: Arc<Fake>,
    metrics: Arc<Metrics>,
    addr: SocketAddr,
}

impl Rig {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        Self::with_pages(limits, Pages::default()).await
    }

    async fn with_pages(limits: Limits, pages: Pages) -> Self {
        let fake = Arc::new(Fake::default());
        let addr = "127.0.0.1:0".parse().unwrap();
        let metrics = Arc::new(Metrics::default());
        let (serves, metrics_of) = (Serves::Everything(pages), metrics.clone());
        let server = Server::bind(
            addr,
            limits,
            serves,
            fake.clone(),
            fake.clone(),
            fake.clone(),
            metrics_of,
        )
        .await
        .unwrap();
        let addr = server.local_addr();
        Self { server, fake, metrics, addr }
    }

    async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }

    /// One request on a connection of its own.
    async fn ask(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut client = self.client().await;
        client.send(method, target, headers, body).await;
        client.answer(method == "HEAD").await.expect("an answer")
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[], b"").await
    }

    async fn put(&self, key: &str, value: &[u8]) -> Answer {
        self.ask("PUT", &format!("/v1/kv/{key}"), &[], value).await
    }

    /// Sets keys one by one.
    async fn fill(&self, keys: &[&str]) {
        for key in keys {
            assert_eq!(self.put(key, key.as_bytes()).await.status, 204);
        }
    }
}
