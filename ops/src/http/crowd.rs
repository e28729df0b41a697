//! The open connections: counted, within reach of the server, and thinned out when there are too
//! many.
//!
//! When `connections_max` are open and one more comes, one of them is closed for it: the one that
//! has been idle for longest, of the address that has the most; then, in the same order, one that
//! only waits for its client and was not served for a while. Where the server works for all of
//! them, the new one gets a **kept place**: it can look at `/livez`, `/readyz` and `/metrics`, and
//! is told 503 for all else. Kept places are few; when they are taken, who has had one for longest
//! goes.
//!
//! When places for requests, or bytes of answers, are short, a connection that holds much of them
//! and waits for its client is closed for who has less ([`Crowd::relieve`]).

use super::leash::{Leash, Standing, now_ms};
use super::share::{Account, Good, Shares, network};
use crate::metrics::Metrics;
use flotilla_router::Throttle;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Places beyond `connections_max`, at most.
pub(super) const KEPT_PLACES: usize = 64;

/// Places beyond so many connections: each takes a file, and where few may be open, few are kept.
pub(super) fn kept_places(connections_max: usize) -> usize {
    KEPT_PLACES.min(connections_max / 32 + 1)
}

/// The same complaint is logged again after so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// How long a connection that waits for its client is left alone, in milliseconds.
const WAITING_MS: u64 = 2_000;
/// Connections that one look at all of them finds to be closed.
const FOUND_AT_ONCE: usize = 64;
/// How long it takes until all are looked at again where none was found, in milliseconds.
const BARREN_MS: u64 = 100;

/// All connections.
pub(super) struct Crowd {
    members: Mutex<Members>,
    shares: Arc<Shares>,
    connections_max: usize,
    metrics: Arc<Metrics>,
    /// How many there are, of whatever kind.
    open: AtomicUsize,
    /// When it was last said that there are too many connections,
    too_many: Throttle,
    /// and that none could be accepted. Clients decide how often there is reason to.
    pub(super) not_accepted: Throttle,
    /// Called when the last one closed.
    all_closed: Notify,
}

#[derive(Default)]
struct Members {
    next: u64,
    by_number: HashMap<u64, Member>,
    /// How many count towards `connections_max`.
    counted: usize,
    /// How many of those each address has.
    by_address: HashMap<IpAddr, usize>,
    /// Those in kept places, in the order of their coming.
    kept: VecDeque<u64>,
    /// Those to be closed next, the last one first, with what they were doing when they were found.
    to_go: Vec<(u64, (Standing, u64))>,
    /// Until when it makes no sense to look for more.
    barren_until: u64,
    /// The same for each good.
    no_relief_until: [u64; 3],
    /// What every connection was told.
    phase: u8,
}

struct Member {
    leash: Arc<Leash>,
    account: Arc<Account>,
    address: IpAddr,
    /// Whether it counts: not in a kept place, and not being closed for another.
    counts: bool,
}

/// An open connection; it leaves when this is dropped.
pub(super) struct Open {
    crowd: Arc<Crowd>,
    number: u64,
    pub(super) leash: Arc<Leash>,
    /// What it has of what is shared.
    pub(super) account: Arc<Account>,
    /// Whether it has a kept place.
    pub(super) kept: bool,
}

impl Crowd {
    pub(super) fn new(
        connections_max: usize,
        shares: Arc<Shares>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let crowd = Arc::new(Self {
            members: Mutex::default(),
            shares,
            connections_max,
            metrics,
            open: AtomicUsize::new(0),
            too_many: Throttle::new(COMPLAIN_EVERY),
            not_accepted: Throttle::new(COMPLAIN_EVERY),
            all_closed: Notify::new(),
        });
        crowd.shares.relieved_by(&crowd);
        crowd
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// One more connection.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Open {
        let (leash, account, address) =
            (Arc::new(Leash::default()), self.shares.open(address), network(address));
        let mut members = self.members();
        let mut kept = false;
        if members.counted >= self.connections_max {
            match members.find_one_to_go() {
                Some(number) => {
                    self.metrics.http.connections_evicted.inc();
                    members.let_go(number);
                }
                None => kept = true,
            }
        }
        let number = members.next;
        members.next += 1;
        if kept {
            self.metrics.http.connections_refused.inc();
            if let Some(unsaid) = self.too_many.pass(Instant::now()) {
                let connections_max = self.connections_max;
                tracing::warn!(
                    connections_max,
                    unsaid,
                    "HTTP connections are refused: too many are open, and all at work"
                );
            }
            if members.kept.len() >= kept_places(self.connections_max)
                && let Some(first) = members.kept.pop_front()
            {
                members.let_go(first);
            }
            members.kept.push_back(number);
        } else {
            members.counted += 1;
            *members.by_address.entry(address).or_default() += 1;
        }
        if members.phase > 0 {
            leash.pull(members.phase);
        }
        members.by_number.insert(
            number,
            Member { leash: leash.clone(), account: account.clone(), address, counts: !kept },
        );
        drop(members);
        self.open.fetch_add(1, SeqCst);
        self.metrics.http.connections.inc();
        Open { crowd: self.clone(), number, leash, account, kept }
    }

