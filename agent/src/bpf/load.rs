//! Loads the object: pins in place, programs verified. Two loads exist: the one that is attached, and the one
//! that is asked (`PROBE`), which shares its policy maps.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSkb, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_getres};
use portcullis_common::wire::LAYOUT_VERSION;
use portcullis_policy::sizes::Sizes;
use thiserror::Error;

use super::shape;
use crate::attach::{KernelRelease, Programs};

/// Program for traffic from a pod.
pub const POD_EGRESS: &str = "pod_egress";
/// Program for traffic to a pod.
pub const POD_INGRESS: &str = "pod_ingress";
/// Program for what leaves by the node's other devices.
pub const DELIVER_OUT: &str = "deliver_out";
/// Program for what ends at the node's own sockets.
pub const DELIVER_HERE: &str = "deliver_here";
/// The same where the host firewall is on.
pub const HOST_IN: &str = "host_in";
/// Program for what the node's own sockets send.
pub const HOST_OUT: &str = "host_out";
/// Program that lets everything pass: what the benchmark compares with. [`load()`] leaves it out.
pub const EMPTY: &str = "empty";

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis.bpf.o"));

/// What went wrong between the agent and bpf(2), by operation.
#[derive(Debug, Error)]
pub enum BpfError {
    /// A directory of pins.
    #[error("{path}: {cause}: {remedy}")]
    Pins {
        /// Where.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Loading the object.
    #[error("loading the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    /// Loading a program.
    #[error("loading program {name}: {cause}")]
    Program {
        /// Which.
        name: &'static str,
        /// The verifier's or the system's answer.
        cause: ProgramError,
    },
    /// A pin is not what this agent makes: nothing was changed.
    #[error("map {map} at {path}: its {what} is {found}, this agent's is {wanted}: {remedy}")]
    OtherShape {
        /// Which.
        map: &'static str,
        /// What differs.
        what: &'static str,
        /// Its pin.
        path: PathBuf,
        /// As it is.
        found: u32,
        /// As it should be.
        wanted: u32,
        /// What to do.
        remedy: String,
    },
    /// The object lacks what this agent needs: they were not built together.
    #[error("the eBPF object has no {0}")]
    Missing(String),
    /// A map.
    #[error("{operation} {map}: {cause}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// With which map.
        map: String,
        /// The system's answer.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BpfError {
    pub(crate) fn map(
        operation: &'static str,
        map: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Map { operation, map: map.into(), cause: cause.into() }
    }
}

/// Where the pins of this layout are: `<bpffs>/portcullis/v<LAYOUT>/{maps,links}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Below this bpffs.
    #[must_use]
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join("portcullis") }
    }

    /// Everything of ours.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Of this layout.
    #[must_use]
    pub fn layout(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.layout().join("maps")
    }

    /// Links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// Tables of flows, by the numbers of their maps.
    #[must_use]
    pub fn tables(&self) -> PathBuf {
        self.layout().join("tables")
    }

    /// Makes the directories, mode 0700, and refuses pins of another layout.
    pub fn prepare(&self, bpffs: &Path) -> Result<(), BpfError> {
        let fail =
            |path: &Path, cause: io::Error, remedy| BpfError::Pins { path: path.to_owned(), cause, remedy };
        let kind = statfs(bpffs)
            .map_err(|cause| fail(bpffs, cause.into(), "name a mounted bpffs with --bpffs"))?
            .filesystem_type();
        if kind != BPF_FS_MAGIC {
            let cause = io::Error::other("not a bpffs");
            return Err(fail(bpffs, cause, "mount one: mount -t bpf bpf /sys/fs/bpf"));
        }
        let remedy = "run as root, or with CAP_BPF on a bpffs of your own";
        for dir in [self.root.clone(), self.layout(), self.maps(), self.links(), self.tables()] {
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {}
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
                        .map_err(|cause| fail(&dir, cause, remedy))?;
                }
                Err(cause) => return Err(fail(&dir, cause, remedy)),
            }
        }
        let ours = format!("v{LAYOUT_VERSION}");
        for entry in fs::read_dir(&self.root).map_err(|cause| fail(&self.root, cause, remedy))?.flatten() {
            if entry.file_name() != *ours {
                return Err(fail(
                    &entry.path(),
                    io::Error::other("pins of another layout"),
                    "end its agent and run that version's `portcullis cleanup` first",
                ));
            }
        }
        Ok(())
    }
}

/// Which load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be attached.
    Attach,
    /// To be asked.
    Ask,
}

