//! What travels between two nodes' cores, byte by byte, and the guard in front of the protobuf
//! parser.
//!
//! ```text
//! frame    := format (1) ‖ item*
//! item     := 1 ‖ shard (8) ‖ epoch.membership (8) ‖ epoch.range (8) ‖ committed (8) ‖ timing
//!           ‖ length (4) ‖ raft message (protobuf)
//!           | 2 ‖ leaders (4) ‖ replicas (4) ‖ flags (1)
//! timing   := stamp (8) ‖ echo (8) ‖ held (4) ‖ lag (4)
//! ```
//!
//! A stamp is the low 16 bits of an incarnation and 48 bits of microseconds on that life's clock, 0
//! where there is none; `held` and `lag` are microseconds, `lag` all ones where there is none.
//!
//! raft 0.7 is bound to rust-protobuf 2, whose parser recurses without bound on nested *groups* in
//! unknown fields (RUSTSEC-2024-0437). raft's messages have none, so [`guard`] walks over the bytes
//! first and refuses every group: of messages, and of the membership changes that entries carry.

use super::time::Time;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_router::codec::{DecodeError, Reader};
use flotilla_router::{Epoch, Incarnation, ShardId};
use protobuf::Message as _;
use raft::eraftpb::Message;
use std::collections::BTreeMap;

const FORMAT: u8 = 2;
const ITEM_MESSAGE: u8 = 1;
const ITEM_BEAT: u8 = 2;
/// No honest message comes near this.
const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// A raft message and what raft does not know about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The shard whose groups speak.
    pub shard: ShardId,
    /// The sender's epoch of the shard.
    pub epoch: Epoch,
    /// The sender's committed index: unlike a heartbeat's, not cut to what the receiver is known to
    /// hold.
    pub committed: u64,
    /// What the two ends know of each other's clocks.
    pub timing: Timing,
    /// The message.
    pub message: Message,
}

/// A moment on the clock of one life of one node. Others only hand it back: whoever has started
/// anew does not take a moment of an earlier life for one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(u64);

/// Bits of a stamp that are microseconds: nine years.
const STAMP_BITS: u32 = 48;

impl Stamp {
    /// No moment.
    pub const NONE: Self = Self(0);

    /// This moment of this life.
    pub fn new(life: Incarnation, now: Time) -> Self {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX).min((1 << STAMP_BITS) - 1);
        Self(life.0 << STAMP_BITS | micros)
    }

    /// The moment, if it is one of this life.
    pub fn at(self, life: Incarnation) -> Option<Time> {
        let is_ours = self.0 >> STAMP_BITS == life.0 & 0xffff && self != Self::NONE;
        is_ours.then(|| Time::from_micros(self.0 & ((1 << STAMP_BITS) - 1)))
    }

    /// Whether it is later than the other, or of another life.
    pub fn is_news_after(self, other: Self) -> bool {
        self != Self::NONE && (self.0 >> STAMP_BITS != other.0 >> STAMP_BITS || self.0 > other.0)
    }
}

/// What the two ends of a message know of each other's clocks; `operations::freshness` makes
/// use of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// When the message left, on its sender's clock.
    pub stamp: Stamp,
    /// The last stamp of the receiver's that its sender has heard in the message's term.
    pub echo: Stamp,
    /// From a leader: for how long, on its clock, it has known that.
    pub held: Time,
    /// From a leader: how long before the message left it is last shown to have led.
    pub lag: Option<Time>,
}

impl Timing {
    fn encode(&self, out: &mut BytesMut) {
        // What does not fit is not vouched for.
        let micros = |time: Time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        out.put_u64(self.stamp.0);
        out.put_u64(self.echo.0);
        out.put_u32(micros(self.held));
        out.put_u32(self.lag.map_or(u32::MAX, micros));
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (stamp, echo) = (Stamp(reader.u64()?), Stamp(reader.u64()?));
        let held = Time::from_micros(reader.u32()?.into());
        let lag = Some(reader.u32()?)
            .filter(|lag| *lag != u32::MAX)
            .map(|lag| Time::from_micros(lag.into()));
        Ok(Self { stamp, echo, held, lag })
    }
}

