//! What the machine has, or the container, or what the process is allowed of it.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Memory, in bytes. Zeroes where the system does not tell.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// What there is.
    pub total: usize,
    /// What is left.
    pub free: usize,
}

/// The machine's memory, or the container's where it has a limit, and never more than the process may have of it.
#[must_use]
pub fn memory() -> Memory {
    // Files of the kernel's, which never wait for a disk.
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| of_machine(&text)).unwrap_or_default();
    let group = Path::new("/sys/fs/cgroup");
    let container =
        read(&group.join("memory.max")).zip(read(&group.join("memory.current"))).and_then(|(max, now)| {
            of_container(&max, &now, &read(&group.join("memory.stat")).unwrap_or_default())
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

/// The memory that this process has, in bytes; `None` where the system does not tell.
#[must_use]
pub fn resident() -> Option<usize> {
    bytes_of("VmRSS", &std::fs::read_to_string("/proc/self/status").ok()?)
}

/// By `/proc/meminfo`.
fn of_machine(text: &str) -> Option<Memory> {
    Some(Memory { total: bytes_of("MemTotal", text)?, free: bytes_of("MemAvailable", text)? })
}

/// The line `name: … kB`.
fn bytes_of(name: &str, text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse::<usize>().ok()?.checked_mul(1024)
}

/// By the files of a control group (version 2); `None` if it has no limit.
fn of_container(max: &str, now: &str, stat: &str) -> Option<Memory> {
    let total = max.trim().parse::<usize>().ok()?;
    let used = now.trim().parse::<usize>().ok()?;
    // What the kernel caches of files it gives back when memory is short.
    let cached =
        stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<usize>().ok());
    Some(Memory { total, free: total.saturating_sub(used.saturating_sub(cached.unwrap_or(0))) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let machine = "MemTotal:        1000 kB\nMemFree:  5 kB\nMemAvailable:     400 kB\n";
        assert_eq!(of_machine(machine), Some(Memory { total: 1_024_000, free: 409_600 }));
        assert_eq!(of_machine("MemTotal: 1000 kB\n"), None);
        let container = of_container("1000\n", "700\n", "anon 1\ninactive_file 300\n");
        assert_eq!(container, Some(Memory { total: 1000, free: 600 }));
        assert_eq!(of_container("max\n", "700\n", ""), None, "no limit");
    }
}
