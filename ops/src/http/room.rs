//! Room for what the gets of one batch find: the answer to five kilobytes of them must not be a
//! gigabyte.

use super::scan::write_member;
use super::share::Held;
use crate::problem::Problem;
use flotilla_router::{Revision, ShardId};
use http::StatusCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an outcome takes in an answer, without a value.
pub(super) const OUTCOME_BYTES: usize = 128;

/// What there is for one batch. A value that does not fit is not answered, and when one was not, no
/// more are read.
pub(super) struct Room {
    bytes_max: usize,
    state: Mutex<RoomState>,
}

struct RoomState {
    /// Of values, as they stand in the answer.
    used: usize,
    full: bool,
    held: Held,
}

impl Room {
    pub(super) fn new(held: Held, bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::new(RoomState { used: 0, full: false, held }) }
    }

    fn state(&self) -> MutexGuard<'_, RoomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_full(&self) -> bool {
        self.state().full
    }

    pub(super) fn used(&self) -> usize {
        self.state().used
    }

    /// Writes a value down where there is room.
    pub(super) fn take(
        &self,
        value: &[u8],
        revision: Revision,
        shard: ShardId,
    ) -> Result<Vec<u8>, Problem> {
        let mut state = self.state();
        if state.full || state.used + value.len() > self.bytes_max {
            state.full = true;
            return Err(self.refusal());
        }
        let mut json = Vec::with_capacity(value.len() + OUTCOME_BYTES);
        json.extend_from_slice(b"{\"status\":200,");
        write_member(&mut json, "value", value);
        json.extend_from_slice(format!(",\"revision\":{revision},\"shard\":{shard}}}").as_bytes());
        // A value may be six times as long in JSON.
        if state.used + json.len() > self.bytes_max {
            state.full = true;
            return Err(self.refusal());
        }
        state.held.grow(json.len())?;
        state.used += json.len();
        Ok(json)
    }

    /// 413 for a get that there was no room for.
    pub(super) fn refusal(&self) -> Problem {
        let limit = self.bytes_max;
        let detail = format!(
            "the answer to a batch has at most {limit} bytes, and others have filled it; get this \
             key again"
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "answer_too_large", "too large", detail)
            .limit(limit as u64, None)
            .retryable()
    }

    /// What pays for the whole answer.
    pub(super) fn into_held(self, bytes: usize) -> Held {
        let mut held = self.state.into_inner().unwrap_or_else(PoisonError::into_inner).held;
        held.set(bytes);
        held
    }
}
