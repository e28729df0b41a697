//! How each fault is carried out, and how it is healed.
//!
//! What a fault was to do is checked: a cut must have lost datagrams, a full disk must have refused
//! puts, a node without its data must have been turned away. A chaos test whose faults do nothing
//! would find nothing.
//!
//! The state of [`Health`](super::health::Health) turns worse before a fault begins, and better
//! only after it was healed, so that no silence counts as the cluster's that the test made itself.

use super::harness::{Harness, RESERVE_BYTES};
use super::health::State;
use super::schedule::{Fault, Links, Round};
use flotilla_kit::disk::copy;
use flotilla_kit::until;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

/// What is left free for a node whose disk is to fall below its reserve.
const LOW_BYTES: u64 = RESERVE_BYTES * 2 / 3;

/// How often a node whose disk is full is pressed, 160 long deletes each time: several times what
/// its log has in reserve.
const PRESSES_MAX: usize = 60;

/// What faults did over a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// How many there were of each kind.
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    /// How many were left out, because there is no small disk.
    pub(crate) skipped: BTreeMap<&'static str, u64>,
    /// Datagrams that cuts and loss took.
    pub(crate) datagrams_lost: u64,
    /// Puts that were refused with 507, as the test saw.
    pub(crate) disk_refusals: u64,
    /// Nodes that ended because their disk was full.
    pub(crate) disk_deaths: u64,
    /// Nodes without their data that were turned away.
    pub(crate) turned_away: u64,
    /// From the moment at which all was healed until every node was ready, the longest.
    pub(crate) slowest_recovery: Duration,
}

impl Harness {
    /// One round. `watch` is called again and again while time passes, and panics when something is
    /// wrong.
    pub(crate) fn play(
        &mut self,
        round: &Round,
        done: &mut Done,
        watch: &mut dyn FnMut(&mut Self),
    ) {
        self.pass(round.pause_millis, watch);
        let (faults, skipped): (Vec<_>, Vec<_>) =
            round.faults.iter().partition(|fault| self.can(fault));
        let nodes = self.plan.nodes;
        for fault in skipped {
            *done.skipped.entry(fault.kind(nodes)).or_default() += 1;
        }
        if faults.is_empty() {
            return;
        }
        let text = round.to_string();
        self.health.change(|state| state.faults = text);
        let before = self.lost_so_far();

        for fault in &faults {
            *done.kinds.entry(fault.kind(nodes)).or_default() += 1;
            self.begin(fault, done);
        }
        self.pass(round.hold_millis, watch);
        // The network first: without it nobody comes back.
        let lost_by_rules = self.spaces.as_ref().map_or(0, |spaces| spaces.heal());
        let lost = lost_by_rules + self.lost_so_far() - before;
        self.proxy.heal();
        done.datagrams_lost += lost;
        // Where nothing else was wrong, everybody went on sending.
        let is_cut = faults.len() == 1 && !faults[0].cuts(nodes).is_empty();
        assert!(lost > 0 || !is_cut || round.hold_millis < 1000, "a cut took no datagram: {round}");
        let begun = Instant::now();
        self.health.change(|state| state.bad_links.clear());
        for fault in &faults {
            self.heal(fault, done);
        }
        for node in self.fleet.all() {
            self.fleet.wait_ready(&[node]);
            watch(self);
        }
        done.slowest_recovery = done.slowest_recovery.max(begun.elapsed());
        self.health.change(|state| {
            *state = State { faults: format!("after {round}"), ..State::default() }
        });
    }

    /// Whether the system lets us.
    fn can(&self, fault: &Fault) -> bool {
        self.disk.is_some() || !fault.needs_disk()
    }

