//! The limits on what one client, and all clients together, can make a node do or hold.
//! `GET /v1/limits` shows them.
//!
//! Part of the configuration: each has a default that suits production, unknown names are refused,
//! and [`Limits::check`] refuses values that can't work. Durations are written as people write them
//! (`10s`); counts of bytes are plain numbers.

use flotilla_router::sizes::{KEY_BYTES_MAX, PAGE_BYTES_MAX, VALUE_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The least of [`Limits::answer_bytes_max`]: a page takes the largest item, with what it takes in
/// memory.
const ANSWER_BYTES_LEAST: usize = 2 * VALUE_BYTES_MAX;

/// The limits in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The longest key, in bytes, after percent-decoding. At most 4096: stored records rely on it.
    pub key_bytes_max: usize,
    /// The largest value, in bytes. At most 1 MiB: log entries and frames rely on it.
    pub value_bytes_max: usize,
    /// The largest request head (request line and header fields together), in bytes. HTTP/1.1 takes
    /// no less than 8 KiB.
    pub header_bytes_max: usize,
    /// The most header fields of a request.
    pub headers_max: usize,
    /// Connections at a time. For one more the longest idle is closed; where none is idle, it is
    /// told 503.
    pub connections_max: usize,
    /// Requests at a time, over all connections, until their answers are taken; one more is
    /// answered with 429.
    pub requests_in_flight_max: usize,
    /// Bytes of request bodies at a time, over all connections; a body that would pass it is
    /// answered with 429.
    pub in_flight_bytes_max: usize,
    /// Bytes of answers at a time that clients have not taken, over all connections; a read that
    /// would pass it is answered with 429. At least 2 MiB, so that the largest item can be read.
    pub answer_bytes_max: usize,
    /// Streams at a time on one HTTP/2 connection.
    pub http2_streams_max: u32,
    /// From the first byte of a request head to its last; then 408.
    #[serde(with = "humantime_serde")]
    pub header_read_timeout: Duration,
    /// The longest silence within a request body; then 408.
    #[serde(with = "humantime_serde")]
    pub body_read_timeout: Duration,
    /// The longest time that a client may leave an answer unread; then the connection is closed.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// The least rate at which a client must send a body (after two `body_read_timeout`s; then 408)
    /// and take an answer (after a `write_timeout`; then the connection is closed), in bytes per
    /// second on average, over all requests of a connection.
    pub client_bytes_per_second_min: u64,
    /// The longest silence between requests on one connection; then it is closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// From the end of a request to its answer (for a stream: to each of its parts).
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Items of a scan's page where the request names no `limit`.
    pub scan_items_default: u32,
    /// The greatest `limit` of a scan's page; a stream of NDJSON takes any.
    pub scan_items_max: u32,
    /// Bytes of keys and values in a scan's page where the request names no `max_bytes`.
    pub scan_bytes_default: u32,
    /// The greatest `max_bytes` of a scan. At most 8 MiB: a page that another node made comes in
    /// one frame.
    pub scan_bytes_max: u32,
    /// Operations in one batch.
    pub batch_ops_max: usize,
    /// The largest body of a batch, in bytes.
    pub batch_bytes_max: usize,
    /// The largest answer to a batch, in bytes; gets beyond it fail by themselves, with 413.
    pub batch_answer_bytes_max: usize,
    /// Shards in one page of the admin listing.
    pub admin_page_max: usize,
    /// The largest body of an admin request, in bytes.
    pub admin_bytes_max: usize,
    /// Tasks that accept connections.
    pub accept_loops: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: 4096,
            value_bytes_max: 1 << 20,
            header_bytes_max: 32 << 10,
            headers_max: 100,
            connections_max: 10_000,
            requests_in_flight_max: 50_000,
            in_flight_bytes_max: 256 << 20,
            answer_bytes_max: 256 << 20,
            http2_streams_max: 250,
            header_read_timeout: Duration::from_secs(10),
            body_read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            client_bytes_per_second_min: 32 << 10,
            idle_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(5),
            scan_items_default: 100,
            scan_items_max: 10_000,
            scan_bytes_default: 1 << 20,
            scan_bytes_max: 8 << 20,
            batch_ops_max: 1_000,
            batch_bytes_max: 16 << 20,
            batch_answer_bytes_max: 16 << 20,
            admin_page_max: 1_000,
            admin_bytes_max: 64 << 10,
            accept_loops: 2,
        }
    }
}