    /// Closes the connection that holds most of a good, at least as much as `account` would with
    /// `need` more, and has waited for its client for a while; of the same client, or of one that
    /// has more. Says whether there was one.
    pub(super) fn relieve(&self, account: &Account, good: Good, need: usize) -> bool {
        let now = now_ms();
        let mut members = self.members();
        if now < members.no_relief_until[good as usize] {
            return false;
        }
        let enough = account.used(good) + need;
        let has_waited = |member: &Member| {
            let since =
                member.leash.standing().filter(|(standing, _)| *standing == Standing::Waiting);
            since.is_some_and(|(_, since)| since + WAITING_MS <= now)
        };
        let worst = members
            .by_number
            .iter()
            .filter(|(_, member)| member.counts && member.account.used(good) >= enough)
            .filter(|(_, member)| account.may_relieve(&member.account, good) && has_waited(member))
            .max_by_key(|(_, member)| member.account.used(good))
            .map(|(number, _)| *number);
        match worst {
            Some(number) => {
                self.metrics.http.connections_evicted.inc();
                members.let_go(number);
            }
            None => members.no_relief_until[good as usize] = now + BARREN_MS,
        }
        worst.is_some()
    }

    /// Tells all connections, also those that come later.
    pub(super) fn pull_all(&self, phase: u8) {
        let mut members = self.members();
        members.phase = members.phase.max(phase);
        for member in members.by_number.values() {
            member.leash.pull(phase);
        }
    }

    /// Waits until no connection is open.
    pub(super) async fn until_closed(&self) {
        loop {
            let mut closed = std::pin::pin!(self.all_closed.notified());
            closed.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            closed.await;
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// A connection that may be closed for another.
    fn find_one_to_go(&mut self) -> Option<u64> {
        for look in [true, false] {
            while let Some((number, found)) = self.to_go.pop() {
                // It may have become busy, been served, or gone meanwhile.
                if self
                    .by_number
                    .get(&number)
                    .is_some_and(|m| m.counts && m.leash.standing() == Some(found))
                {
                    return Some(number);
                }
            }
            if look {
                self.look_around();
            }
        }
        None
    }

    /// Fills `to_go`.
    fn look_around(&mut self) {
        let now = now_ms();
        if now < self.barren_until {
            return;
        }
        let largest =
            self.by_address.iter().max_by_key(|(_, count)| **count).map(|(address, _)| *address);
        let may_go = |(standing, since): &(Standing, u64)| {
            *standing == Standing::Idle || since + WAITING_MS <= now
        };
        let mut found: Vec<_> = self
            .by_number
            .iter()
            .filter(|(_, member)| member.counts)
            .filter_map(|(number, member)| {
                let standing = member.leash.standing().filter(may_go)?;
                Some((standing.0, Some(member.address) != largest, standing.1, *number))
            })
            .collect();
        if found.is_empty() {
            self.barren_until = now + BARREN_MS;
        }
        if found.len() > FOUND_AT_ONCE {
            found.select_nth_unstable(FOUND_AT_ONCE);
            found.truncate(FOUND_AT_ONCE);
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        self.to_go = found
            .into_iter()
            .map(|(standing, _, since, number)| (number, (standing, since)))
            .collect();
    }

    /// Closes a connection, which from now on does not count.
    fn let_go(&mut self, number: u64) {
        if let Some(member) = self.by_number.get(&number) {
            member.leash.pull(Leash::DROP);
        }
        self.discount(number);
    }

    fn discount(&mut self, number: u64) {
        let Some(member) = self.by_number.get_mut(&number).filter(|member| member.counts) else {
            return;
        };
        member.counts = false;
        self.counted -= 1;
        if let Some(count) = self.by_address.get_mut(&member.address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&member.address);
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut members = self.crowd.members();
        members.discount(self.number);
        members.by_number.remove(&self.number);
        if self.kept {
            members.kept.retain(|number| *number != self.number);
        }
        drop(members);
        self.crowd.metrics.http.connections.dec();
        if self.crowd.open.fetch_sub(1, SeqCst) == 1 {
            self.crowd.all_closed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::task::{Context, Waker};

    const ME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    fn crowd(connections_max: usize) -> Arc<Crowd> {
        let gauge = || prometheus::IntGauge::new("used", "test").unwrap();
        let shares = Shares::new((100, gauge()), (100, gauge()), (100, gauge()));
        Crowd::new(connections_max, shares, Arc::default())
    }

    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

    fn is_dropped(open: &Open) -> bool {
        open.leash.phase(&Context::from_waker(Waker::noop())) == Leash::DROP
    }

    #[test]
    fn the_longest_idle_of_the_address_with_the_most_goes_first() {
        let crowd = crowd(4);
        let pause = || std::thread::sleep(Duration::from_millis(3));
        let others: Vec<_> = (0..1).map(|_| crowd.enter(OTHER)).collect();
        pause();
        let mine: Vec<_> = (0..3).map(|_| (crowd.enter(ME), pause()).0).collect();
        mine[0].leash.called();
        mine[0].leash.answered();
        let fifth = crowd.enter(OTHER);
        assert!(!fifth.kept);
        let dropped: Vec<_> = others.iter().chain(&mine).map(is_dropped).collect();
        assert_eq!(dropped, [false, false, true, false], "the first of mine was served since");
        assert_eq!(crowd.open(), 5, "the one that goes is still there");
        drop((others, mine, fifth));
        assert_eq!((crowd.open(), crowd.members().counted), (0, 0));
        assert!(crowd.members().by_address.is_empty());
    }

    #[test]
    fn where_all_are_busy_the_new_one_gets_a_kept_place_and_the_oldest_of_those_goes() {
        let crowd = crowd(1);
        let busy = crowd.enter(ME);
        busy.leash.called();
        let kept: Vec<_> = (0..2).map(|_| crowd.enter(ME)).collect();
        assert!(kept.iter().all(|open| open.kept));
        assert!(is_dropped(&kept[0]) && !is_dropped(&kept[1]) && !is_dropped(&busy));
        drop(kept);
        assert!(crowd.members().kept.is_empty());
        busy.leash.answered();
        crowd.members().barren_until = 0;
        assert!(!crowd.enter(ME).kept, "it is idle again, and goes for another");
        assert!(is_dropped(&busy));
    }
}
