//! Fuzzes what comes off the wire between nodes, before anybody has judged it: handshakes, frames,
//! requests and answers, snapshots' headers, raft messages, forwarded questions, log payloads.
//! Nothing panics, and what is read means the same when it is written again.
//!
//! ```text
//! input := kind (1) ‖ piece (1) ‖ what comes off the stream
//! ```
//!
//! Where an encoding is canonical (all that Flotilla writes by hand) the bytes must come out as
//! they went in. Protobuf and postcard take more than one spelling of the same thing: there the
//! second reading must equal the first.

use super::script::Script;
use bytes::Bytes;
use flotilla_node::core::wire::{self, Item};
use flotilla_router::call::{self, Forwarded};
use flotilla_router::codec::Reader;
use flotilla_router::command::{self, Payload, PayloadBuilder};
use flotilla_router::{
    ClusterId, DecodeError, Descriptor, Incarnation, KeyRange, NodeId, Refusal, Reply,
};
use flotilla_storage::SnapshotManifest;
use flotilla_storage::manifest::is_plain_name;
use flotilla_transport::{Identity, fuzzing};

/// Frames above this are refused.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// The node that takes all this in.
const OURS: Identity = Identity {
    cluster: ClusterId(7),
    node: NodeId(1),
    incarnation: Incarnation(3),
    bootstrap: 4,
    directory: 5,
    leases: None,
};

/// Runs one input.
pub(crate) fn run(data: &[u8]) {
    let mut script = Script::new(data);
    let (kind, piece) = (script.u8(), usize::from(script.u8()));
    let stream = Bytes::copy_from_slice(script.rest());
    match kind % 9 {
        0 => hello(stream),
        1 => lane(stream, piece),
        2 => frames(&stream, piece).into_iter().for_each(requests),
        3 => answers(frames(&stream, piece), piece),
        4 => snapshot_header(stream),
        5 => verdict(stream),
        6 => payload(stream),
        7 => question(&stream),
        _ => descriptor(stream),
    }
}

/// Puts the frames of a stream together. Cut into other pieces it must hold the same frames.
fn frames(stream: &Bytes, piece: usize) -> Vec<Bytes> {
    let whole = fuzzing::frames([stream.clone()], FRAME_BYTES_MAX);
    if piece > 0 {
        let pieces = stream.chunks(piece).map(Bytes::copy_from_slice);
        assert_eq!(
            fuzzing::frames(pieces, FRAME_BYTES_MAX),
            whole,
            "the frames depend on how they arrive"
        );
    }
    let (frames, unfinished) = whole;
    let again = fuzzing::gather(&frames);
    assert!(stream.starts_with(&again), "the frames leave otherwise than they came");
    assert!(unfinished || again.len() == stream.len(), "bytes are in no frame");
    frames
}

fn hello(bytes: Bytes) {
    if let Ok((_, again)) = fuzzing::hello(bytes.clone(), OURS) {
        assert_eq!(again, bytes, "a handshake is written otherwise than it was read");
    }
}

fn lane(mut stream: Bytes, piece: usize) {
    if stream.is_empty() {
        return;
    }
    let tag = stream.split_to(1)[0];
    let Some((_, again)) = fuzzing::lane(tag) else { return };
    assert_eq!(again, tag);
    frames(&stream, piece).into_iter().for_each(raft_frame);
}

/// A frame for the core: everything in it that can be read survives being written.
fn raft_frame(frame: Bytes) {
    let items = |frame: Bytes| {
        let mut items = Vec::new();
        wire::decode_frame(frame, |item| items.push(item)).map(|()| items)
    };
    let mut read = Vec::new();
    let _ = wire::decode_frame(frame, |item| read.push(item));
    let mut again = wire::start_frame();
    for item in &read {
        match item {
            Item::Message(envelope) => envelope.encode(&mut again),
            Item::Beat(beat) => wire::encode_beat(*beat, &mut again),
        }
    }
    let again = items(again.freeze()).expect("what was read can be written");
    assert_eq!(again.len(), read.len());
    for (again, read) in again.iter().zip(&read) {
        assert!(same(again, read), "{read:?} was written, {again:?} read");
    }
}

/// Whether two items say the same. Messages remember the sizes that they were written with, which
/// says nothing, and write fields that they don't know in an order of their own.
fn same(a: &Item, b: &Item) -> bool {
    use protobuf::Message as _;
    match (a, b) {
        (Item::Message(a), Item::Message(b)) => {
            (a.shard, a.epoch, a.committed) == (b.shard, b.epoch, b.committed)
                && (a.message.write_to_bytes().ok() == b.message.write_to_bytes().ok()
                    || format!("{:?}", a.message) == format!("{:?}", b.message))
        }
        (a, b) => a == b,
    }
}