/// Loads the object, its maps of these sizes. With pins its maps are the pinned ones, made where they are not there
/// yet; one that is of another shape is an error, and nothing is made.
pub fn load(purpose: Purpose, pins: Option<&Pins>, sizes: &Sizes) -> Result<Ebpf, BpfError> {
    let probe = match purpose {
        Purpose::Attach => 0u32,
        Purpose::Ask => 1,
    };
    let fine_clock = u32::from(!has_coarse_clock());
    let networks = u32::from(tells_networks());
    let ticks = Ticks::read()?;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("PROBE", &probe, true)
        .override_global("FINE_CLOCK", &fine_clock, true)
        .override_global("NETWORKS", &networks, true)
        .override_global("TICK", &ticks.length, true)
        .override_global("FIRST_TICK", &ticks.first, true);
    if let Some(pins) = pins {
        shape::check(pins, sizes)?;
    }
    // `scratch`, `places`, the patterns of inner maps and the log ring are each load's own.
    for map in shape::shapes(sizes) {
        loader.map_max_entries(map.name, map.entries);
        if let Some(pins) = pins {
            loader.map_pin_path(map.name, pins.maps().join(map.name));
        }
    }
    let cpus = aya::util::nr_cpus().map_err(|(what, cause)| BpfError::map("count CPUs for", what, cause))?;
    loader.map_max_entries("places", u32::try_from(cpus).unwrap_or(u32::MAX));
    let mut ebpf = loader.load(OBJECT)?;
    let failed = |name| move |cause| BpfError::Program { name, cause };
    for name in [POD_EGRESS, POD_INGRESS] {
        let program = classifier(&mut ebpf, name)?;
        verified(|| program.load()).map_err(failed(name))?;
    }
    if let Purpose::Attach = purpose {
        let program = classifier(&mut ebpf, DELIVER_OUT)?;
        verified(|| program.load()).map_err(failed(DELIVER_OUT))?;
        loaded(&mut ebpf, DELIVER_HERE)?;
    }
    Ok(ebpf)
}

/// Times that a load is tried which a signal interrupts. The verifier gives up with `EAGAIN` when one is pending, and a
/// child that ends sends one; libbpf tries as often (`PROG_LOAD_ATTEMPTS`).
const LOAD_ATTEMPTS: u32 = 5;

fn verified(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut loaded = load();
    for _ in 1..LOAD_ATTEMPTS {
        match &loaded {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            _ => break,
        }
        loaded = load();
    }
    loaded
}

/// A program of the object.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, BpfError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| BpfError::Missing(format!("program {name}")))
}

/// The programs of pods' interfaces: [`POD_EGRESS`], then [`POD_INGRESS`].
pub fn both(ebpf: &mut Ebpf) -> Result<(&mut SchedClassifier, &mut SchedClassifier), BpfError> {
    programs(ebpf).map(|programs| (programs.egress, programs.ingress))
}

/// The programs that are attached to interfaces.
pub fn programs(ebpf: &mut Ebpf) -> Result<Programs<'_>, BpfError> {
    let (mut egress, mut ingress, mut out) = (None, None, None);
    for (name, program) in ebpf.programs_mut() {
        match name {
            POD_EGRESS => egress = program.try_into().ok(),
            POD_INGRESS => ingress = program.try_into().ok(),
            DELIVER_OUT => out = program.try_into().ok(),
            _ => {}
        }
    }
    match (egress, ingress, out) {
        (Some(egress), Some(ingress), Some(out)) => Ok(Programs { egress, ingress, out }),
        _ => Err(BpfError::Missing(format!("programs {POD_EGRESS}, {POD_INGRESS} and {DELIVER_OUT}"))),
    }
}

/// A program of the root of the cgroups.
pub fn of_cgroup<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSkb, BpfError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| BpfError::Missing(format!("program {name}")))
}

/// The same, loaded: those of the host firewall only where it is on.
pub fn loaded<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSkb, BpfError> {
    let program = of_cgroup(ebpf, name)?;
    if program.fd().is_err() {
        verified(|| program.load()).map_err(|cause| BpfError::Program { name, cause })?;
    }
    Ok(program)
}

/// Programs of cgroups may ask for a socket's network namespace since 6.15. A release that cannot be read may not.
#[must_use]
pub fn tells_networks() -> bool {
    kernel_release().is_ok_and(|release| (release.major, release.minor) >= (6, 15))
}

/// `bpf_ktime_get_coarse_ns` is there since 5.11. A release that cannot be read has it: then the load fails
/// rather than the clock.
fn has_coarse_clock() -> bool {
    kernel_release().map_or(true, |release| (release.major, release.minor) >= (5, 11))
}

/// How the programs make seconds of the kernel's ticks.
struct Ticks {
    /// A tick in 1/2^32 of a second.
    length: u64,
    /// The count that the kernel starts with: 300 seconds before 32 bits overflow (`INITIAL_JIFFIES` of
    /// include/linux/jiffies.h), so that whoever forgets the overflow finds out soon.
    first: u64,
}

impl Ticks {
    /// The coarse clock has the resolution of a tick.
    fn read() -> Result<Self, BpfError> {
        let fail =
            |cause: io::Error| BpfError::map("read the resolution of", "CLOCK_MONOTONIC_COARSE", cause);
        let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|e| fail(e.into()))?;
        let nanoseconds = u64::try_from(tick.num_nanoseconds()).unwrap_or(0);
        Self::of(nanoseconds).ok_or_else(|| fail(io::Error::other(format!("{nanoseconds} ns make no tick"))))
    }

    fn of(nanoseconds: u64) -> Option<Self> {
        const SECOND: u64 = 1_000_000_000;
        // HZ is from 24 to 1,200 on every architecture; a kernel with finer coarse clocks has no such ticks.
        let per_second = SECOND.checked_div(nanoseconds).filter(|hz| (24..=1_200).contains(hz))?;
        let first = u32::try_from(300 * per_second).ok()?.wrapping_neg();
        Some(Self { length: (1 << 32) / per_second, first: first.into() })
    }
}

/// The running kernel's release.
pub fn kernel_release() -> anyhow::Result<KernelRelease> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(text.trim().parse()?)
}

#[cfg(test)]
#[path = "stack_tests.rs"]
mod tests;
