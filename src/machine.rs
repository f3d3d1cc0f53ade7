//! The memory of the machine or the container, and the memory that the process uses.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Memory in bytes. Zero if the system does not report it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// The size of the memory.
    pub total: usize,
    /// The memory that is available.
    pub free: usize,
}

/// The memory of the machine, or the limit of the container if it is lower, or the limit of the process if that is lower.
#[must_use]
pub fn memory() -> Memory {
    // These are files of the kernel, so reading them does not block.
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| parse_meminfo(&text)).unwrap_or_default();
    let group = Path::new("/sys/fs/cgroup");
    let container =
        read(&group.join("memory.max")).zip(read(&group.join("memory.current"))).and_then(|(max, now)| {
            parse_cgroup(&max, &now, &read(&group.join("memory.stat")).unwrap_or_default())
        });
    let mut memory = match container {
        Some(container) if container.total < machine.total => container,
        Some(_) | None => machine,
    };
    if let Some(address_space) = getrlimit(Resource::As).current.and_then(|bytes| usize::try_from(bytes).ok())
    {
        memory.total = memory.total.min(address_space);
        memory.free = memory.free.min(address_space);
    }
    memory
}

/// The resident memory of this process in bytes; `None` if the system does not report it.
#[must_use]
pub fn resident_bytes() -> Option<usize> {
    parse_line("VmRSS", &std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Parses `/proc/meminfo`.
fn parse_meminfo(text: &str) -> Option<Memory> {
    Some(Memory { total: parse_line("MemTotal", text)?, free: parse_line("MemAvailable", text)? })
}

/// The value of the line `name: … kB`, in bytes.
fn parse_line(name: &str, text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse::<usize>().ok()?.checked_mul(1024)
}

/// Parses the files of a control group (version 2); `None` if it has no limit.
fn parse_cgroup(max: &str, now: &str, stat: &str) -> Option<Memory> {
    let total = max.trim().parse::<usize>().ok()?;
    let used = now.trim().parse::<usize>().ok()?;
    // The kernel frees its file cache when memory is short.
    let cached =
        stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<usize>().ok());
    Some(Memory { total, free: total.saturating_sub(used.saturating_sub(cached.unwrap_or(0))) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_parsed() {
        let machine = "MemTotal:        1000 kB\nMemFree:  5 kB\nMemAvailable:     400 kB\n";
        assert_eq!(parse_meminfo(machine), Some(Memory { total: 1_024_000, free: 409_600 }));
        assert_eq!(parse_meminfo("MemTotal: 1000 kB\n"), None);
        let container = parse_cgroup("1000\n", "700\n", "anon 1\ninactive_file 300\n");
        assert_eq!(container, Some(Memory { total: 1000, free: 600 }));
        assert_eq!(parse_cgroup("max\n", "700\n", ""), None, "no limit");
    }
}
