//! What the node itself is: kernel, mounts, rights, and whether programs load and hang.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use portcullis_policy::sizes::Sizes;

use crate::attach::trial::{Trial, trial};
use crate::attach::{Hook, KernelRelease};
use crate::bpf::load::{self, EMPTY, Purpose, kernel_release};
use crate::bpf::programs::is_callable;

/// The kernel's own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Numbers of capabilities (`linux/capability.h`).
pub const NET_ADMIN: u32 = 12;
/// Stands for `CAP_BPF` and `CAP_PERFMON` too.
pub const SYS_ADMIN: u32 = 21;
/// Needed where maps count against `RLIMIT_MEMLOCK`.
pub const SYS_RESOURCE: u32 = 24;
/// Since Linux 5.8.
pub const PERFMON: u32 = 38;
/// Since Linux 5.8.
pub const BPF: u32 = 39;

/// What is at `--bpffs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bpffs {
    /// Nothing that can be looked at.
    Unreadable(String),
    /// Another file system.
    Other,
    /// One in which no directory can be made.
    ReadOnly(String),
    /// One that pins can be made in.
    Writable,
}

/// `Seccomp` of `/proc/self/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// No filter.
    Off,
    /// A filter, which may refuse what it likes.
    Filter,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The running kernel.
    pub release: Result<KernelRelease, String>,
    /// Whether the kernel shows its types.
    pub btf: Result<(), String>,
    /// The directory that was asked for, and what is there.
    pub bpffs: (PathBuf, Bpffs),
    /// Where cgroup v2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Effective capabilities, a bit each.
    pub capabilities: u64,
    /// Of this process.
    pub seccomp: Seccomp,
    /// Whether bpf(2) can be called.
    pub callable: Result<(), String>,
    /// Whether the programs pass the verifier.
    pub load: Result<(), String>,
    /// Whether a program can hang at TCX.
    pub tcx: Trial,
    /// Whether a program can hang at clsact.
    pub clsact: Trial,
}

impl Facts {
    /// Looks. The programs are loaded with maps of their own, and attached only in a network namespace made for it.
    #[must_use]
    pub fn gather(bpffs: &Path) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (load, tcx, clsact) = programs();
        Self {
            release: kernel_release().map_err(|error| format!("{error:#}")),
            btf: File::open(BTF).map(drop).map_err(|error| format!("{BTF}: {error}")),
            bpffs: (bpffs.to_owned(), look_at(bpffs)),
            cgroup2: cgroup2(&mounts),
            capabilities: capabilities(&status),
            seccomp: seccomp(&status),
            callable: is_callable().map_err(|error| error.to_string()),
            load,
            tcx,
            clsact,
        }
    }

    /// Whether the process has a capability.
    #[must_use]
    pub const fn has(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }
}

fn programs() -> (Result<(), String>, Trial, Trial) {
    let untried = || Trial::Untried("no program could be loaded".to_owned());
    // The verifier has seen the real programs; the one that hangs for a moment lets everything pass.
    let mut loaded = match load::load(Purpose::Ask, None, &Sizes::default()) {
        Ok(loaded) => loaded,
        Err(error) => return (Err(whole(&error)), untried(), untried()),
    };
    let empty = load::classifier(&mut loaded, EMPTY)
        .map_err(|error| error.to_string())
        .and_then(|program| program.load().map(|()| program).map_err(|error| whole(&error)));
    match empty {
        Err(why) => (Ok(()), Trial::Untried(why.clone()), Trial::Untried(why)),
        Ok(program) => (Ok(()), trial(Hook::Tcx, program), trial(Hook::Clsact, program)),
    }
}

/// An error with its causes, on one line: the verifier's log has many.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

fn look_at(bpffs: &Path) -> Bpffs {
    match statfs(bpffs) {
        Err(error) => return Bpffs::Unreadable(error.desc().to_owned()),
        Ok(found) if found.filesystem_type() != BPF_FS_MAGIC => return Bpffs::Other,
        Ok(_) => {}
    }
    let trial = bpffs.join(format!("portcullis-preflight-{}", std::process::id()));
    match DirBuilder::new().mode(0o700).create(&trial).and_then(|()| fs::remove_dir(&trial)) {
        Ok(()) => Bpffs::Writable,
        Err(error) => Bpffs::ReadOnly(error.to_string()),
    }
}

/// Where cgroup v2 is mounted, by `/proc/self/mountinfo`: the mount point is its fifth field, and the type stands
/// behind a lone hyphen (`proc_pid_mountinfo(5)`).
fn cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_cgroup2 = after.split_whitespace().next()? == "cgroup2";
        is_cgroup2.then(|| before.split_whitespace().nth(4).map(PathBuf::from))?
    })
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn capabilities(status: &str) -> u64 {
    field(status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or_default()
}

fn seccomp(status: &str) -> Seccomp {
    match field(status, "Seccomp") {
        None | Some("0") => Seccomp::Off,
        Some(_) => Seccomp::Filter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_wherever_it_is_mounted() {
        let hybrid = "24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            25 24 0:22 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:1 - cgroup2 cgroup rw\n\
            26 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(cgroup2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2("24 1 0:21 / /x - y rw - tmpfs tmpfs rw\n"), None);
        assert_eq!(cgroup2("garbage\n - cgroup2\n"), None);
    }

    #[test]
    fn status_tells_rights_and_filters() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t000000c000001000\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(capabilities(status), 1 << BPF | 1 << PERFMON | 1 << NET_ADMIN);
        assert_eq!(seccomp(status), Seccomp::Filter);
        assert_eq!(seccomp("Seccomp:\t0\n"), Seccomp::Off);
        assert_eq!(capabilities(""), 0);
    }
}
