//! What a node has little of, and how clients share it: places for requests, bytes of bodies that
//! come in, bytes of answers that go out.
//!
//! Each good has a size. A client is an address (of IPv6 its /64 network), and may have three times
//! what it leaves free; a connection may have what its client could have beyond that. So whoever
//! takes as much as it can leaves a part that others get in their turn: one greedy client gets
//! three quarters, two get three sevenths each, and of a thousand greedy connections of one address
//! each gets as much as a newcomer. What is taken is what is there: a body that was announced takes
//! nothing until it comes.
//!
//! Places and answers can be held by who does nothing: then others would be refused for as long. So
//! before a newcomer is refused one, [`super::crowd`] is asked to close a connection that holds at
//! least as much, and has waited for its client for a while.
//!
//! Who has nothing else may take all that is free, so that the largest request goes through a
//! budget of its size.

use super::crowd::Crowd;
use crate::problem::Problem;
use prometheus::IntGauge;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// What is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Good {
    /// Requests that are being answered, until the client has taken the answer.
    Requests,
    /// Bytes of request bodies.
    Bodies,
    /// Bytes of answers.
    Answers,
}

/// How many goods there are.
const GOODS: usize = 3;
/// How many times what it leaves free a client may have.
const TIMES_FREE: usize = 3;

/// One good.
struct Pool {
    /// In words, for the problem: "requests in flight".
    what: &'static str,
    max: usize,
    used: AtomicUsize,
    gauge: IntGauge,
}

/// All goods, and the clients that have a connection.
pub(super) struct Shares {
    pools: [Pool; GOODS],
    /// Who can make room.
    crowd: OnceLock<Weak<Crowd>>,
    clients: Mutex<HashMap<IpAddr, Weak<Client>>>,
}

/// What one address has, over all of its connections.
pub(super) struct Client {
    shares: Arc<Shares>,
    address: IpAddr,
    used: [AtomicUsize; GOODS],
}

/// What one connection has.
pub(super) struct Account {
    client: Arc<Client>,
    used: [AtomicUsize; GOODS],
}

/// A part of a good; given back when dropped.
pub(super) struct Held {
    account: Arc<Account>,
    good: Good,
    amount: usize,
}

impl Shares {
    /// As many of each as it says, with the gauge that shows what is in use.
    pub(super) fn new(
        requests: (usize, IntGauge),
        bodies: (usize, IntGauge),
        answers: (usize, IntGauge),
    ) -> Arc<Self> {
        let pool = |what, (max, gauge)| Pool { what, max, used: AtomicUsize::new(0), gauge };
        let pools = [
            pool("requests in flight", requests),
            pool("bytes of request bodies", bodies),
            pool("bytes of answers that clients have not taken", answers),
        ];
        Arc::new(Self { pools, crowd: OnceLock::new(), clients: Mutex::default() })
    }

    /// An account for a connection from this address.
    pub(super) fn open(self: &Arc<Self>, address: IpAddr) -> Arc<Account> {
        let address = network(address);
        let mut clients = self.clients();
        let client = clients.get(&address).and_then(Weak::upgrade).unwrap_or_else(|| {
            let client =
                Arc::new(Client { shares: self.clone(), address, used: Default::default() });
            clients.insert(address, Arc::downgrade(&client));
            client
        });
        Arc::new(Account { client, used: Default::default() })
    }

    /// Names who can make room.
    pub(super) fn relieved_by(&self, crowd: &Arc<Crowd>) {
        let _ = self.crowd.set(Arc::downgrade(crowd));
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, Weak<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut clients = self.shares.clients();
        // Another one may stand there by now.
        if clients.get(&self.address).is_some_and(|client| client.strong_count() == 0) {
            clients.remove(&self.address);
        }
    }
}

/// Whose address it is: IPv4 in IPv6 is IPv4, and a /64 is one client, since whoever has one has
/// all of it.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Whether `more` may be had of `max`, where `used` is in use: by this client `client` of it, by
/// this connection `mine`, and by what is to grow `held`.
fn fits(max: usize, used: usize, client: usize, mine: usize, held: usize, more: usize) -> bool {
    let Some(free) = max.checked_sub(used.saturating_add(more)) else { return false };
    if client <= held {
        return true;
    }
    let Some(room) = free.saturating_mul(TIMES_FREE).checked_sub(client + more) else {
        return false;
    };
    mine + more <= room
}

