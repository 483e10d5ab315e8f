//! Owns the decision what to attach, replace and detach: desired against observed. Pure: it must not know
//! netlink, bpffs or Aya.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use portcullis_common::event::Direction;
use thiserror::Error;

/// Where TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// A TCX link, pinned. Minimum kernel 6.6.
    Tcx,
    /// A direct-action filter on the clsact qdisc. Minimum kernel 4.5.
    Clsact,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// What `--hook` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HookChoice {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX (kernel 6.6).
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// A `--hook` that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HookError {
    /// The word is none of ours.
    #[error("hook `{0}` is not known: use auto, tcx or clsact")]
    Unknown(String),
    /// TCX was asked for on a kernel that lacks it.
    #[error("hook tcx needs kernel 6.6, this is {0}: use hook auto or clsact")]
    NoTcx(KernelRelease),
    /// The kernel's release has no version in front.
    #[error("kernel release `{0}` does not start with a version")]
    Release(String),
}

impl FromStr for HookChoice {
    type Err = HookError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(HookError::Unknown(other.to_owned())),
        }
    }
}

impl HookChoice {
    /// The hook to use on this kernel.
    pub fn resolve(self, kernel: KernelRelease) -> Result<Hook, HookError> {
        let has_tcx = kernel >= KernelRelease::TCX;
        match self {
            Self::Auto | Self::Tcx if has_tcx => Ok(Hook::Tcx),
            Self::Auto | Self::Clsact => Ok(Hook::Clsact),
            Self::Tcx => Err(HookError::NoTcx(kernel)),
        }
    }
}

/// The first two numbers of a kernel's release, as `uname -r` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRelease {
    /// 6 in 6.18.44.
    pub major: u32,
    /// 18 in 6.18.44.
    pub minor: u32,
}

impl KernelRelease {
    /// The first that is supported: a test run takes a context since then, and the programs were seen to load there.
    pub const MINIMUM: Self = Self { major: 5, minor: 10 };
    /// The first that counts maps by cgroup and not by `RLIMIT_MEMLOCK`.
    pub const MEMCG: Self = Self { major: 5, minor: 11 };
    /// The first with TCX.
    pub const TCX: Self = Self { major: 6, minor: 6 };
}

impl fmt::Display for KernelRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for KernelRelease {
    type Err = HookError;

    fn from_str(release: &str) -> Result<Self, Self::Err> {
        let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Self { major, minor }),
            (_, None | Some(_)) => Err(HookError::Release(release.trim().to_owned())),
        }
    }
}

/// One place for one of our programs: an interface and a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Interface index in the agent's network namespace.
    pub interface: u32,
    /// The pod's direction: `Egress` sits at TC ingress of the host-side device, `Ingress` at its TC egress.
    pub direction: Direction,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {} {}", self.interface, self.direction.name())
    }
}

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A pod's: programs at both sides.
    Pod,
    /// Another way out of the node: one at its TC egress, for what pods sent to addresses that may be translated.
    Device,
}

/// Something of ours that was found attached, or that only looks so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The place, as the pin's name or the filter's device says.
    pub slot: Slot,
    /// The kind of attachment.
    pub hook: Hook,
    /// Whether packets pass it.
    pub state: State,
}

/// Whether packets pass an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Attached where its name says.
    Live {
        /// The kernel's id of the attached program.
        program: u32,
    },
    /// A pinned link whose device is gone, which was detached behind our back, or which is attached to
    /// something else than its name says.
    Dead,
}

/// The kernel's ids of the programs that should run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramIds {
    /// Of the program for packets to the pod.
    pub ingress: u32,
    /// Of the program for packets from the pod.
    pub egress: u32,
    /// Of the program for what leaves by other devices.
    pub out: u32,
}

impl ProgramIds {
    /// The id for a direction.
    #[must_use]
    pub const fn of(self, role: Role, direction: Direction) -> u32 {
        match (role, direction) {
            (Role::Pod, Direction::Ingress) => self.ingress,
            (Role::Pod | Role::Device, Direction::Egress) => self.egress,
            (Role::Device, Direction::Ingress) => self.out,
        }
    }
}

/// Why something is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is attached to nothing.
    Dead,
    /// The other kind of hook has taken its place.
    OtherHook,
    /// Nothing is wanted there.
    Unwanted,
}

