//! A snapshot's manifest in bytes, as it travels in the raft message and lies in the install
//! marker.
//!
//! ```text
//! manifest := format (1) ‖ descriptor (4 + n) ‖ index (8) ‖ term (8) ‖ revision (8) ‖ count (4) ‖ file*
//! file     := name (4 + n) ‖ bytes (8) ‖ checksum (4)
//! ```
//!
//! It may come from another node, and its names become names of files. So decoding refuses every
//! name that could lead out of the snapshot's folder.

use crate::records::FORMAT;
use crate::work::{LogPosition, SnapshotFile, SnapshotManifest};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::codec::{Put, Reader};
use flotilla_router::{DecodeError, Descriptor, Revision};

/// The longest name of a file.
const NAME_BYTES_MAX: usize = 100;

impl SnapshotManifest {
    /// How many bytes the files have together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// The encoding.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        self.descriptor.encode_prefixed(&mut out);
        out.put_u64(self.at.index);
        out.put_u64(self.at.term);
        out.put_u64(self.revision.0);
        out.put_u32(
            u32::try_from(self.files.len()).expect("a snapshot has far fewer than 4 billion files"),
        );
        for file in &self.files {
            out.put_bytes_prefixed(file.name.as_bytes());
            out.put_u64(file.bytes);
            out.put_u32(file.checksum);
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("snapshot manifest", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.error(format!("format {format}; this binary reads {FORMAT}")));
        }
        let descriptor = Descriptor::read_prefixed(&mut reader)?;
        let at = LogPosition { index: reader.u64()?, term: reader.u64()? };
        let revision = Revision(reader.u64()?);
        let count = reader.count(16)?;
        let mut files = Vec::with_capacity(count);
        for _ in 0..count {
            let file = SnapshotFile {
                name: reader.string()?,
                bytes: reader.u64()?,
                checksum: reader.u32()?,
            };
            if !is_plain_name(&file.name)
                || files.iter().any(|known: &SnapshotFile| known.name == file.name)
            {
                return Err(reader.error(format!("the file name {:?}", file.name)));
            }
            files.push(file);
        }
        reader.end()?;
        Ok(Self { descriptor, at, revision, files })
    }
}

/// Whether a name is that of a file inside a folder, on every system: letters, digits, `-` and `.`,
/// and no `.` in front.
pub fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::descriptor;
    use proptest::prelude::*;

    fn manifest(names: &[&str]) -> SnapshotManifest {
        let files = names
            .iter()
            .map(|name| SnapshotFile { name: name.to_string(), bytes: 3, checksum: 4 })
            .collect();
        let at = LogPosition { index: 9, term: 2 };
        SnapshotManifest {
            descriptor: descriptor(7, "a", Some("b")),
            at,
            revision: Revision(5),
            files,
        }
    }

    #[test]
    fn a_manifest_survives_its_encoding_and_no_truncation_does() {
        let manifest = manifest(&["000000.sst", "000001.sst"]);
        let bytes = manifest.encode();
        for n in 0..bytes.len() {
            assert!(
                SnapshotManifest::decode(bytes.slice(..n)).is_err(),
                "the first {n} bytes were taken for a manifest"
            );
        }
        assert_eq!(SnapshotManifest::decode(bytes), Ok(manifest));
    }

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_refused() {
        for bad in ["..", ".", "", "a/b", "/etc", "a\\b", "a\0", "ü", ".hidden", &"x".repeat(101)]
        {
            assert!(
                SnapshotManifest::decode(manifest(&[bad]).encode()).is_err(),
                "{bad:?} was taken"
            );
        }
        assert!(
            SnapshotManifest::decode(manifest(&["a", "a"]).encode()).is_err(),
            "a name was taken twice"
        );
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_manifest_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 1..100),
        ) {
            bytes[0] = FORMAT;
            let _ = SnapshotManifest::decode(bytes.into());
        }
    }
}
