//! Pages, and parts of streams: what one shard shows of a range; and what it owns of one.
//!
//! A page is a view of its own. A stream's parts of one shard show one view, which is kept between
//! them ([`Views`](super::views::Views)).

use super::mailbox::Grant;
use super::service::{Service, wrong_shard};
use flotilla_router::call::{self, Forwarded};
use flotilla_router::{
    Answer, Command, Consistency, HeldView, KeyRange, Op, Refusal, Reply, Request, Scan, ScanPage,
};
use flotilla_storage::read::PageLook;
use std::time::{Duration, Instant};

/// How long it is tried to tell another node that a view is not needed any more.
const LET_GO_PATIENCE: Duration = Duration::from_secs(1);

impl Service {
    /// Reads a page. Half of the time that is left is for reading; what was found by then is the
    /// page, and the other half for its way back, and for the shards that follow. With `keep`, what
    /// passes by stays in the cache.
    pub(super) async fn page(
        &self,
        grant: &Grant,
        scan: &Scan,
        keep: bool,
        deadline: Instant,
    ) -> Result<ScanPage, Refusal> {
        let descriptor = &grant.descriptor;
        if !descriptor.range.overlaps(&scan.range) {
            return Err(wrong_shard(grant));
        }
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / 2;
        let look =
            PageLook::new(scan.clone(), descriptor.range.clone(), descriptor.id.key_space(), keep);
        let look = self.readers.look(descriptor.id, &grant.view, look, until).await?;
        if look.is_bare() {
            Err(Refusal::Expired { shard: descriptor.id })
        } else {
            Ok(look.page())
        }
    }

    /// The next part of a stream, in the view that is kept for it.
    pub(super) async fn answer_held(
        &self,
        scan: &Scan,
        view: HeldView,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        if scan.limit == 0 {
            self.views.let_go(view);
            let answer =
                Answer::Part { page: ScanPage { items: Vec::new(), rest: None }, view: None };
            return Ok(Reply {
                shard: view.shard,
                node: self.forwarder.node,
                answer,
                staleness: None,
            });
        }
        let grant = self.views.get(view)?;
        // It was fresh enough when it was taken.
        self.part(&grant, scan, Consistency::Linearizable, Some(view), deadline).await
    }

    /// A part of a stream. Where more of the shard is to come, the view is kept for it. A stream
    /// passes by once: it leaves the cache to others.
    pub(super) async fn part(
        &self,
        grant: &Grant,
        scan: &Scan,
        consistency: Consistency,
        view: Option<HeldView>,
        deadline: Instant,
    ) -> Result<Reply, Refusal> {
        let page = self.page(grant, scan, false, deadline).await?;
        let more = page.rest.as_ref().is_some_and(|rest| rest.overlaps(&grant.descriptor.range));
        let (view, staleness) =
            self.views.keep_for_more(grant, view, more, self.staleness(grant, consistency))?;
        Ok(Reply {
            shard: grant.descriptor.id,
            node: self.forwarder.node,
            answer: Answer::Part { page, view },
            staleness,
        })
    }

    /// Lets a view go, here or on the node that keeps it; nobody waits for that.
    pub(super) fn release(&self, view: HeldView) {
        if view.node == self.forwarder.node {
            return self.views.let_go(view);
        }
        let scan = Scan {
            range: KeyRange::all(),
            reverse: false,
            limit: 0,
            bytes_max: 0,
            keys_only: true,
        };
        let request =
            Request::Part { scan, consistency: Consistency::Linearizable, view: Some(view) };
        let request = call::encode(&Forwarded { request, hops: 1, time_left: LET_GO_PATIENCE });
        let transport = self.forwarder.transport.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // If that node can't be told, it will notice by itself.
                let _ =
                    transport.request(view.node, request, Instant::now() + LET_GO_PATIENCE).await;
            });
        }
    }
}

/// A range is cut to what the shard owns; what other shards own is told.
pub(super) fn cut_to_shard(command: &Command, owned: &KeyRange) -> (Command, Option<KeyRange>) {
    let Op::DeleteRange { range } = command.op() else { return (command.clone(), None) };
    let cut = range.intersect(owned);
    let rest = match (&cut.end, &range.end) {
        (Some(cut), Some(end)) if cut >= end => None,
        (Some(cut), _) => Some(KeyRange::new(cut.clone(), range.end.clone())),
        (None, _) => None,
    };
    (Command::new(Op::DeleteRange { range: cut }, command.condition()), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_router::Condition;

    #[test]
    fn a_range_is_cut_to_the_shard_and_the_rest_is_told() {
        let delete = |start: &'static str, end: Option<&'static str>| {
            Command::new(
                Op::DeleteRange { range: KeyRange::new(start, end.map(Into::into)) },
                Condition::Always,
            )
        };
        let owned = KeyRange::new("f", Some("m".into()));
        let cases = [
            (delete("g", Some("h")), delete("g", Some("h")), None),
            (delete("g", Some("m")), delete("g", Some("m")), None),
            (
                delete("g", Some("z")),
                delete("g", Some("m")),
                Some(KeyRange::new("m", Some("z".into()))),
            ),
            (delete("g", None), delete("g", Some("m")), Some(KeyRange::new("m", None))),
        ];
        for (asked, cut, rest) in cases {
            assert_eq!(cut_to_shard(&asked, &owned), (cut, rest), "{asked:?}");
        }
    }
}