impl Limits {
    /// For a server that answers nothing but probes: few who ask, small questions. Its connections
    /// take files from everybody else.
    pub fn of_probes() -> Self {
        Self {
            connections_max: 32,
            requests_in_flight_max: 256,
            header_bytes_max: 8 << 10,
            accept_loops: 1,
            ..Self::default()
        }
    }

    /// Whether every limit can work; if not, which can't and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} = {value}: allowed is {min} to {max}"))
            }
        };
        within("key_bytes_max", self.key_bytes_max, 1, KEY_BYTES_MAX)?;
        within("value_bytes_max", self.value_bytes_max, 1, VALUE_BYTES_MAX)?;
        within("header_bytes_max", self.header_bytes_max, 8 << 10, 1 << 20)?;
        within("headers_max", self.headers_max, 10, 1_000)?;
        within("connections_max", self.connections_max, 1, 1_000_000)?;
        within("requests_in_flight_max", self.requests_in_flight_max, 1, 10_000_000)?;
        within("in_flight_bytes_max", self.in_flight_bytes_max, self.value_bytes_max, 1 << 50)?;
        within("answer_bytes_max", self.answer_bytes_max, ANSWER_BYTES_LEAST, 1 << 50)?;
        within(
            "client_bytes_per_second_min",
            self.client_bytes_per_second_min as usize,
            1,
            1 << 30,
        )?;
        within("http2_streams_max", self.http2_streams_max as usize, 1, 100_000)?;
        within("scan_items_max", self.scan_items_max as usize, 1, 1_000_000)?;
        within(
            "scan_items_default",
            self.scan_items_default as usize,
            1,
            self.scan_items_max as usize,
        )?;
        within("scan_bytes_max", self.scan_bytes_max as usize, 1 << 10, PAGE_BYTES_MAX)?;
        within(
            "scan_bytes_default",
            self.scan_bytes_default as usize,
            1 << 10,
            self.scan_bytes_max as usize,
        )?;
        within("batch_ops_max", self.batch_ops_max, 1, 100_000)?;
        within("batch_bytes_max", self.batch_bytes_max, 1 << 10, self.in_flight_bytes_max)?;
        within(
            "batch_answer_bytes_max",
            self.batch_answer_bytes_max,
            1 << 10,
            self.answer_bytes_max,
        )?;
        within("admin_page_max", self.admin_page_max, 1, 100_000)?;
        within("admin_bytes_max", self.admin_bytes_max, 1 << 10, 16 << 20)?;
        within("accept_loops", self.accept_loops, 1, 64)?;
        for (name, value) in [
            ("header_read_timeout", self.header_read_timeout),
            ("body_read_timeout", self.body_read_timeout),
            ("write_timeout", self.write_timeout),
            ("idle_timeout", self.idle_timeout),
            ("request_timeout", self.request_timeout),
        ] {
            if value < Duration::from_millis(10) || value > Duration::from_secs(3600) {
                return Err(format!(
                    "{name} = {}: allowed is 10ms to 1h",
                    humantime::format_duration(value)
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_work_and_survive_toml() {
        let limits = Limits::default();
        assert_eq!(limits.check(), Ok(()));
        let text = toml::to_string(&limits).unwrap();
        assert!(text.contains("request_timeout = \"5s\""), "{text}");
        assert_eq!(toml::from_str::<Limits>(&text).unwrap(), limits);
    }

    #[test]
    fn what_can_not_work_is_named() {
        let limits = Limits { key_bytes_max: 5000, ..Limits::default() };
        assert_eq!(limits.check().unwrap_err(), "key_bytes_max = 5000: allowed is 1 to 4096");
        let limits = Limits { request_timeout: Duration::ZERO, ..Limits::default() };
        assert!(limits.check().unwrap_err().starts_with("request_timeout"));
        assert!(
            toml::from_str::<Limits>("key_bytes = 3")
                .unwrap_err()
                .to_string()
                .contains("unknown field `key_bytes`")
        );
    }
}
