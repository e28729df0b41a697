//! Files of a snapshot on the disk: read, or written and synced, by a thread that may block, with a
//! few chunks between it and the network.

use super::{CHUNK_BYTES, CHUNKS_AHEAD};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Reads exactly `length` bytes of a file, chunk by chunk. The last item may be an error, that of a
/// file too short included.
pub(super) fn read(mut file: File, length: u64) -> mpsc::Receiver<io::Result<Bytes>> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut rest = length;
        while rest > 0 {
            let n = usize::try_from(rest).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let mut chunk = vec![0; n];
            let result = file.read_exact(&mut chunk).map(|()| Bytes::from(chunk));
            let is_end = result.is_err();
            // The one who reads is gone when the sending broke off.
            if chunks.blocking_send(result).is_err() || is_end {
                return;
            }
            rest -= n as u64;
        }
    });
    receiver
}

/// What the writing thread is told.
enum Order {
    /// Begin a file of that name; the one before is complete.
    Create(String),
    /// Put this behind what is there.
    Append(Bytes),
}

/// Writes files into a folder.
pub(super) struct Writer {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<io::Result<()>>,
}

impl Writer {
    /// Makes the folder, where it is missing, and waits for files.
    pub(super) fn new(dir: PathBuf) -> Self {
        let (orders, receiver) = mpsc::channel(CHUNKS_AHEAD);
        Self { orders, thread: tokio::task::spawn_blocking(move || write(&dir, receiver)) }
    }

    /// Begins a file. An error of the disk shows in [`Writer::finish`]: `false` says that there is
    /// one.
    pub(super) async fn create(&self, name: String) -> bool {
        self.orders.send(Order::Create(name)).await.is_ok()
    }

    /// Writes on. `false` as above.
    pub(super) async fn append(&self, chunk: Bytes) -> bool {
        self.orders.send(Order::Append(chunk)).await.is_ok()
    }

    /// Waits until all files, the folder and its place in the folder above are durable.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.orders);
        self.thread.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn write(dir: &Path, mut orders: mpsc::Receiver<Order>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut current: Option<File> = None;
    while let Some(order) = orders.blocking_recv() {
        match order {
            Order::Create(name) => {
                if let Some(file) = current.take() {
                    file.sync_all()?;
                }
                // A name that comes twice, or is there from before, is an error rather than a
                // mixture.
                current = Some(File::create_new(dir.join(name))?);
            }
            Order::Append(chunk) => {
                current
                    .as_mut()
                    .ok_or_else(|| io::Error::other("bytes before the first file"))?
                    .write_all(&chunk)?;
            }
        }
    }
    if let Some(file) = current {
        file.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(above) => File::open(above)?.sync_all(),
        None => Ok(()),
    }
}
