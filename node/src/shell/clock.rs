//! The clock of leases, ages and deadlines: monotonic, and running while the machine sleeps.
//!
//! A clock that stands still in suspend would let a laptop, or a virtual machine that was put to
//! disk, wake up with a lease that it had taken hours ago. Linux has `CLOCK_BOOTTIME`, which does
//! not; elsewhere the usual monotonic clock has to do (where that one stops in suspend, leases are
//! not for machines that are suspended). Election ticks stay on the usual one: a follower that
//! slept has not been without its leader for that long.

use std::time::Duration;

/// The time since some moment in the past, the same for all of the process's life.
#[cfg(target_os = "linux")]
pub fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is ever negative on a clock that counts from the machine's start.
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The time since some moment in the past, the same for all of the process's life.
#[cfg(not(target_os = "linux"))]
pub fn now() -> Duration {
    static BEGUN: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(std::time::Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_never_back() {
        let mut before = now();
        for _ in 0..1000 {
            let after = now();
            assert!(after >= before);
            before = after;
        }
        std::thread::sleep(Duration::from_millis(2));
        assert!(now() - before >= Duration::from_millis(2));
    }

    /// The system's uptime counts suspend, too; the usual monotonic clock does not.
    #[cfg(target_os = "linux")]
    #[test]
    fn it_is_the_one_that_runs_in_suspend() {
        let uptime = || {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            Duration::from_secs_f64(text.split(' ').next().unwrap().parse().unwrap())
        };
        let (before, shown, after) = (uptime(), now(), uptime());
        let rounding = Duration::from_millis(20);
        assert!(
            before <= shown + rounding && shown <= after + rounding,
            "{before:?} {shown:?} {after:?}"
        );
    }
}
