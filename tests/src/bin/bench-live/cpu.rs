//! CPU time as the kernel accounts it.

use std::time::Duration;

use anyhow::{Context, Result};

/// User plus system time of all threads of a process since its start.
pub fn process(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    process_ticks(&stat).map(of_ticks).with_context(|| format!("no times in {stat:?}"))
}

/// Time of all CPUs that was neither idle nor stolen.
pub fn machine() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    machine_ticks(&stat).map(of_ticks).context("no times in /proc/stat")
}

/// Fields 14 and 15 of proc_pid_stat(5). Field 2, the program's name, may contain blanks and parentheses.
fn process_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// The line `cpu` of proc_stat(5): user, nice, system, (idle, iowait,) irq, softirq.
fn machine_ticks(stat: &str) -> Option<u64> {
    let numbers: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let (busy, interrupts) = (numbers.get(..3)?, numbers.get(5..7)?);
    Some(busy.iter().chain(interrupts).sum())
}

fn of_ticks(ticks: u64) -> Duration {
    // USER_HZ is 100 on every architecture that Rust supports on Linux: it is part of the kernel's ABI.
    Duration::from_millis(ticks * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_both_files() {
        let stat = "7 (a b) c) S 1 1 1 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 100 0 0";
        assert_eq!(process_ticks(stat), Some(42));
        assert_eq!(machine_ticks("cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 1"), Some(31));
    }
}
