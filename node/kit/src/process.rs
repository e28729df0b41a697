//! Child processes and threads, and what belongs to them: waiting, signals, locks, ports.

use super::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the binary under test is. Cargo says it to integration tests; without cargo it lies above
/// them.
pub(crate) fn binary() -> PathBuf {
    let above = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("flotilla");
    std::env::var_os("CARGO_BIN_EXE_flotilla").map_or_else(above, PathBuf::from)
}

/// The binary under test.
pub fn flotilla() -> Command {
    command(binary())
}

/// A command without input, and with logs as they are by default.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env_remove("FLOTILLA_LOG").env_remove("FAILPOINTS");
    command
}

/// Asks again and again until there is an answer, and panics when there is none in time.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a child's end; one that does not end is killed, and the test fails.
pub fn wait(child: &mut Child, what: &str, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what}: not within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a child that says little, and takes what it said.
pub fn finish(mut child: Child, patience: Duration) -> Output {
    wait(&mut child, "the command ends", patience);
    child.wait_with_output().unwrap()
}

/// Runs a command that says little to its end.
pub fn run(command: &mut Command) -> Output {
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), PATIENCE)
}

/// Sends a signal to a process, by its id. One that is gone needs none.
pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id is not 0");
    let _ = kill_process(pid, signal);
}

/// The processes that this one started and that still run.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| stat(*id).is_some_and(|(state, of)| of == parent && state != 'Z')).collect()
}

/// A process's state and its parent, from `/proc/<id>/stat`; the name before them may hold
/// anything, so it is cut off.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// Whether a process is gone, or only waits for its parent to take notice.
pub(crate) fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| state == 'Z')
}

/// A port from which `nodes` TCP ports, and as many UDP ports 100 above, are free.
///
/// Below the range from which the kernel takes ports for connections, so that none of those gets in
/// the way.
pub fn free_ports(nodes: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..200 {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let base = 20_000 + ((std::process::id() * 97 + step * 307) % 12_000) as u16;
        let free = |port: u16| {
            TcpListener::bind(("127.0.0.1", port)).is_ok()
                && UdpSocket::bind(("127.0.0.1", port + 100)).is_ok()
        };
        if (base..base + nodes).all(free) {
            return base;
        }
    }
    panic!("no free ports between 20000 and 32000");
}

/// Locks what is sound at every moment. A thread that panicked has said why, and ends the test.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raises a flag when it is dropped, so that threads that look at it end, also when something
/// panics.
pub struct RaiseOnDrop<'a>(pub &'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
