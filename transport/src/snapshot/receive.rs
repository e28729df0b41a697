//! The receiver's end of a snapshot.

use super::{CHUNK_BYTES, FILES_MAX, NAME_BYTES_MAX, Verdict, files, is_allowed_name};
use crate::handler::{Handler, Staging};
use crate::quic::{self, Close};
use crate::shared::Shared;
use bytes::{Bytes, BytesMut};
use flotilla_router::NodeId;
use quinn::{Connection, RecvStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the sender may take to have the verdict.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Takes one snapshot in, and tells the sender how it ended.
pub(crate) async fn receive(shared: &Arc<Shared>, connection: Connection, from: NodeId) {
    let Ok((mut send, stream)) = connection.accept_bi().await else {
        shared.stats.snapshots_receive_failed.count();
        return;
    };
    let mut stream = Incoming { stream, stall_timeout: shared.config.snapshot_stall_timeout };
    let verdict = match shared.snapshot_slots.clone().try_acquire_owned() {
        Ok(_slot) => take(shared, &mut stream, from).await,
        Err(_) => Verdict::Busy,
    };
    if verdict == Verdict::Taken {
        tracing::info!(peer = %from, "snapshot taken");
    } else {
        tracing::info!(peer = %from, ?verdict, "snapshot not taken");
    }
    // The verdict first: a sender that is told to stop looks for it.
    if send.write_chunk(verdict.encode()).await.is_ok() && send.finish().is_ok() {
        drop(stream);
        let _ = tokio::time::timeout(LAST_WORD, send.stopped()).await;
    }
    connection.close(Close::Done.into(), b"the receiver is done");
}

async fn take(shared: &Arc<Shared>, stream: &mut Incoming, from: NodeId) -> Verdict {
    let staged = match stage(shared, stream, from).await {
        Ok(staged) => staged,
        Err(verdict) => {
            shared.stats.snapshots_receive_failed.count();
            return verdict;
        }
    };
    let writer = files::Writer::new(staged.dir.clone());
    let taken = take_files(shared, stream, &writer, staged.bytes_max).await;
    // The disk's error is the cause where both have one; and nothing may be written any more when
    // the folder is cleaned up.
    let written = writer.finish().await;
    let whole = match (written, taken) {
        (Err(error), _) => Err(format!("write: {error}")),
        (_, taken) => taken,
    };
    if let Err(why) = whole {
        shared.stats.snapshots_receive_failed.count();
        return Verdict::Failed(why);
    }
    shared.stats.snapshots_received.count();
    let (done, verdict) = oneshot::channel();
    staged.hand_on(done);
    match verdict.await {
        Ok(Ok(())) => Verdict::Taken,
        Ok(Err(why)) => Verdict::Refused(why),
        Err(_) => Verdict::Refused("it was given up without a verdict".into()),
    }
}

/// Reads the header and asks where the files go.
async fn stage(
    shared: &Arc<Shared>,
    stream: &mut Incoming,
    from: NodeId,
) -> Result<Staged, Verdict> {
    let header =
        stream.string(shared.config.frame_bytes_max, "header").await.map_err(Verdict::Failed)?;
    let handler = shared.handler.clone();
    let asked = {
        let (handler, header) = (handler.clone(), header.clone());
        tokio::task::spawn_blocking(move || handler.stage_snapshot(from, &header)).await
    };
    match asked {
        Ok(Ok(Staging { dir, bytes_max })) => {
            Ok(Staged { handler, from, header, dir, bytes_max, is_handed_on: false })
        }
        Ok(Err(why)) => Err(Verdict::Refused(why)),
        Err(_) => Err(Verdict::Failed("the receiver could not stage it".into())),
    }
}

async fn take_files(
    shared: &Shared,
    stream: &mut Incoming,
    writer: &files::Writer,
    mut bytes_max: u64,
) -> Result<(), String> {
    const DISK: &str = "the disk";
    let count = stream.u32().await?;
    if count > FILES_MAX {
        return Err(format!("{count} files; at most {FILES_MAX} are allowed"));
    }
    for _ in 0..count {
        let name = stream.string(NAME_BYTES_MAX, "name").await?;
        let name = std::str::from_utf8(&name).ok().filter(|name| is_allowed_name(name));
        let name = name.ok_or("a file has a name that is not allowed")?.to_owned();
        if !writer.create(name.clone()).await {
            return Err(DISK.into());
        }
        let mut rest = stream.u64().await?;
        // Room was kept for so many, and no more.
        bytes_max =
            bytes_max.checked_sub(rest).ok_or("it has more bytes than it was announced with")?;
        let mut checksum = crc32fast::Hasher::new();
        while rest > 0 {
            let chunk = stream.chunk(rest).await?;
            rest -= chunk.len() as u64;
            checksum.update(&chunk);
            shared.stats.snapshot_bytes_received.add(chunk.len() as u64);
            shared.snapshot_receive_pace.take(chunk.len()).await;
            if !writer.append(chunk).await {
                return Err(DISK.into());
            }
        }
        if stream.u32().await? != checksum.finalize() {
            return Err(format!("file {name} has another checksum than it was sent with"));
        }
    }
    stream.end().await
}

/// A folder that was named for a snapshot: it is either handed on or reported for cleaning up,
/// whatever happens.
struct Staged {
    handler: Arc<dyn Handler>,
    from: NodeId,
    header: Bytes,
    dir: PathBuf,
    bytes_max: u64,
    is_handed_on: bool,
}

impl Staged {
    fn hand_on(mut self, done: oneshot::Sender<Result<(), String>>) {
        self.is_handed_on = true;
        self.handler.snapshot_staged(self.from, self.header.clone(), self.dir.clone(), done);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_handed_on {
            self.handler.snapshot_failed(self.from, self.header.clone(), self.dir.clone());
        }
    }
}

/// What the sender writes, with a limit on how long it may be silent.
struct Incoming {
    stream: RecvStream,
    stall_timeout: Duration,
}

impl Incoming {
    async fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        match tokio::time::timeout(self.stall_timeout, self.stream.read_exact(bytes)).await {
            Ok(result) => result.map_err(|error| describe(&error)),
            Err(_) => Err("the sender has fallen silent".into()),
        }
    }

    async fn u32(&mut self) -> Result<u32, String> {
        let mut bytes = [0; 4];
        self.exactly(&mut bytes).await?;
        Ok(u32::from_be_bytes(bytes))
    }

    async fn u64(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        self.exactly(&mut bytes).await?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// A string with its length, which is believed only as far as bytes arrive.
    async fn string(&mut self, bytes_max: usize, what: &str) -> Result<Bytes, String> {
        let mut rest = self.u32().await? as usize;
        if rest > bytes_max {
            return Err(format!("a {what} of {rest} bytes; at most {bytes_max} are allowed"));
        }
        let mut string = BytesMut::new();
        while rest > 0 {
            let chunk = self.chunk(rest as u64).await?;
            rest -= chunk.len();
            string.extend_from_slice(&chunk);
        }
        Ok(string.freeze())
    }

    /// At most `bytes_max` bytes and at most a chunk; gathers what is there, so that the disk sees
    /// few writes.
    async fn chunk(&mut self, bytes_max: u64) -> Result<Bytes, String> {
        let want = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut chunk = BytesMut::with_capacity(want);
        while chunk.len() < want {
            let read = self.stream.read_chunk(want - chunk.len(), true);
            match tokio::time::timeout(self.stall_timeout, read).await {
                Ok(Ok(Some(read))) => chunk.extend_from_slice(&read.bytes),
                Ok(Ok(None)) => return Err("it ends too early".into()),
                Ok(Err(error)) => return Err(describe(&quinn::ReadExactError::ReadError(error))),
                Err(_) => return Err("the sender has fallen silent".into()),
            }
        }
        Ok(chunk.freeze())
    }

    async fn end(&mut self) -> Result<(), String> {
        match tokio::time::timeout(self.stall_timeout, self.stream.read_chunk(1, true)).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(_))) => Err("there is more than it says".into()),
            Ok(Err(error)) => Err(describe(&quinn::ReadExactError::ReadError(error))),
            Err(_) => Err("the sender has fallen silent".into()),
        }
    }
}

fn describe(error: &quinn::ReadExactError) -> String {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => "it ends too early".into(),
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error)) => {
            quic::describe(error)
        }
        quinn::ReadExactError::ReadError(error) => error.to_string(),
    }
}
