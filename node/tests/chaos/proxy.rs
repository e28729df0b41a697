//! A UDP proxy between nodes, which spoils what passes.
//!
//! ```text
//!   node i ──► front ─ link i→j ─► back ──► node j        one circuit: what i dials when it means j
//!   node i ◄── front ◄ link j→i ── back ◄── node j
//! ```
//!
//! Node i's configuration names a front where it would name node j. Every datagram that comes to a
//! front is from i, and every answer comes to the back that was spoken from, so the proxy knows of
//! each who sent it to whom without reading it. The [`Rules`] are those of the directed pair,
//! whoever dialled: cut i→j stops what i sends to j on both circuits.
//!
//! Nothing else is needed for it, no privileges and no kernel modules (netem is not in every
//! kernel). One thread per socket, one for what is late. What is held back is bounded by
//! [`HELD_BYTES_MAX`]; beyond, it is lost, as in a full switch.

use flotilla_kit::Rng;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What may be held back at a time, over all links.
const HELD_BYTES_MAX: usize = 64 << 20;
/// What the kernel is asked to keep per socket while a thread is busy; it may grant less.
const BUFFER_BYTES: usize = 4 << 20;
/// How often a thread looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(100);
/// The longest that a datagram is held back so that others overtake it, or that its double comes
/// later.
const SHUFFLE_MILLIS_MAX: u64 = 20;

/// What is done to what one node sends to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Nothing passes.
    pub(crate) is_cut: bool,
    /// So many of a thousand are lost.
    pub(crate) loss_permille: u64,
    /// Each is so late, and their order stays.
    pub(crate) delay_millis: u64,
    /// So many of a thousand come a second time.
    pub(crate) duplicate_permille: u64,
    /// So many of a thousand are held back for a while of their own.
    pub(crate) reorder_permille: u64,
}

impl Rules {
    /// When this datagram is to be sent on, after now: never, once, or twice.
    fn judge(&self, rng: &mut Rng) -> Vec<Duration> {
        // Always as many draws, so that what becomes of a datagram does not depend on what other
        // rules do to those before.
        let [lost, doubled, held] =
            [self.loss_permille, self.duplicate_permille, self.reorder_permille]
                .map(|p| rng.permille(p));
        let [hold, echo] =
            [(); 2].map(|()| Duration::from_millis(rng.within(1..=SHUFFLE_MILLIS_MAX)));
        if self.is_cut || lost {
            return Vec::new();
        }
        let due =
            Duration::from_millis(self.delay_millis) + if held { hold } else { Duration::ZERO };
        let mut sends = vec![due];
        if doubled {
            sends.push(due + echo);
        }
        sends
    }
}

/// What happened to what one node sent to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Datagrams that came.
    pub(crate) came: u64,
    /// Lost, by a cut or by chance.
    pub(crate) lost: u64,
    /// Sent on later than they came.
    pub(crate) late: u64,
    /// Sent a second time.
    pub(crate) doubled: u64,
}

/// One direction between two nodes.
#[derive(Default)]
struct Link {
    rules: Mutex<(Rules, Option<Rng>)>,
    came: AtomicU64,
    lost: AtomicU64,
    late: AtomicU64,
    doubled: AtomicU64,
}

