//! A network of its own for every node, where the system lets us: namespaces, and iptables inside
//! them.
//!
//! ```text
//!   namespace of node i            the test's namespace
//!   eth0 10.x.i.1  ────── veth ──────  10.x.i.101  stands for node 1      the proxy listens and speaks here
//!                                      10.x.i.102  stands for node 2 …
//! ```
//!
//! To node i, each other node j has one address, 10.x.i.(100 + j), for both directions: one
//! iptables rule inside i's namespace cuts what j sends to i, or loses a share of it. All of it
//! passes the proxy, which does what iptables can't.
//!
//! Names and addresses are this process's own (x is claimed by a locked file), so that runs side by
//! side don't meet. All of it is removed when dropped; what a process left that was killed is
//! removed by the next run.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// What every name begins with; the process id follows.
const PREFIX: &str = "fltl";

/// The networks of a cluster's nodes.
pub(crate) struct Namespaces {
    octet: u8,
    /// Tells the networks of one process apart.
    letter: char,
    nodes: u64,
    /// The namespaces in which there are rules.
    ruled: Mutex<Vec<u64>>,
    /// Keeps the octet ours.
    _claim: File,
}

impl Namespaces {
    /// Makes them, or says why that can't be.
    pub(crate) fn new(nodes: u64) -> Result<Self, String> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        remove_stale();
        let letter = char::from(b'a' + NEXT.fetch_add(1, Ordering::Relaxed) % 26);
        let (octet, claim) = claim_octet()?;
        // From here on, whatever was made is removed when it is dropped.
        let spaces = Self { octet, letter, nodes, ruled: Mutex::default(), _claim: claim };
        for node in 1..=nodes {
            spaces.make(node)?;
        }
        spaces.check_reach()?;
        Ok(spaces)
    }

    fn make(&self, node: u64) -> Result<(), String> {
        let name = self.name(node);
        run(&["ip", "netns", "add", &name])?;
        run(&["ip", "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        for peer in (1..=self.nodes).filter(|peer| *peer != node) {
            run(&["ip", "addr", "add", &format!("{}/24", self.outside(node, peer)), "dev", &name])?;
        }
        run(&["ip", "link", "set", &name, "up"])?;
        run(&[
            "ip",
            "-n",
            &name,
            "addr",
            "add",
            &format!("{}/24", self.inside(node)),
            "dev",
            "eth0",
        ])?;
        run(&["ip", "-n", &name, "link", "set", "lo", "up"])?;
        run(&["ip", "-n", &name, "link", "set", "eth0", "up"])?;
        // Whether the matches are there that the faults need.
        let probe = [
            "-s",
            "10.255.255.255",
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            "0.5",
            "-j",
            "DROP",
        ];
        for action in ["-A", "-D"] {
            self.iptables(node, &[&[action, "INPUT"], &probe[..]].concat())?;
        }
        Ok(())
    }

    /// A firewall of this machine may stand between: something sent from a namespace must arrive.
    fn check_reach(&self) -> Result<(), String> {
        let here = UdpSocket::bind((self.outside(1, 2), 0)).map_err(|error| error.to_string())?;
        let address = here.local_addr().map_err(|error| error.to_string())?;
        here.set_read_timeout(Some(Duration::from_secs(2))).map_err(|error| error.to_string())?;
        let script = format!("echo hello >/dev/udp/{}/{}", address.ip(), address.port());
        run(&["ip", "netns", "exec", &self.name(1), "bash", "-c", &script])?;
        here.recv_from(&mut [0; 16])
            .map(drop)
            .map_err(|_| "what is sent from a namespace does not arrive".into())
    }

    fn name(&self, node: u64) -> String {
        // A network interface may be called by 15 letters.
        format!("{PREFIX}{}{}{node}", std::process::id(), self.letter)
    }

    /// Where a node serves.
    pub(crate) fn inside(&self, node: u64) -> IpAddr {
        Ipv4Addr::new(10, self.octet, node as u8, 1).into()
    }

    /// What stands for `peer` where `node` looks.
    pub(crate) fn outside(&self, node: u64, peer: u64) -> IpAddr {
        Ipv4Addr::new(10, self.octet, node as u8, 100 + peer as u8).into()
    }

    /// What to put in front of a command so that it runs in a node's namespace; it keeps its
    /// process id.
    pub(crate) fn launcher(&self, node: u64) -> Vec<OsString> {
        ["ip", "netns", "exec", &self.name(node)].map(OsString::from).into()
    }

    /// Loses what `from` sends to `to`: all of it, or so many of a thousand datagrams.
    pub(crate) fn lose(&self, from: u64, to: u64, permille: u64) {
        let source = self.outside(to, from).to_string();
        let probability = format!("{}.{:03}", permille / 1000, permille % 1000);
        let mut rule = vec!["-A", "INPUT", "-p", "udp", "-s", &source];
        if permille < 1000 {
            rule.extend(["-m", "statistic", "--mode", "random", "--probability", &probability]);
        }
        rule.extend(["-j", "DROP"]);
        self.rule(to, &rule);
    }

    /// Loses what a node sends to a peer on its way out, so that the sender is told; what a pulled
    /// cable is like.
    pub(crate) fn refuse(&self, from: u64, to: u64) {
        let peer = self.outside(from, to).to_string();
        self.rule(from, &["-A", "OUTPUT", "-p", "udp", "-d", &peer, "-j", "DROP"]);
    }

    fn rule(&self, node: u64, rule: &[&str]) {
        self.iptables(node, rule).unwrap_or_else(|why| panic!("{why}"));
        self.ruled.lock().unwrap().push(node);
    }

    /// Takes all rules away; how many datagrams they lost.
    pub(crate) fn heal(&self) -> u64 {
        let mut ruled = std::mem::take(&mut *self.ruled.lock().unwrap());
        ruled.sort_unstable();
        ruled.dedup();
        let mut lost = 0;
        for node in ruled {
            for chain in ["INPUT", "OUTPUT"] {
                let list =
                    self.iptables(node, &["-nvxL", chain]).unwrap_or_else(|why| panic!("{why}"));
                let drops =
                    list.lines().filter(|line| line.contains("DROP") && !line.starts_with("Chain"));
                lost += drops
                    .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
                    .sum::<u64>();
                self.iptables(node, &["-F", chain]).unwrap_or_else(|why| panic!("{why}"));
            }
        }
        lost
    }

    fn iptables(&self, node: u64, args: &[&str]) -> Result<String, String> {
        let name = self.name(node);
        run(&[&["ip", "netns", "exec", &name, "iptables", "-w", "5"], args].concat())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for node in 1..=self.nodes {
            // The pair of links goes at once with its end outside; inside, it would live as long as
            // the last socket.
            let _ = run(&["ip", "link", "del", &self.name(node)]);
            let _ = run(&["ip", "netns", "del", &self.name(node)]);
        }
    }
}