impl Account {
    /// Takes some, or says 429.
    pub(super) fn hold(self: &Arc<Self>, good: Good, amount: usize) -> Result<Held, Problem> {
        let mut held = Held { account: self.clone(), good, amount: 0 };
        match held.grow(amount) {
            Err(_) if good != Good::Bodies && self.is_relieved(good, amount) => {
                held.grow_anyway(amount)
            }
            other => other?,
        }
        Ok(held)
    }

    /// How much of a good this connection has.
    pub(super) fn used(&self, good: Good) -> usize {
        self.used[good as usize].load(Relaxed)
    }

    /// Whether this connection's client has less of a good than that of another, or they are the
    /// same.
    pub(super) fn may_relieve(&self, other: &Self, good: Good) -> bool {
        let used = |account: &Self| account.client.used[good as usize].load(Relaxed);
        Arc::ptr_eq(&self.client, &other.client) || used(self) < used(other)
    }

    /// Whether another connection was closed, so that there is room for `need` in a moment.
    fn is_relieved(&self, good: Good, need: usize) -> bool {
        self.client
            .shares
            .crowd
            .get()
            .and_then(Weak::upgrade)
            .is_some_and(|crowd| crowd.relieve(self, good, need))
    }

    /// Takes some, whether there is any or not: for answers that must be given, since something was
    /// done.
    pub(super) fn hold_anyway(self: &Arc<Self>, good: Good, amount: usize) -> Held {
        let mut held = Held { account: self.clone(), good, amount: 0 };
        held.grow_anyway(amount);
        held
    }

    /// Whether so much could be had now. Takes nothing.
    pub(super) fn check(&self, good: Good, amount: usize) -> Result<(), Problem> {
        let pool = self.pool(good);
        let used = [&pool.used, &self.client.used[good as usize], &self.used[good as usize]]
            .map(|used| used.load(Relaxed));
        if fits(pool.max, used[0], used[1], used[2], 0, amount) {
            Ok(())
        } else {
            Err(pool.refusal())
        }
    }

    fn pool(&self, good: Good) -> &Pool {
        &self.client.shares.pools[good as usize]
    }
}

impl Pool {
    fn refusal(&self) -> Problem {
        Problem::overloaded(self.what, self.max)
    }
}