fn requests(frame: Bytes) {
    let Ok((requests, stream)) = fuzzing::requests(frame.clone()) else { return };
    assert_eq!(stream[4..], frame[..], "requests leave otherwise than they came");
    requests.iter().for_each(|(_, request)| question(request));
}

fn question(bytes: &[u8]) {
    let Ok(forwarded) = call::decode::<Forwarded>("forwarded request", bytes) else { return };
    let again = call::decode::<Forwarded>("forwarded request", &call::encode(&forwarded));
    let _ = (forwarded.request.routing_key(), forwarded.request.is_write());
    assert_eq!(again.as_ref(), Ok(&forwarded));
    super::forward::answer(forwarded);
}

fn answers(frames: Vec<Bytes>, piece: usize) {
    fuzzing::answered(piece % 4, piece / 4 % 2, &frames);
    for frame in frames {
        let Ok((answers, stream)) = fuzzing::answers(frame.clone()) else { return };
        assert_eq!(stream[4..], frame[..], "answers leave otherwise than they came");
        answers
            .iter()
            .filter_map(|(_, answer)| answer.as_ref())
            .for_each(|answer| response(answer));
    }
}

fn response(bytes: &[u8]) {
    let Ok(response) = call::decode::<Result<Reply, Refusal>>("forwarded response", bytes) else {
        return;
    };
    if let Err(refusal) = &response {
        let _ = (
            refusal.to_string(),
            refusal.code(),
            refusal.outcome(),
            refusal.is_retryable(),
            refusal.shard(),
        );
        if let Refusal::WrongShard { descriptors, .. } = refusal {
            descriptors.iter().for_each(|bytes| descriptor(bytes.0.clone()));
        }
    }
    assert_eq!(
        call::decode::<Result<Reply, Refusal>>("forwarded response", &call::encode(&response)),
        Ok(response)
    );
}

/// What announces a snapshot: format ‖ raft message ‖ manifest.
fn snapshot_header(bytes: Bytes) {
    let mut reader = Reader::new("snapshot header", bytes);
    let mut read = || {
        reader.u8()?;
        let envelope = wire::decode_envelope(reader.bytes()?)?;
        let bytes = reader.bytes()?;
        Ok::<_, DecodeError>((envelope, SnapshotManifest::decode(bytes.clone())?, bytes))
    };
    let Ok((envelope, manifest, bytes)) = read() else { return };
    let mut again = bytes::BytesMut::new();
    envelope.encode(&mut again);
    assert!(
        wire::decode_envelope(again.freeze()).is_ok(),
        "an announcement can't be read that was just written"
    );
    assert_eq!(manifest.encode(), bytes, "a manifest is written otherwise than it was read");
    let _ = manifest.bytes();
    for file in &manifest.files {
        assert!(
            is_plain_name(&file.name) && fuzzing::is_file_name(&file.name),
            "the name {:?}",
            file.name
        );
        assert!(
            !file.name.contains(['/', '\\', '\0']) && !file.name.starts_with('.'),
            "{:?} leads elsewhere",
            file.name
        );
    }
}

fn verdict(bytes: Bytes) {
    if let Ok(again) = fuzzing::verdict(bytes) {
        assert_eq!(fuzzing::verdict(again.clone()), Ok(again), "a verdict changes on its way");
    }
}

fn payload(data: Bytes) {
    let count = command::count_commands(&data);
    let Ok(payload) = Payload::decode(data.clone()) else { return };
    let mut again = PayloadBuilder::new(payload.range_epoch, 0);
    let all = KeyRange::all();
    let mut commands = 0;
    for command in payload {
        let Ok(command) = command else { return };
        assert!(
            command.is_within(&all)
                || matches!(command.op(), flotilla_router::Op::DeleteRange { .. })
        );
        let _ = command.routing_key();
        again.push(&command);
        commands += 1;
    }
    assert_eq!(again.finish(), data, "a payload is written otherwise than it was read");
    assert_eq!(count, commands, "a payload has another number of commands than its lengths say");
}

fn descriptor(bytes: Bytes) {
    let Ok(descriptor) = Descriptor::decode(bytes.clone()) else { return };
    // What an older format wrote is written in the new one.
    let encoded = descriptor.encode();
    let same = encoded[0] != bytes[0] || encoded == bytes;
    assert!(same, "a descriptor is written otherwise than it was read");
    assert_eq!(Descriptor::decode(encoded).as_ref(), Ok(&descriptor));
    let _ = (
        descriptor.voters_now().count(),
        descriptor.on_node(NodeId(1)),
        descriptor.range.is_empty(),
    );
}