/// What is sent later.
struct Parcel {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl PartialEq for Parcel {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Parcel {}

impl PartialOrd for Parcel {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parcel {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

/// What is late, the next first.
#[derive(Default)]
struct Shelf {
    parcels: BinaryHeap<Reverse<Parcel>>,
    bytes: usize,
    count: u64,
}

#[derive(Default)]
struct Shared {
    shelf: Mutex<Shelf>,
    filled: Condvar,
    is_over: AtomicBool,
}

/// What one node dials when it means another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circuit {
    /// Who dials.
    pub(crate) from: u64,
    /// Whom.
    pub(crate) to: u64,
    /// Where `from` sends from, and is answered at.
    pub(crate) from_address: SocketAddr,
    /// Where `to` listens.
    pub(crate) to_address: SocketAddr,
    /// Where the proxy listens for `from`; port 0 for any.
    pub(crate) front: SocketAddr,
    /// Where the proxy speaks to `to` from; port 0 for any.
    pub(crate) back: SocketAddr,
}

/// All circuits of a cluster, as long as it lives.
pub(crate) struct Proxy {
    links: BTreeMap<(u64, u64), Arc<Link>>,
    fronts: BTreeMap<(u64, u64), SocketAddr>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Starts to pass everything on, unspoilt.
    pub(crate) fn start(seed: u64, circuits: &[Circuit]) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let mut proxy = Self {
            links: BTreeMap::new(),
            fronts: BTreeMap::new(),
            shared: shared.clone(),
            threads: Vec::new(),
        };
        for Circuit { from, to, from_address, to_address, front, back } in circuits {
            let [front, back] = [Arc::new(open(*front)?), Arc::new(open(*back)?)];
            proxy.fronts.insert((*from, *to), front.local_addr()?);
            let there = proxy.link(seed, *from, *to);
            let here = proxy.link(seed, *to, *from);
            proxy.carry(there, front.clone(), *from_address, back.clone(), *to_address)?;
            proxy.carry(here, back, *to_address, front, *from_address)?;
        }
        proxy.threads.push(std::thread::spawn(move || deliver(&shared)));
        Ok(proxy)
    }

    fn link(&mut self, seed: u64, from: u64, to: u64) -> Arc<Link> {
        let link = self.links.entry((from, to)).or_default().clone();
        link.rules.lock().unwrap().1.get_or_insert_with(|| Rng::new(seed ^ from << 32 ^ to << 48));
        link
    }