impl Held {
    /// How much it is.
    pub(super) fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more, or says 429 and has what it had.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), Problem> {
        let held = self.amount;
        let [used, client, mine] = self.add(more);
        let pool = self.account.pool(self.good);
        if more == 0 || fits(pool.max, used, client, mine, held, more) {
            return Ok(());
        }
        let refusal = pool.refusal();
        self.give_back(more);
        Err(refusal)
    }

    /// Takes more, whether there is any or not.
    pub(super) fn grow_anyway(&mut self, more: usize) {
        self.add(more);
    }

    /// Has this much from now on, which it can't be refused.
    pub(super) fn set(&mut self, amount: usize) {
        if amount > self.amount {
            self.grow_anyway(amount - self.amount);
        } else {
            self.give_back(self.amount - amount);
        }
    }

    /// Adds, and says what was in use before: in all, by the client, by the connection.
    fn add(&mut self, more: usize) -> [usize; GOODS] {
        self.amount += more;
        let pool = self.account.pool(self.good);
        pool.gauge.add(more as i64);
        let good = self.good as usize;
        [&pool.used, &self.account.client.used[good], &self.account.used[good]]
            .map(|used| used.fetch_add(more, Relaxed))
    }

    fn give_back(&mut self, less: usize) {
        self.amount -= less;
        let pool = self.account.pool(self.good);
        pool.gauge.sub(less as i64);
        let good = self.good as usize;
        for used in [&pool.used, &self.account.client.used[good], &self.account.used[good]] {
            used.fetch_sub(less, Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

    fn shares(max: usize) -> Arc<Shares> {
        let gauge = || IntGauge::new("used", "test").unwrap();
        Shares::new((max, gauge()), (max, gauge()), (max, gauge()))
    }

    /// Takes `amount` again and again until there is no more, and says how much that is.
    fn greedy(account: &Arc<Account>, amount: usize) -> (usize, Vec<Held>) {
        let held: Vec<_> =
            std::iter::from_fn(|| account.hold(Good::Bodies, amount).ok()).take(100_000).collect();
        (held.iter().map(Held::amount).sum(), held)
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let shares = shares(100);
        let account = shares.open(ME);
        let first = account.hold(Good::Bodies, 60).unwrap();
        assert_eq!(account.hold(Good::Bodies, 60).map(|_| ()).unwrap_err().members().status, 429);
        assert_eq!(shares.pools[1].used.load(Relaxed), 60);
        drop(first);
        assert!(account.hold(Good::Bodies, 100).is_ok(), "who has nothing may take all there is");
        assert_eq!(shares.pools[1].gauge.get(), 0);
        drop(account);
        assert!(shares.clients().is_empty(), "a client without a connection is remembered");
    }

    #[test]
    fn one_thing_alone_may_grow_to_all_there_is() {
        let shares = shares(100);
        let account = shares.open(ME);
        let mut held = account.hold(Good::Bodies, 1).unwrap();
        for _ in 0..99 {
            held.grow(1).unwrap();
        }
        assert!(held.grow(1).is_err());
        assert_eq!(held.amount(), 100);
        held.set(3);
        assert_eq!(shares.pools[1].used.load(Relaxed), 3);
    }

    #[test]
    fn a_greedy_client_leaves_a_quarter_to_others() {
        let shares = shares(10_000);
        let connections: Vec<_> = (0..50).map(|_| shares.open(ME)).collect();
        let mut taken: Vec<_> = connections.iter().map(|account| greedy(account, 1)).collect();
        let all: usize = taken.iter().map(|(sum, _)| sum).sum();
        assert!((7_000..=7_500).contains(&all), "{all}");
        assert!(greedy(&shares.open(OTHER), 1).0 > 1_000);
        // Each keeps asking: those that came late get as much as those that came early.
        for _ in 0..200 {
            for (account, (_, held)) in connections.iter().zip(&mut taken) {
                held.truncate(held.len() * 9 / 10);
                held.extend(greedy(account, 1).1);
            }
        }
        let (early, late) = taken.split_at(taken.len() / 2);
        let [early, late] =
            [early, late].map(|part| part.iter().map(|(_, held)| held.len()).sum::<usize>());
        assert!(late * 3 > early && early * 3 > late, "{early} and {late}");
    }

    #[test]
    fn large_things_leave_room_for_small_ones() {
        let shares = shares(256 << 20);
        let large: Vec<_> =
            (0..400).filter_map(|_| shares.open(ME).hold(Good::Answers, 1 << 20).ok()).collect();
        assert!((150..=192).contains(&large.len()), "{}", large.len());
        let small: Vec<_> =
            (0..1000).filter_map(|_| shares.open(ME).hold(Good::Answers, 100).ok()).collect();
        assert_eq!(small.len(), 1000, "answers of 100 bytes find no room beside those of 1 MiB");
    }

    #[test]
    fn who_must_answer_does_and_others_wait_for_it() {
        let shares = shares(100);
        let account = shares.open(ME);
        let held = account.hold_anyway(Good::Answers, 500);
        assert!(account.hold(Good::Answers, 1).is_err());
        assert!(account.check(Good::Answers, 1).is_err());
        assert!(account.check(Good::Bodies, 100).is_ok());
        drop(held);
        assert!(account.hold(Good::Answers, 1).is_ok());
    }

    #[test]
    fn an_address_is_one_client_and_so_is_a_network_of_ipv6() {
        for (one, other, same) in [
            ("127.0.0.1", "127.0.0.2", false),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("2001:db8::1", "2001:db8::ffff:1:2:3", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let [one, other] = [one, other].map(|text| network(text.parse().unwrap()));
            assert_eq!(one == other, same, "{one} {other}");
        }
    }
}