/// What a node says of itself to every other node, instead of a heartbeat per shard being made to
/// say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Shards that it leads.
    pub leaders: u32,
    /// Replicas that it holds.
    pub replicas: u32,
    /// It is going down and takes no leadership.
    pub draining: bool,
    /// Its disk is nearly full.
    pub disk_full: bool,
}

/// One part of a frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A raft message.
    Message(Box<Envelope>),
    /// A sign of life.
    Beat(Beat),
}

impl Envelope {
    /// Appends the item.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(ITEM_MESSAGE);
        out.put_u64(self.shard.0);
        out.put_u64(self.epoch.membership);
        out.put_u64(self.epoch.range);
        out.put_u64(self.committed);
        self.timing.encode(out);
        let bytes = self.message.compute_size();
        out.put_u32(bytes);
        out.reserve(bytes as usize);
        let mut writer = out.writer();
        let mut stream = protobuf::CodedOutputStream::new(&mut writer);
        self.message.write_to_with_cached_sizes(&mut stream).expect("writing to memory can't fail");
        stream.flush().expect("writing to memory can't fail");
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let shard = ShardId(reader.u64()?);
        let epoch = Epoch { membership: reader.u64()?, range: reader.u64()? };
        let committed = reader.u64()?;
        let timing = Timing::decode(reader)?;
        let bytes = reader.bytes()?;
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(reader.error(format!("a raft message of {} bytes", bytes.len())));
        }
        guard(&bytes, Shape::Message).map_err(|why| reader.error(why))?;
        let mut message = Message::default();
        message.merge_from_carllerche_bytes(&bytes).map_err(|e| reader.error(e.to_string()))?;
        Ok(Self { shard, epoch, committed, timing, message })
    }
}

/// Parsing that shares the payloads with the frame.
trait MergeShared {
    fn merge_from_carllerche_bytes(&mut self, bytes: &Bytes) -> protobuf::ProtobufResult<()>;
}

impl MergeShared for Message {
    fn merge_from_carllerche_bytes(&mut self, bytes: &Bytes) -> protobuf::ProtobufResult<()> {
        let mut stream = protobuf::CodedInputStream::from_carllerche_bytes(bytes);
        self.merge_from(&mut stream)
    }
}

/// A frame is cut here at the latest, where frames may be larger; what follows goes into the next.
const CUT_BYTES: usize = 1 << 20;

/// Lays what leaves for one node in one pass into frames: those of a lane in order, none larger
/// than `bytes_max`, as long as no message has more than half of that.
pub fn frames<L: Ord + Copy>(
    messages: &[Envelope],
    beat: Option<(L, Beat)>,
    bytes_max: usize,
    lane_of: impl Fn(&Envelope) -> L,
    mut send: impl FnMut(L, Bytes),
) {
    let cut_bytes = CUT_BYTES.min(bytes_max / 4);
    let mut frames: BTreeMap<L, BytesMut> = BTreeMap::new();
    if let Some((lane, beat)) = beat {
        encode_beat(beat, frames.entry(lane).or_insert_with(start_frame));
    }
    for envelope in messages {
        let lane = lane_of(envelope);
        let frame = frames.entry(lane).or_insert_with(start_frame);
        envelope.encode(frame);
        if frame.len() >= cut_bytes {
            send(lane, std::mem::replace(frame, start_frame()).freeze());
        }
    }
    for (lane, frame) in frames {
        if frame.len() > 1 {
            send(lane, frame.freeze());
        }
    }
}

/// Starts a frame.
pub fn start_frame() -> BytesMut {
    let mut out = BytesMut::with_capacity(256);
    out.put_u8(FORMAT);
    out
}

