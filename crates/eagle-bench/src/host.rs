//! What the kernel knows of this machine and its processes.

use std::{fs, thread::available_parallelism};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Unit of times in `/proc/PID/stat`, per second: `USER_HZ`, part of Linux's interface to programs and 100
/// on every architecture that Rust supports.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// The machine that a result was measured on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    /// Usable by this process.
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    /// The distribution, as `/etc/os-release` names it.
    pub(crate) system: Option<String>,
    pub(crate) kernel: String,
    pub(crate) limits: Limits,
    /// Mean number of runnable processes in the minute before; anything above a few tenths is somebody else.
    pub(crate) load_before: f64,
}

/// What this process may use; absent where nothing limits it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Descriptors (`RLIMIT_NOFILE`, the soft limit).
    pub(crate) open_files: Option<u64>,
    /// Cores' worth of time, by the control group.
    pub(crate) cpus: Option<f64>,
    /// Memory, by the control group.
    pub(crate) memory_bytes: Option<u64>,
}

impl Limits {
    /// Of this process. Groups above its own are not looked at.
    fn own() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        // cgroups(7): version 2 has one line, `0::/path`.
        let group = read("/proc/self/cgroup");
        let group = group.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/');
        let of_group = |file: &str| read(&format!("/sys/fs/cgroup{group}/{file}"));
        Self {
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            cpus: cpus(&of_group("cpu.max")),
            memory_bytes: of_group("memory.max").trim().parse().ok(),
        }
    }
}

/// `cpu.max` of a control group: microseconds of time in a period of so many, or `max`.
fn cpus(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period) = (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?);
    (period > 0.0).then(|| quota / period)
}

impl Host {
    /// This machine. What cannot be read is empty or zero.
    pub(crate) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let load = read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default();
        Self {
            cpu,
            cores: available_parallelism().map_or(1, usize::from),
            memory_bytes: kibibytes(&read("/proc/meminfo"), "MemTotal").unwrap_or_default(),
            system: read("/etc/os-release")
                .lines()
                .find_map(|line| line.strip_prefix("PRETTY_NAME="))
                .map(|name| name.trim_matches('"').to_owned()),
            limits: Limits::own(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load,
        }
    }
}

/// The name that this machine gives itself; empty if it has none.
pub(crate) fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ProcessUse {
    /// User and system time of all its threads, seconds.
    pub(crate) cpu_seconds: f64,
    /// The most memory that it had resident at a time (`VmHWM`), bytes.
    pub(crate) max_rss_bytes: u64,
    /// The memory that it has resident now (`VmRSS`), bytes.
    pub(crate) rss_bytes: u64,
}

impl ProcessUse {
    /// Of the process with this id, or of `self`.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn of(id: &str) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let cpu_seconds = cpu_seconds(&stat).context("/proc/PID/stat has another form")?;
        // A process that has ended but was not waited for has no memory.
        let memory = |name| kibibytes(&status, name).unwrap_or_default();
        Ok(Self { cpu_seconds, max_rss_bytes: memory("VmHWM"), rss_bytes: memory("VmRSS") })
    }
}

/// proc_pid_stat(5): utime and stime are the fields 14 and 15. The second is the program's name in
/// parentheses, which may itself hold spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok().map(f64::from);
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

/// proc_stat(5): the eighth number of each `cpuN` is the time that a hypervisor gave to other machines. Of these cores together, in units of
/// [`TICKS_PER_SECOND`]; `None` where none of them is named.
pub(crate) fn stolen_ticks(stat: &str, cores: &[usize]) -> Option<u64> {
    let ticks = stat.lines().filter_map(|line| {
        let (core, times) = line.strip_prefix("cpu")?.split_once(' ')?;
        cores.contains(&core.parse().ok()?).then(|| times.split(' ').nth(7)?.parse::<u64>().ok())?
    });
    ticks.reduce(u64::saturating_add)
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1000 200 184";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(kibibytes("VmPeak:\t 100 kB\nVmHWM:\t    2048 kB\n", "VmHWM"), Some(2 << 20));
        assert_eq!(cpus("150000 100000\n"), Some(1.5));
        assert_eq!(cpus("max 100000\n"), None);
        assert_eq!(cpus("1 0"), None);
        let stat = "cpu  9 9 9 9 9 9 9 60 0 0\ncpu0 1 2 3 4 5 6 7 10 0 0\ncpu1 1 2 3 4 5 6 7 20 0 0\ncpu11 1 2 3 4 5 6 7 30 0 0\nintr 1\n";
        assert_eq!(stolen_ticks(stat, &[0, 1]), Some(30));
        assert_eq!(stolen_ticks(stat, &[1]), Some(20));
        assert_eq!(stolen_ticks("cpu0 1 2\n", &[0]), None);
        assert_eq!(stolen_ticks("", &[0]), None);
        assert_eq!(field("model name\t: A CPU: fast\n", "model name").as_deref(), Some("A CPU: fast"));
    }

    #[test]
    fn knows_this_process_and_machine() {
        let before = ProcessUse::of("self").unwrap();
        assert!(before.max_rss_bytes > 1 << 16, "{before:?}");
        assert!(ProcessUse::of("0").is_err());
        let host = Host::this();
        assert!(stolen_ticks(&fs::read_to_string("/proc/stat").unwrap(), &[0]).is_some());
        assert!(host.cores > 0 && host.memory_bytes > 1 << 20 && !host.kernel.is_empty(), "{host:?}");
    }
}