    /// Lets time pass, with open eyes.
    pub(crate) fn pass(&mut self, millis: u64, watch: &mut dyn FnMut(&mut Self)) {
        let end = Instant::now() + Duration::from_millis(millis);
        loop {
            self.fleet.check_running();
            watch(self);
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Datagrams that the proxy lost so far.
    fn lost_so_far(&self) -> u64 {
        Links::All
            .pairs(self.plan.nodes)
            .into_iter()
            .map(|(from, to)| self.proxy.tally(from, to).lost)
            .sum()
    }

    fn begin(&mut self, fault: &Fault, done: &mut Done) {
        match fault {
            Fault::Kill { nodes, .. } => {
                self.health.change(|state| state.down.extend(nodes));
                self.fleet.kill(nodes);
            }
            Fault::Stop { node } => {
                self.health.change(|state| state.down.extend([*node]));
                self.fleet.signal(*node, Signal::STOP);
            }
            Fault::Restart { node } => {
                self.health.change(|state| state.down.extend([*node]));
                let took = self.fleet.stop(*node);
                assert!(
                    took < Duration::from_secs(15),
                    "node {node} took {took:?} to stop, 10 s are its grace"
                );
                self.fleet.spawn(*node);
            }
            Fault::Cut { .. } | Fault::OneWay { .. } | Fault::Ring => self.cut(fault),
            Fault::Loss { links, permille } => self.lose(*links, *permille),
            Fault::Delay { links, millis } => {
                for (from, to) in links.pairs(self.plan.nodes) {
                    self.health.change(|state| state.spoil(from, to, 0, *millis));
                    self.proxy.edit(from, to, |rules| rules.delay_millis = *millis);
                }
            }
            Fault::Duplicate { links, permille } => {
                for (from, to) in links.pairs(self.plan.nodes) {
                    self.proxy.edit(from, to, |rules| rules.duplicate_permille = *permille);
                }
            }
            Fault::Reorder { links, permille } => {
                for (from, to) in links.pairs(self.plan.nodes) {
                    // To QUIC, what was overtaken by much is lost.
                    self.health.change(|state| state.spoil(from, to, *permille, 0));
                    self.proxy.edit(from, to, |rules| rules.reorder_permille = *permille);
                }
            }
            Fault::DiskLow => self.fill_disk(LOW_BYTES, done),
            Fault::DiskFull => self.fill_disk(0, done),
            Fault::Wipe { node } => {
                self.wipe(*node, done);
            }
        }
    }

    fn cut(&self, fault: &Fault) {
        for (from, to) in fault.cuts(self.plan.nodes) {
            self.health.change(|state| state.bad_links.extend([(from, to)]));
            match (&self.spaces, fault) {
                // As if its cable were pulled: what it sends is refused at home, what others send
                // is lost on the way.
                (Some(spaces), Fault::Cut { node }) if *node == from => spaces.refuse(from, to),
                (Some(spaces), _) => spaces.lose(from, to, 1000),
                (None, _) => self.proxy.edit(from, to, |rules| rules.is_cut = true),
            }
        }
    }

    fn lose(&self, links: Links, permille: u64) {
        for (from, to) in links.pairs(self.plan.nodes) {
            self.health.change(|state| state.spoil(from, to, permille, 0));
            match &self.spaces {
                Some(spaces) => spaces.lose(from, to, permille),
                None => self.proxy.edit(from, to, |rules| rules.loss_permille = permille),
            }
        }
    }

    fn heal(&mut self, fault: &Fault, done: &mut Done) {
        match fault {
            Fault::Kill { nodes, again_millis } => {
                nodes.iter().for_each(|node| self.fleet.spawn(*node));
                if let Some(millis) = again_millis {
                    std::thread::sleep(Duration::from_millis(*millis));
                    self.fleet.check_running();
                    self.fleet.kill(nodes);
                    nodes.iter().for_each(|node| self.fleet.spawn(*node));
                }
            }
            Fault::Stop { node } => self.fleet.signal(*node, Signal::CONT),
            Fault::DiskLow | Fault::DiskFull => self.empty_disk(done),
            Fault::Wipe { node } => self.restore(*node),
            _ => {}
        }
    }

    /// Fills the small disk up to what is to be left. Puts to the shards of its node are refused
    /// then, with 507, and by nobody taken.
    fn fill_disk(&mut self, leave_bytes: u64, done: &mut Done) {
        let (node, disk) = self.disk.as_ref().expect("was asked for before");
        let (node, shards) = (*node, self.fleet.shard_paths(*node, "full"));
        self.health.change(|state| state.full.extend([node]));
        // It may end from now on.
        self.fleet.may_end.insert(node);
        disk.fill(leave_bytes);
        let (shard, path) = shards
            .iter()
            .find(|(shard, _)| self.replicas[shard].contains(&node))
            .expect("it has replicas");
        let client = self.fleet.client.patience(Duration::from_secs(2));
        let via = self.fleet.others(node)[0];
        let begun = Instant::now();
        // Below the reserve it has to go on, so it has to refuse. Full, it may have ended, and the
        // others may take puts.
        while leave_bytes > 0 || self.fleet.is_running(node) {
            let put =
                client.send(via, "PUT", &format!("/v1/kv/{path}x"), &[], Some(b"while it is full"));
            if put.is_ok_and(|answer| answer.status == 507) {
                done.disk_refusals += 1;
                break;
            }
            let took = begun.elapsed();
            assert!(
                took < Duration::from_secs(15),
                "puts to shard {shard} are not refused, the disk of {node} is full"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        if leave_bytes > 0 {
            let delete = client.ask(via, "DELETE", &format!("/v1/kv/{path}x"), &[], None);
            assert!(
                delete.status != 507,
                "a delete was refused, of which the disk would have become emptier: {}",
                delete.text()
            );
        } else {
            self.press(node, path);
        }
    }

    /// Deletes, which are taken, until a node whose disk is full has used up what its log had in
    /// reserve, and ends.
    fn press(&mut self, node: u64, path: &str) {
        let client = self.fleet.client.patience(Duration::from_secs(1));
        let via = self.fleet.others(node)[0];
        let long = format!("/v1/kv/{path}{}", "x".repeat(3000));
        for _ in 0..PRESSES_MAX {
            if !self.fleet.is_running(node) {
                return println!(
                    "  node {node} ended, its disk is full: {}",
                    self.fleet.log_tail(node, 1)
                );
            }
            std::thread::scope(|scope| {
                let press =
                    || (0..20).for_each(|_| drop(client.send(via, "DELETE", &long, &[], None)));
                (0..8).for_each(|_| drop(scope.spawn(press)));
            });
        }
        println!("  node {node} goes on, its disk is full");
    }

    /// Gives the small disk its space back, and waits until its node takes puts again; if it ended,
    /// or does now because it could not write before, it is started.
    fn empty_disk(&mut self, done: &mut Done) {
        let (node, disk) = self.disk.as_ref().expect("was asked for before");
        let node = *node;
        disk.empty();
        let client = self.fleet.client.patience(Duration::from_secs(1));
        let has_room = || {
            let state = client.send(node, "GET", "/readyz", &[], None);
            state.is_ok_and(|answer| answer.status == 200).then_some(())
        };
        let begun = Instant::now();
        while has_room().is_none()
            && self.fleet.is_running(node)
            && begun.elapsed() < Duration::from_secs(10)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        if !self.fleet.is_running(node) {
            done.disk_deaths += 1;
            let said = self.fleet.log_tail(node, 1);
            assert!(
                said.contains("the process ends") || said.contains("flotilla: "),
                "it ended without a word: {said}"
            );
            self.fleet.spawn(node);
        }
        self.fleet.may_end.remove(&node);
    }

    /// Takes a node's data away and starts it empty under its old id: the others must turn it away,
    /// and go on.
    fn wipe(&mut self, node: u64, done: &mut Done) {
        self.health.change(|state| state.down.extend([node]));
        self.fleet.kill(&[node]);
        let (data, saved) = (self.data(node), self.fleet.scratch().join("saved"));
        copy(&data, &saved).unwrap();
        fs::remove_dir_all(&data).unwrap();
        copy(&self.fleet.home(node).join("blank"), &data).unwrap();
        let others = self.fleet.others(node);
        let logs: Vec<usize> = others.iter().map(|other| self.fleet.said(*other).len()).collect();
        self.fleet.spawn(node);
        let all: BTreeSet<u64> = others.iter().copied().collect();
        until("everybody turns away the node without its data", Duration::from_secs(20), || {
            let turned_away = others.iter().zip(&logs).filter(|(other, from)| {
                let complaints = self.fleet.said_since(**other, **from);
                complaints.lines().any(|line| {
                    line.contains("another data directory")
                        && line.contains(&format!("node {node}"))
                })
            });
            (turned_away.map(|(other, _)| *other).collect::<BTreeSet<_>>() == all).then_some(())
        });
        let client = self.fleet.client.patience(Duration::from_secs(1));
        let (_, path) = &self.fleet.shard_paths(others[0], "wiped")[0];
        for (method, path) in [("GET", "/readyz".to_owned()), ("PUT", format!("/v1/kv/{path}x"))] {
            let body = (method == "PUT").then_some(&b"by nobody"[..]);
            let answer = client.send(node, method, &path, &[], body);
            let is_refused = answer.as_ref().map_or(true, |answer| answer.status >= 500);
            assert!(
                is_refused,
                "{method} {path} through a node without its data: {}",
                answer.unwrap().status
            );
        }
        done.turned_away += 1;
    }

    /// Gives a node its data back.
    fn restore(&mut self, node: u64) {
        self.fleet.kill(&[node]);
        let (data, saved) = (self.data(node), self.fleet.scratch().join("saved"));
        fs::remove_dir_all(&data).unwrap();
        copy(&saved, &data).unwrap();
        fs::remove_dir_all(&saved).unwrap();
        self.fleet.spawn(node);
    }
}
