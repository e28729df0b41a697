//! What a node's disk holds at the start of a run, made once: to bootstrap again for each of ten
//! million inputs would take longer than what the inputs do to it.

use bytes::Bytes;
use flotilla_storage::{Cursor, Engine, Family, MemoryEngine, Order, Read, WriteBatch};

/// Every record of an engine.
pub(crate) struct Template(Vec<(Family, Bytes, Bytes)>);

impl Template {
    /// What the engine holds.
    pub(crate) fn of(engine: &MemoryEngine) -> Self {
        let mut records = Vec::new();
        for family in [Family::Log, Family::State, Family::Data] {
            let mut cursor = engine.cursor(family, &[], None, Order::Forward);
            while let Some((key, value)) = cursor.next().expect("memory does not fail") {
                records.push((family, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
        }
        Self(records)
    }

    /// A new engine that holds the same, durably.
    pub(crate) fn engine(&self) -> MemoryEngine {
        let engine = MemoryEngine::new();
        let mut batch = engine.batch();
        self.0.iter().for_each(|(family, key, value)| batch.put(*family, key, value));
        engine.write(batch, true).expect("memory does not fail");
        engine
    }
}
