//! How many connections may be in TLS or handshake at a time, and who may be among them.
//!
//! A first packet costs its sender nothing, may bear any address, and makes this node work and
//! remember. So
//!
//! - as long as few handshakes are under way, everybody begins one at once;
//! - beyond that, callers that have not shown that they get what is sent to their address are asked
//!   to (QUIC's Retry, which costs us a packet and no memory). A forged address never comes back;
//!   an honest one loses a round trip;
//! - places are kept for the addresses of peers, once they are proved, and no other address may
//!   take more than some of the rest.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Handshakes under way beyond which addresses must be proved.
const UNPROVED_MAX: usize = 8;
/// Handshakes with anybody at a time: what strangers can make this node do at once.
const ANYBODY_MAX: usize = 48;
/// Of those, with one address.
const ONE_ADDRESS_MAX: usize = 16;
/// Places for peers beside these.
const PEERS_MAX: usize = 32;

/// The doors of one node.
#[derive(Clone, Default)]
pub(crate) struct Doors(Arc<Mutex<Taken>>);

/// Who is in.
#[derive(Default)]
struct Taken {
    anybody: usize,
    peers: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// What to do with somebody who knocks.
pub(crate) enum Answer {
    /// Let the caller in, for as long as this is held.
    Enter(Place),
    /// Have the caller prove its address first.
    Prove,
    /// Turn the caller away.
    Full,
}

/// A place among those who are in.
pub(crate) struct Place {
    doors: Doors,
    /// The address that is counted; none for a place of the peers.
    address: Option<IpAddr>,
}

impl Doors {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody knocks: from where, whether that is proved, and whether a peer is to be found
    /// there.
    pub(crate) fn knock(&self, from: SocketAddr, is_proved: bool, is_peer: bool) -> Answer {
        let mut taken = self.lock();
        if !is_proved && taken.anybody >= UNPROVED_MAX {
            return Answer::Prove;
        }
        if is_proved && is_peer && taken.peers < PEERS_MAX {
            taken.peers += 1;
            return Answer::Enter(Place { doors: self.clone(), address: None });
        }
        let address = from.ip().to_canonical();
        let from_there = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.anybody >= ANYBODY_MAX || from_there >= ONE_ADDRESS_MAX {
            return Answer::Full;
        }
        taken.anybody += 1;
        taken.by_address.insert(address, from_there + 1);
        Answer::Enter(Place { doors: self.clone(), address: Some(address) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.doors.lock();
        let Some(address) = self.address else {
            taken.peers -= 1;
            return;
        };
        taken.anybody -= 1;
        if let Some(from_there) = taken.by_address.get_mut(&address) {
            *from_there -= 1;
            if *from_there == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> SocketAddr {
        ([10, 0, (n >> 8) as u8, n as u8], 7101).into()
    }

    fn enter(doors: &Doors, from: SocketAddr, is_proved: bool, is_peer: bool) -> Option<Place> {
        match doors.knock(from, is_proved, is_peer) {
            Answer::Enter(place) => Some(place),
            Answer::Prove | Answer::Full => None,
        }
    }

    #[test]
    fn forged_addresses_leave_room_for_proved_ones() {
        let doors = Doors::default();
        let forged: Vec<_> =
            (0..1000).filter_map(|n| enter(&doors, address(n), false, n % 2 == 0)).collect();
        assert_eq!(forged.len(), UNPROVED_MAX);
        assert!(
            matches!(doors.knock(address(1), false, true), Answer::Prove),
            "a peer's address can be forged, too"
        );
        let honest: Vec<_> =
            (0..1000).filter_map(|n| enter(&doors, address(n), true, false)).collect();
        assert_eq!(honest.len(), ANYBODY_MAX - UNPROVED_MAX);
    }

    #[test]
    fn strangers_with_true_addresses_leave_room_for_peers() {
        let doors = Doors::default();
        let strangers: Vec<_> =
            (0..1000).filter_map(|n| enter(&doors, address(n), true, false)).collect();
        assert_eq!(strangers.len(), ANYBODY_MAX);
        assert!(matches!(doors.knock(address(2000), true, false), Answer::Full));
        let peers: Vec<_> =
            (0..1000).filter_map(|n| enter(&doors, address(n), true, true)).collect();
        assert_eq!(peers.len(), PEERS_MAX);
        drop((strangers, peers));
        assert!(
            doors.lock().by_address.is_empty()
                && doors.lock().peers == 0
                && doors.lock().anybody == 0
        );
    }

    #[test]
    fn one_address_takes_its_part() {
        let doors = Doors::default();
        let greedy: Vec<_> =
            (0..1000).filter_map(|_| enter(&doors, address(1), true, false)).collect();
        assert_eq!(greedy.len(), ONE_ADDRESS_MAX);
        assert!(enter(&doors, address(2), true, false).is_some());
    }
}