/// One step. [`plan`] returns steps in the order in which they are safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachOp {
    /// Attach where nothing of this kind is.
    Attach {
        /// Where.
        slot: Slot,
        /// How.
        hook: Hook,
        /// Whose interface it is.
        role: Role,
    },
    /// Swap the program atomically in what is attached.
    Replace {
        /// Where.
        slot: Slot,
        /// How.
        hook: Hook,
        /// Whose interface it is.
        role: Role,
    },
    /// Take away.
    Detach {
        /// Where.
        slot: Slot,
        /// What kind.
        hook: Hook,
        /// The reason.
        why: Why,
    },
}

impl AttachOp {
    /// Whose interface it is, where something is put there.
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        match self {
            Self::Attach { role, .. } | Self::Replace { role, .. } => Some(*role),
            Self::Detach { .. } => None,
        }
    }

    /// The place that the step is about.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        match self {
            Self::Attach { slot, .. } | Self::Replace { slot, .. } | Self::Detach { slot, .. } => *slot,
        }
    }
}

impl fmt::Display for AttachOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { slot, hook, role } => write!(f, "attach {hook} {}", role.place(*slot)),
            Self::Replace { slot, hook, role } => write!(f, "replace {hook} {}", role.place(*slot)),
            Self::Detach { slot, hook, why: Why::Dead } => write!(f, "remove dead {hook} {slot}"),
            Self::Detach { slot, hook, why: Why::OtherHook | Why::Unwanted } => {
                write!(f, "detach {hook} {slot}")
            }
        }
    }
}

impl Role {
    /// The interface's places that have a program.
    const fn directions(self) -> &'static [Direction] {
        match self {
            Self::Pod => &[Direction::Ingress, Direction::Egress],
            Self::Device => &[Direction::Ingress],
        }
    }

    fn place(self, slot: Slot) -> String {
        match self {
            Self::Pod => slot.to_string(),
            Self::Device => format!("interface {} out", slot.interface),
        }
    }
}

/// The steps from what is attached to the programs of every desired interface by `hook`, running `current`.
///
/// The order never opens a pod that was enforced: dead pins go first (they hold the names of new ones), then
/// programs are replaced, then attached, and only then is taken away what the other hook or an earlier life
/// left. Within each part by interface, then direction. Nothing to do is an empty list, so the same call is
/// the audit.
#[must_use]
pub fn plan(
    hook: Hook,
    desired: &BTreeMap<u32, Role>,
    observed: &[Observed],
    current: ProgramIds,
) -> Vec<AttachOp> {
    let live: BTreeMap<(Slot, Hook), u32> = observed
        .iter()
        .filter_map(|found| match found.state {
            State::Live { program } => Some(((found.slot, found.hook), program)),
            State::Dead => None,
        })
        .collect();
    let dead: BTreeSet<(Slot, Hook)> = observed
        .iter()
        .filter(|found| found.state == State::Dead)
        .map(|found| (found.slot, found.hook))
        .collect();

    let mut replace = Vec::new();
    let mut attach = Vec::new();
    for (interface, role) in desired {
        for direction in role.directions() {
            let (slot, role) = (Slot { interface: *interface, direction: *direction }, *role);
            match live.get(&(slot, hook)) {
                None => attach.push(AttachOp::Attach { slot, hook, role }),
                Some(program) if *program != current.of(role, slot.direction) => {
                    replace.push(AttachOp::Replace { slot, hook, role });
                }
                Some(_) => {}
            }
        }
    }
    let is_wanted = |slot: &Slot| {
        desired.get(&slot.interface).is_some_and(|role| role.directions().contains(&slot.direction))
    };
    let gone = dead.into_iter().map(|(slot, hook)| AttachOp::Detach { slot, hook, why: Why::Dead });
    let stale = live.keys().filter_map(|(slot, found)| {
        let why = match (is_wanted(slot), *found == hook) {
            (true, true) => return None,
            (true, false) => Why::OtherHook,
            (false, _) => Why::Unwanted,
        };
        Some(AttachOp::Detach { slot: *slot, hook: *found, why })
    });
    gone.chain(replace).chain(attach).chain(stale).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