/// Runs a command to its end; what it said.
fn run(command: &[&str]) -> Result<String, String> {
    let output = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", command[0]))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{}` says: {}", command.join(" "), said.lines().next().unwrap_or("nothing")))
}

/// A network that nobody else uses.
fn claim_octet() -> Result<(u8, File), String> {
    let routes = run(&["ip", "-4", "route", "show", "table", "all"])?;
    let claimed = (64..=250).find_map(|octet| {
        let path = std::env::temp_dir().join(format!("flotilla-chaos-net-{octet}.lock"));
        let file = File::options().create(true).append(true).open(path).ok()?;
        let is_free = !routes.contains(&format!("10.{octet}."));
        (is_free && file.try_lock().is_ok()).then_some((octet, file))
    });
    claimed.ok_or_else(|| "no network 10.x is free".into())
}

/// Removes what processes left that are gone.
fn remove_stale() {
    let Ok(list) = run(&["ip", "netns", "list"]) else { return };
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once(char::is_alphabetic));
        if owner.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists()) {
            let _ = run(&["ip", "link", "del", name]);
            let _ = run(&["ip", "netns", "del", name]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_lose_what_they_say_and_nothing_stays_behind() {
        let spaces = match Namespaces::new(2) {
            Ok(spaces) => spaces,
            Err(why) => return println!("SKIPPED: no network namespaces here: {why}"),
        };
        let name = spaces.name(1);
        // From here to a namespace: an ICMP answer would come back if it were not lost.
        let here = UdpSocket::bind((spaces.outside(1, 2), 0)).unwrap();
        spaces.lose(2, 1, 1000);
        for _ in 0..10 {
            here.send_to(b"lost", (spaces.inside(1), 9)).unwrap();
        }
        assert_eq!(spaces.heal(), 10);
        spaces.lose(2, 1, 300);
        for _ in 0..1000 {
            let _ = here.send_to(b"some", (spaces.inside(1), 9));
        }
        let lost = spaces.heal();
        assert!((200..=400).contains(&lost), "{lost} of 1000 lost, 300 wanted");
        assert_eq!(spaces.heal(), 0);
        drop(spaces);
        assert!(
            !run(&["ip", "netns", "list"]).unwrap().contains(&name),
            "a namespace stayed behind"
        );
        assert!(run(&["ip", "link", "show", &name]).is_err(), "a link stayed behind");
    }
}
