//! The sender's end of a snapshot.

use super::{FILES_MAX, Verdict, files, is_allowed_name};
use crate::dial::dial;
use crate::error::SnapshotError;
use crate::handshake::Purpose;
use crate::quic::{self, Close};
use crate::shared::Shared;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::NodeId;
use flotilla_router::codec::Put;
use quinn::{Connection, SendStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a verdict may take to arrive once writing has failed: the receiver says why before it
/// stops reading.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Sends a snapshot, and counts how it ended.
pub(crate) async fn send(
    shared: Arc<Shared>,
    to: NodeId,
    header: Bytes,
    files: Vec<(String, PathBuf)>,
) -> Result<(), SnapshotError> {
    let result = connect_and_transfer(&shared, to, header, files).await;
    match &result {
        Ok(()) => shared.stats.snapshots_sent.count(),
        Err(error) => {
            shared.stats.snapshots_send_failed.count();
            tracing::debug!(peer = %to, %error, "snapshot not sent");
        }
    }
    result
}

async fn connect_and_transfer(
    shared: &Shared,
    to: NodeId,
    header: Bytes,
    files: Vec<(String, PathBuf)>,
) -> Result<(), SnapshotError> {
    if header.len() > shared.config.frame_bytes_max {
        return Err(SnapshotError::Invalid(format!(
            "a header of {} bytes is larger than a frame",
            header.len()
        )));
    }
    if files.len() > FILES_MAX as usize {
        return Err(SnapshotError::Invalid(format!(
            "{} files; at most {FILES_MAX} are allowed",
            files.len()
        )));
    }
    if let Some((name, _)) = files.iter().find(|(name, _)| !is_allowed_name(name)) {
        return Err(SnapshotError::Invalid(format!(
            "{name:?} can't be the name of a file in a snapshot"
        )));
    }
    let peer = shared
        .peer(to)
        .ok_or_else(|| SnapshotError::Unreachable(format!("node {to} is not known as a peer")))?;
    let (connection, _) = dial(shared, to, peer.address(), Purpose::Snapshot)
        .await
        .map_err(SnapshotError::Unreachable)?;
    let result = transfer(shared, &connection, header, files).await;
    connection.close(Close::Done.into(), b"the sender is done");
    result
}

async fn transfer(
    shared: &Shared,
    connection: &Connection,
    header: Bytes,
    files: Vec<(String, PathBuf)>,
) -> Result<(), SnapshotError> {
    let (mut stream, answer) =
        connection.open_bi().await.map_err(|error| SnapshotError::Lost(quic::describe(&error)))?;
    let lost = |text: String| {
        SnapshotError::Lost(
            connection.close_reason().map_or(text, |reason| quic::describe(&reason)),
        )
    };
    let verdict = async { Verdict::read(answer).await.map_err(|error| lost(error.to_string())) };
    tokio::pin!(verdict);
    let written = tokio::select! {
        // A verdict before everything was sent is a no.
        verdict = &mut verdict => return judge(verdict?),
        written = write(shared, &mut stream, header, files) => written,
    };
    let patience = match written {
        Ok(()) => shared.config.snapshot_stall_timeout,
        Err(SnapshotError::Lost(_)) => LAST_WORD,
        Err(error) => return Err(error),
    };
    match tokio::time::timeout(patience, &mut verdict).await {
        Ok(Ok(verdict)) => judge(verdict),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            written.and(Err(SnapshotError::Lost("the receiver gave no verdict in time".into())))
        }
    }
}

fn judge(verdict: Verdict) -> Result<(), SnapshotError> {
    match verdict {
        Verdict::Taken => Ok(()),
        Verdict::Refused(why) => Err(SnapshotError::Refused(why)),
        Verdict::Busy => Err(SnapshotError::Busy),
        Verdict::Failed(why) => Err(SnapshotError::Lost(format!("at the receiver: {why}"))),
    }
}

async fn write(
    shared: &Shared,
    stream: &mut SendStream,
    header: Bytes,
    files: Vec<(String, PathBuf)>,
) -> Result<(), SnapshotError> {
    let mut head = BytesMut::with_capacity(header.len() + 8);
    head.put_bytes_prefixed(&header);
    head.put_u32(u32::try_from(files.len()).expect("the number of files was checked"));
    put(shared, stream, head.freeze()).await?;
    for (name, path) in files {
        let failed = |source| SnapshotError::Read { file: name.clone(), source };
        // The file may be on a slow disk, but opening one is short.
        let file = std::fs::File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut head = BytesMut::new();
        head.put_bytes_prefixed(name.as_bytes());
        head.put_u64(length);
        put(shared, stream, head.freeze()).await?;
        let mut chunks = files::read(file, length);
        let mut checksum = crc32fast::Hasher::new();
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.map_err(failed)?;
            checksum.update(&chunk);
            shared.snapshot_send_pace.take(chunk.len()).await;
            shared.stats.snapshot_bytes_sent.add(chunk.len() as u64);
            put(shared, stream, chunk).await?;
        }
        put(shared, stream, Bytes::copy_from_slice(&checksum.finalize().to_be_bytes())).await?;
    }
    stream.finish().map_err(|error| SnapshotError::Lost(error.to_string()))
}

/// Writes, and fails where that stands still for too long.
async fn put(shared: &Shared, stream: &mut SendStream, bytes: Bytes) -> Result<(), SnapshotError> {
    match tokio::time::timeout(shared.config.snapshot_stall_timeout, stream.write_chunk(bytes))
        .await
    {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(SnapshotError::Lost(error.to_string())),
        Err(_) => Err(SnapshotError::Lost("the receiver takes nothing more".into())),
    }
}