/// Appends a sign of life.
pub fn encode_beat(beat: Beat, out: &mut BytesMut) {
    out.put_u8(ITEM_BEAT);
    out.put_u32(beat.leaders);
    out.put_u32(beat.replicas);
    out.put_u8(u8::from(beat.draining) | u8::from(beat.disk_full) << 1);
}

/// Reads a frame. Items before a malformed one are given; nothing behind it can be trusted.
pub fn decode_frame(frame: Bytes, mut item: impl FnMut(Item)) -> Result<(), DecodeError> {
    let mut reader = Reader::new("frame between nodes", frame);
    let format = reader.u8()?;
    if format != FORMAT {
        return Err(reader.error(format!("format {format}; this binary reads {FORMAT}")));
    }
    while !reader.is_empty() {
        item(match reader.u8()? {
            ITEM_MESSAGE => Item::Message(Box::new(Envelope::decode(&mut reader)?)),
            ITEM_BEAT => {
                let (leaders, replicas, flags) = (reader.u32()?, reader.u32()?, reader.u8()?);
                Item::Beat(Beat {
                    leaders,
                    replicas,
                    draining: flags & 1 != 0,
                    disk_full: flags & 2 != 0,
                })
            }
            other => return Err(reader.error(format!("item {other}"))),
        });
    }
    Ok(())
}

/// Reads a single envelope, as a snapshot's header carries it.
pub fn decode_envelope(bytes: Bytes) -> Result<Envelope, DecodeError> {
    let mut reader = Reader::new("snapshot announcement", bytes);
    if reader.u8()? != ITEM_MESSAGE {
        return Err(reader.error("not a raft message"));
    }
    let envelope = Envelope::decode(&mut reader)?;
    reader.end()?;
    Ok(envelope)
}

/// The protobuf messages that hold others, as far as the guard must know them.
#[derive(Clone, Copy)]
enum Shape {
    Message,
    Snapshot,
    SnapshotMetadata,
    ConfChangeV2,
    Leaf,
}

impl Shape {
    /// What the length-delimited field `number` holds, if it is a message.
    fn field(self, number: u64) -> Option<Self> {
        match (self, number) {
            (Self::Message, 7) => Some(Self::Leaf),
            (Self::Message, 9) => Some(Self::Snapshot),
            (Self::Snapshot, 2) => Some(Self::SnapshotMetadata),
            (Self::SnapshotMetadata, 1) => Some(Self::Leaf),
            (Self::ConfChangeV2, 2) => Some(Self::Leaf),
            _ => None,
        }
    }
}

/// The guard for the data of an entry that changes the membership by one.
pub(super) fn guard_conf_change(data: &[u8]) -> Result<(), &'static str> {
    guard(data, Shape::Leaf)
}

/// The guard for the data of an entry that changes the membership at large.
pub(super) fn guard_conf_change_v2(data: &[u8]) -> Result<(), &'static str> {
    guard(data, Shape::ConfChangeV2)
}

