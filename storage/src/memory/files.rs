//! Exported files of the engine in memory: keys and values, one after the other, each with its
//! length.

use super::{MemoryEngine, MemoryView};
use crate::engine::{Cursor as _, Engine as _, Family, Order, Read as _};
use crate::error::StorageError;
use crate::work::SnapshotFile;
use bytes::{Bytes, BytesMut};
use flotilla_router::codec::{Put as _, Reader};
use std::path::Path;

/// Writes the data records of a range into files.
pub(super) fn export(
    engine: &MemoryEngine,
    view: &MemoryView,
    (start, end): (&[u8], &[u8]),
    folder: &Path,
    file_bytes_max: u64,
) -> Result<Vec<SnapshotFile>, StorageError> {
    engine.remove_folder(folder)?;
    let (mut files, mut out) = (Vec::new(), BytesMut::new());
    let mut finish = |out: &mut BytesMut| {
        let (name, contents) = (format!("{:06}.mem", files.len()), out.split().freeze());
        files.push(SnapshotFile {
            name: name.clone(),
            bytes: contents.len() as u64,
            checksum: crc32fast::hash(&contents),
        });
        engine.put_file(folder, &name, contents);
    };
    let mut cursor = view.cursor(Family::Data, start, Some(end), Order::Forward);
    while let Some((key, value)) = cursor.next()? {
        out.put_bytes_prefixed(key);
        out.put_bytes_prefixed(value);
        if out.len() as u64 >= file_bytes_max {
            finish(&mut out);
        }
    }
    if !out.is_empty() {
        finish(&mut out);
    }
    Ok(files)
}

/// What files hold, in order.
pub(super) fn records(
    engine: &MemoryEngine,
    folder: &Path,
    files: &[SnapshotFile],
) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
    let mut records = Vec::new();
    for file in files {
        let mut reader =
            Reader::new("snapshot file", engine.file(folder, &file.name).unwrap_or_default());
        while !reader.is_empty() {
            let record = reader.bytes().and_then(|key| Ok((key, reader.bytes()?)));
            records.push(record.map_err(|e| StorageError::engine("read snapshot file", e))?);
        }
    }
    Ok(records)
}