    /// Carries what comes from one address to the other, in a thread of its own.
    fn carry(
        &mut self,
        link: Arc<Link>,
        socket: Arc<UdpSocket>,
        source: SocketAddr,
        out: Arc<UdpSocket>,
        to: SocketAddr,
    ) -> std::io::Result<()> {
        socket.set_read_timeout(Some(GLANCE))?;
        let shared = self.shared.clone();
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !shared.is_over.load(Ordering::Relaxed) {
                // A timeout, or an ICMP message about something sent before: neither is the end.
                let Ok((length, sender)) = socket.recv_from(&mut buffer) else { continue };
                if sender == source {
                    pass(&shared, &link, &buffer[..length], &out, to);
                }
            }
        }));
        Ok(())
    }

    /// Where `from` is to dial `to`.
    pub(crate) fn front(&self, from: u64, to: u64) -> SocketAddr {
        self.fronts[&(from, to)]
    }

    /// Changes what is done to what `from` sends to `to`.
    pub(crate) fn edit(&self, from: u64, to: u64, edit: impl FnOnce(&mut Rules)) {
        edit(&mut self.links[&(from, to)].rules.lock().unwrap().0);
    }

    /// Passes everything on, unspoilt; what is late still is.
    pub(crate) fn heal(&self) {
        for link in self.links.values() {
            link.rules.lock().unwrap().0 = Rules::default();
        }
    }

    /// What happened so far to what `from` sent to `to`.
    pub(crate) fn tally(&self, from: u64, to: u64) -> Tally {
        let link = &self.links[&(from, to)];
        let [came, lost, late, doubled] =
            [&link.came, &link.lost, &link.late, &link.doubled].map(|n| n.load(Ordering::Relaxed));
        Tally { came, lost, late, doubled }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.filled.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A socket that does not run over in a burst, or else the proxy would lose what no rule says.
fn open(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(BUFFER_BYTES)?;
    Ok(socket)
}

/// Sends a datagram on as its link's rules say.
fn pass(shared: &Shared, link: &Link, bytes: &[u8], out: &Arc<UdpSocket>, to: SocketAddr) {
    link.came.fetch_add(1, Ordering::Relaxed);
    let sends = {
        let mut rules = link.rules.lock().unwrap();
        let (rules, rng) = &mut *rules;
        // What nothing is done to costs no draw.
        if *rules == Rules::default() {
            vec![Duration::ZERO]
        } else {
            rules.judge(rng.as_mut().expect("set at the start"))
        }
    };
    link.lost.fetch_add(u64::from(sends.is_empty()), Ordering::Relaxed);
    link.doubled.fetch_add(u64::from(sends.len() > 1), Ordering::Relaxed);
    for wait in sends {
        if wait.is_zero() {
            let _ = out.send_to(bytes, to);
            continue;
        }
        link.late.fetch_add(1, Ordering::Relaxed);
        let mut shelf = shared.shelf.lock().unwrap();
        if shelf.bytes + bytes.len() > HELD_BYTES_MAX {
            link.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        shelf.bytes += bytes.len();
        shelf.count += 1;
        let number = shelf.count;
        let (due, socket) = (Instant::now() + wait, out.clone());
        shelf.parcels.push(Reverse(Parcel { due, number, bytes: bytes.to_vec(), socket, to }));
        shared.filled.notify_one();
    }
}

/// Sends what is late when its time has come.
fn deliver(shared: &Shared) {
    let mut shelf = shared.shelf.lock().unwrap();
    while !shared.is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        let wait = shelf
            .parcels
            .peek()
            .map_or(GLANCE, |Reverse(next)| next.due.saturating_duration_since(now));
        if wait.is_zero() {
            let Some(Reverse(parcel)) = shelf.parcels.pop() else { continue };
            shelf.bytes -= parcel.bytes.len();
            let _ = parcel.socket.send_to(&parcel.bytes, parcel.to);
        } else {
            shelf = shared.filled.wait_timeout(shelf, wait.min(GLANCE)).unwrap().0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ends with a circuit between them that the first dials.
    struct Pair {
        ends: [UdpSocket; 2],
        proxy: Proxy,
    }

    impl Pair {
        fn new() -> Self {
            let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let ends = [(); 2].map(|()| open(any).unwrap());
            let [from_address, to_address] = [0, 1].map(|i: usize| ends[i].local_addr().unwrap());
            let circuit =
                Circuit { from: 1, to: 2, from_address, to_address, front: any, back: any };
            for end in &ends {
                end.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            }
            let pair = Self { ends, proxy: Proxy::start(7, &[circuit]).unwrap() };
            // The second end learns whom to answer.
            pair.send(999);
            assert_eq!(pair.receive_all(1), [999]);
            pair
        }

        /// Sends from the first end to the second.
        fn send(&self, number: u32) {
            self.ends[0].send_to(&number.to_le_bytes(), self.proxy.front(1, 2)).unwrap();
        }

        /// The address that the second end was spoken to from: the one socket of the proxy that is
        /// not the front.
        fn back(&self) -> SocketAddr {
            self.send(0);
            let mut buffer = [0; 8];
            self.ends[1].recv_from(&mut buffer).unwrap().1
        }

        /// What comes until nothing came for a while.
        fn receive_all(&self, end: usize) -> Vec<u32> {
            let mut buffer = [0; 8];
            let mut numbers = Vec::new();
            while let Ok((4, _)) = self.ends[end].recv_from(&mut buffer) {
                numbers.push(u32::from_le_bytes(buffer[..4].try_into().unwrap()));
            }
            numbers
        }

        /// Sends so many from the first end, slowly enough that no buffer runs over.
        fn burst(&self, count: u32) -> Vec<u32> {
            for number in 0..count {
                self.send(number);
                std::thread::sleep(Duration::from_micros(200));
            }
            self.receive_all(1)
        }
    }

    #[test]
    fn what_has_no_rules_passes_both_ways_and_strangers_do_not() {
        let pair = Pair::new();
        let back = pair.back();
        for number in 0..50 {
            pair.send(number);
            pair.ends[1].send_to(&(1000 + number).to_le_bytes(), back).unwrap();
        }
        assert_eq!(pair.receive_all(1), (0..50).collect::<Vec<_>>());
        assert_eq!(pair.receive_all(0), (1000..1050).collect::<Vec<_>>());
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(&[1; 4], pair.proxy.front(1, 2)).unwrap();
        stranger.send_to(&[1; 4], back).unwrap();
        assert_eq!((pair.receive_all(0), pair.receive_all(1)), (vec![], vec![]));
    }

    #[test]
    fn one_way_is_cut_and_the_other_is_not() {
        let pair = Pair::new();
        let back = pair.back();
        pair.proxy.edit(1, 2, |rules| rules.is_cut = true);
        let before = pair.proxy.tally(1, 2);
        for number in 0..20 {
            pair.send(number);
            pair.ends[1].send_to(&u32::to_le_bytes(number), back).unwrap();
        }
        assert_eq!(pair.receive_all(1), Vec::<u32>::new());
        assert_eq!(pair.receive_all(0), (0..20).collect::<Vec<_>>());
        assert_eq!(
            (pair.proxy.tally(1, 2).lost - before.lost, pair.proxy.tally(2, 1).lost),
            (20, 0)
        );
        pair.proxy.heal();
        pair.send(77);
        assert_eq!(pair.receive_all(1), [77]);
    }

    #[test]
    fn loss_is_about_as_much_as_was_asked_for_and_the_same_for_the_same_seed() {
        let rules = Rules { loss_permille: 200, ..Rules::default() };
        let drawn = |seed| {
            let mut rng = Rng::new(seed);
            (0..20_000).map(|_| rules.judge(&mut rng).is_empty()).collect::<Vec<_>>()
        };
        let lost = drawn(7).iter().filter(|lost| **lost).count();
        assert!((3_800..=4_200).contains(&lost), "{lost} of 20000 lost, 4000 wanted");
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        // And on the wire.
        let pair = Pair::new();
        pair.proxy.edit(1, 2, |r| *r = rules);
        let came = pair.burst(1000);
        assert!((720..=880).contains(&came.len()), "{} of 1000 came, 800 wanted", came.len());
        assert!(came.is_sorted());
    }

    #[test]
    fn delay_is_what_was_asked_for_and_keeps_the_order() {
        let pair = Pair::new();
        pair.proxy.edit(1, 2, |rules| rules.delay_millis = 80);
        let begun = Instant::now();
        pair.send(0);
        let mut buffer = [0; 8];
        pair.ends[1].recv_from(&mut buffer).unwrap();
        let took = begun.elapsed();
        assert!(
            (Duration::from_millis(80)..Duration::from_millis(250)).contains(&took),
            "{took:?}"
        );
        assert_eq!(pair.burst(200), (0..200).collect::<Vec<_>>());
        assert_eq!(pair.proxy.tally(1, 2).late, 201);
    }

    #[test]
    fn duplicates_come_twice_and_nothing_is_lost() {
        let pair = Pair::new();
        pair.proxy.edit(1, 2, |rules| rules.duplicate_permille = 300);
        let mut came = pair.burst(500);
        let doubled = pair.proxy.tally(1, 2).doubled;
        assert!((100..=200).contains(&doubled), "{doubled} of 500 doubled, 150 wanted");
        assert_eq!(came.len() as u64, 500 + doubled);
        came.sort_unstable();
        came.dedup();
        assert_eq!(came, (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn reordered_datagrams_are_overtaken_and_nothing_is_lost() {
        let pair = Pair::new();
        pair.proxy.edit(1, 2, |rules| rules.reorder_permille = 200);
        let mut came = pair.burst(500);
        let overtaken = came.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!(overtaken > 20, "only {overtaken} of 500 were overtaken");
        came.sort_unstable();
        assert_eq!(came, (0..500).collect::<Vec<_>>());
    }
}