/// Walks over a protobuf message and refuses what the parser must not see: groups, and lengths
/// beyond the end.
fn guard(mut bytes: &[u8], shape: Shape) -> Result<(), &'static str> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        match tag & 7 {
            0 => drop(varint(&mut bytes)?),
            1 => drop(bytes.split_off(..8).ok_or("a fixed field beyond the end")?),
            5 => drop(bytes.split_off(..4).ok_or("a fixed field beyond the end")?),
            2 => {
                let n =
                    usize::try_from(varint(&mut bytes)?).map_err(|_| "a length beyond the end")?;
                let field = bytes.split_off(..n).ok_or("a length beyond the end")?;
                if let Some(shape) = shape.field(tag >> 3) {
                    guard(field, shape)?;
                }
            }
            _ => return Err("a protobuf group, which no raft message has"),
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.split_off_first().ok_or("a number beyond the end")?;
        if shift < 64 {
            value |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number of more than ten bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::{Entry, MessageType};

    fn envelope() -> Envelope {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.from = 3;
        message.to = 4;
        message.term = 9;
        message.set_entries(
            vec![Entry { index: 5, term: 9, data: vec![7; 300].into(), ..Default::default() }]
                .into(),
        );
        message.mut_snapshot().mut_metadata().mut_conf_state().set_voters(vec![1, 2, 3]);
        let stamp = |micros| Stamp::new(Incarnation(3), Time::from_micros(micros));
        let timing = Timing {
            stamp: stamp(70),
            echo: stamp(60),
            held: Time::from_micros(9),
            lag: Some(Time::from_micros(4)),
        };
        Envelope {
            shard: ShardId(2),
            epoch: Epoch { membership: 1, range: 2 },
            committed: 4,
            timing,
            message,
        }
    }

    fn items(frame: Bytes) -> Result<Vec<Item>, DecodeError> {
        let mut items = Vec::new();
        decode_frame(frame, |item| items.push(item)).map(|()| items)
    }

    #[test]
    fn a_frame_survives_the_wire_and_no_cut_of_it_panics() {
        let beat = Beat { leaders: 3, replicas: 9, draining: true, disk_full: false };
        let mut frame = start_frame();
        envelope().encode(&mut frame);
        encode_beat(beat, &mut frame);
        let frame = frame.freeze();
        let read = items(frame.clone()).unwrap();
        assert!(matches!(&read[1], Item::Beat(b) if *b == beat));
        let Item::Message(read) = &read[0] else { panic!("not a message") };
        // The parser caches sizes inside; compare what counts.
        assert_eq!(
            read.message.write_to_bytes().unwrap(),
            envelope().message.write_to_bytes().unwrap()
        );
        assert_eq!(
            (read.shard, read.epoch, read.committed),
            (ShardId(2), Epoch { membership: 1, range: 2 }, 4)
        );
        assert_eq!(read.timing, envelope().timing);
        for n in 2..frame.len() {
            let _ = items(frame.slice(..n));
        }
    }

    #[test]
    fn a_stamp_means_something_to_the_life_that_made_it() {
        let (life, next) = (Incarnation(0x1_0005), Incarnation(0x1_0006));
        let stamp = Stamp::new(life, Time::from_nanos(1_999_999));
        assert_eq!(stamp.at(life), Some(Time::from_micros(1999)), "never later than it was");
        assert_eq!((stamp.at(next), Stamp::NONE.at(Incarnation(1 << 16))), (None, None));
        let later = Stamp::new(life, Time::from_millis(2));
        assert!(
            later.is_news_after(stamp)
                && !stamp.is_news_after(later)
                && !Stamp::NONE.is_news_after(stamp)
        );
        assert!(Stamp::new(next, Time::ZERO).is_news_after(later), "another life is always news");
        assert_eq!(
            Stamp::new(life, Time::MAX).at(life),
            Some(Time::from_micros((1 << STAMP_BITS) - 1))
        );
    }

    #[test]
    fn what_does_not_fit_is_not_vouched_for() {
        let mut out = BytesMut::new();
        Timing {
            lag: Some(Time::from_secs(1 << 20)),
            held: Time::from_secs(1 << 20),
            ..Timing::default()
        }
        .encode(&mut out);
        let read = Timing::decode(&mut Reader::new("timing", out.freeze())).unwrap();
        assert_eq!((read.lag, read.held), (None, Time::from_micros(u32::MAX.into())));
    }

    #[test]
    fn groups_are_refused_before_the_parser_recurses_on_them() {
        for shape in [vec![0x0b; 100_000], [vec![0x3a, 100], vec![0x0b; 100]].concat(), vec![0x0c]]
        {
            let mut frame = start_frame();
            frame.put_u8(ITEM_MESSAGE);
            frame.put_slice(&[0; 56]);
            frame.put_u32(shape.len() as u32);
            frame.put_slice(&shape);
            assert!(items(frame.freeze()).unwrap_err().why.contains("group"));
        }
    }
}
