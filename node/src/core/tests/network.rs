//! The network between the members of a [`Cluster`](super::cluster::Cluster): explicit queues, one
//! per pair of nodes and direction. Nothing arrives unless a test (or `settle`) delivers it.
//!
//! A **cut** link loses what is put on it, a **held** one keeps it. What travels are the very bytes
//! of [`wire`](crate::core::wire).

use crate::sim::network::{Link, Packet};
use flotilla_router::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The queues.
#[derive(Default)]
pub(super) struct Network {
    queues: BTreeMap<Link, VecDeque<Packet>>,
    cut: BTreeSet<Link>,
    held: BTreeSet<Link>,
}

impl Network {
    /// Puts a packet on its link; gives it back where the link is cut.
    pub(super) fn send(&mut self, link: Link, packet: Packet) -> Option<Packet> {
        if self.cut.contains(&link) {
            return Some(packet);
        }
        self.queues.entry(link).or_default().push_back(packet);
        None
    }

    /// Takes the packet at `place` of a link's queue, whether or not the link is held.
    pub(super) fn take(&mut self, link: Link, place: usize) -> Option<Packet> {
        self.queues.get_mut(&link)?.remove(place)
    }

    /// Where the first packet of a link's queue stands that is no snapshot.
    pub(super) fn first_frame(&self, link: Link) -> Option<usize> {
        self.queues.get(&link)?.iter().position(|packet| matches!(packet, Packet::Frame(_)))
    }

    /// How many packets wait on a link.
    pub(super) fn waiting(&self, link: Link) -> usize {
        self.queues.get(&link).map_or(0, VecDeque::len)
    }

    /// The links on which something waits that may arrive by itself.
    pub(super) fn deliverable(&self) -> Vec<Link> {
        self.queues
            .iter()
            .filter(|(link, queue)| !queue.is_empty() && !self.held.contains(link))
            .map(|(link, _)| *link)
            .collect()
    }

    /// From here on the link loses everything; gives back what was on it.
    pub(super) fn cut(&mut self, link: Link) -> Vec<Packet> {
        self.cut.insert(link);
        self.queues.remove(&link).unwrap_or_default().into()
    }

    /// From here on the link keeps everything.
    pub(super) fn hold(&mut self, link: Link) {
        self.held.insert(link);
    }

    /// What a held link kept may arrive now.
    pub(super) fn release(&mut self, link: Link) {
        self.held.remove(&link);
    }

    /// No link is cut or held any more.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        self.held.clear();
    }

    /// Loses everything on its way to or from a node; gives back what was lost.
    pub(super) fn lose(&mut self, node: NodeId) -> Vec<(Link, Packet)> {
        let links: Vec<Link> =
            self.queues.keys().copied().filter(|(from, to)| *from == node || *to == node).collect();
        let queues = links.into_iter().filter_map(|link| Some((link, self.queues.remove(&link)?)));
        queues
            .flat_map(|(link, queue)| queue.into_iter().map(move |packet| (link, packet)))
            .collect()
    }
}
