//! Owns the effects: carries out a plan's steps, reads back what is attached, and takes everything away.
//! It must not decide what is wanted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, SchedClassifier};
use portcullis_common::event::Direction;

use super::clsact::Leftover;
use super::plan::{AttachOp, Hook, Observed, ProgramIds, Role, Slot, Why};
use super::{AttachError, cgroup, clsact, is_gone, label, tcx};

/// The loaded programs.
#[derive(Debug)]
pub struct Programs<'a> {
    /// For packets from the pod.
    pub egress: &'a mut SchedClassifier,
    /// For packets to the pod.
    pub ingress: &'a mut SchedClassifier,
    /// For what leaves by other devices.
    pub out: &'a mut SchedClassifier,
}

impl Programs<'_> {
    /// The kernel's ids, for [`super::plan()`].
    pub fn ids(&self) -> Result<ProgramIds, ProgramError> {
        Ok(ProgramIds {
            ingress: self.ingress.info()?.id(),
            egress: self.egress.info()?.id(),
            out: self.out.info()?.id(),
        })
    }

    const fn get(&mut self, role: Role, direction: Direction) -> &mut SchedClassifier {
        match (role, direction) {
            (_, Direction::Egress) => self.egress,
            (Role::Pod, Direction::Ingress) => self.ingress,
            (Role::Device, Direction::Ingress) => self.out,
        }
    }
}

/// What became of a plan's steps. One interface's failure stops no other.
#[derive(Debug, Default)]
pub struct Report {
    /// Carried out.
    pub done: Vec<AttachOp>,
    /// Moot, because the interface has gone.
    pub vanished: Vec<AttachOp>,
    /// Not tried: the old hook stays where the new one failed.
    pub skipped: Vec<AttachOp>,
    /// Failed. The next plan has them again.
    pub failed: Vec<(AttachOp, AttachError)>,
}

/// What [`cleanup`] did.
#[derive(Debug, Default)]
pub struct Cleanup {
    /// What it took, for people.
    pub taken: Vec<String>,
    /// What it could not take.
    pub failed: Vec<AttachError>,
}

/// Attaches by one hook, with the pins of links in one directory.
#[derive(Clone, Debug)]
pub struct Attacher {
    hook: Hook,
    links_dir: PathBuf,
}

impl Attacher {
    /// `links_dir` is on a bpffs; it is made, mode 0700, when the first link is.
    pub fn new(hook: Hook, links_dir: impl Into<PathBuf>) -> Self {
        Self { hook, links_dir: links_dir.into() }
    }

    /// The hook to plan with.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        self.hook
    }

    /// Everything of ours that is attached, by either hook, by interface, direction and hook. Blocks for
    /// some netlink exchanges and one read in procfs a link.
    pub fn observed(&self) -> Result<Vec<Observed>, AttachError> {
        let mut found = tcx::observed(&self.links_dir)?;
        found.extend(clsact::observed()?);
        found.sort_unstable_by_key(|observed| (observed.slot, observed.hook));
        Ok(found)
    }

    /// Carries out the steps in their order. Blocks: 8 to 16 ms for each new TCX link, microseconds for
    /// everything else.
    pub fn apply(&self, ops: &[AttachOp], programs: &mut Programs<'_>) -> Report {
        let mut report = Report::default();
        let mut unenforced = BTreeSet::new();
        for op in ops {
            let slot = op.slot();
            if matches!(op, AttachOp::Detach { why: Why::OtherHook, .. }) && unenforced.contains(&slot) {
                report.skipped.push(*op);
                continue;
            }
            match self.step(*op, programs) {
                Ok(()) => report.done.push(*op),
                Err(_) if is_gone(slot.interface) => report.vanished.push(*op),
                Err(error) => {
                    unenforced.insert(slot);
                    report.failed.push((*op, error));
                }
            }
        }
        report
    }

    fn step(&self, op: AttachOp, programs: &mut Programs<'_>) -> Result<(), AttachError> {
        let dir = &self.links_dir;
        match op {
            AttachOp::Attach { slot, hook: Hook::Tcx, role } => {
                tcx::attach(dir, slot, programs.get(role, slot.direction))
            }
            AttachOp::Attach { slot, hook: Hook::Clsact, role } => {
                clsact::attach(slot, role, programs.get(role, slot.direction))
            }
            AttachOp::Replace { slot, hook: Hook::Tcx, role } => {
                tcx::replace(dir, slot, programs.get(role, slot.direction))
            }
            AttachOp::Replace { slot, hook: Hook::Clsact, role } => {
                clsact::replace(slot, role, programs.get(role, slot.direction))
            }
            AttachOp::Detach { slot, hook: Hook::Tcx, .. } => tcx::remove(dir, slot),
            AttachOp::Detach { slot, hook: Hook::Clsact, .. } => clsact::remove(slot),
        }
    }
}

/// Takes away every TCX link pinned in `links_dir` and every clsact filter of ours in this network namespace,
/// and from interfaces that had either the clsact qdisc, if nothing else uses it. Other pins in the directory
/// stay.
#[must_use]
pub fn cleanup(links_dir: &Path) -> Cleanup {
    let mut result = Cleanup::default();
    let mut touched = BTreeSet::new();
    for slot in result.keep(tcx::pinned(links_dir)).unwrap_or_default() {
        touched.insert(slot.interface);
        let what = format!("tcx link {}", place(slot));
        result.took(what, tcx::remove(links_dir, slot));
    }
    if let Some(true) = result.keep(cgroup::cleanup(links_dir)) {
        result.taken.push("cgroup link".to_owned());
    }
    let devices = result.keep(clsact::devices()).unwrap_or_default();
    for interface in &devices {
        for slot in result.keep(clsact::ours(*interface)).unwrap_or_default() {
            touched.insert(slot.interface);
            let what = format!("clsact filter {}", place(slot));
            result.took(what, clsact::remove(slot));
        }
    }
    for interface in devices.iter().filter(|interface| touched.contains(interface)) {
        match result.keep(clsact::remove_unused_qdisc(*interface)) {
            Some(Leftover::Nothing) => result.taken.push(format!("clsact qdisc {}", label(*interface))),
            Some(Leftover::Filters) | None => {}
        }
    }
    result
}

impl Cleanup {
    fn keep<T>(&mut self, step: Result<T, AttachError>) -> Option<T> {
        step.map_err(|error| self.failed.push(error)).ok()
    }

    fn took(&mut self, what: String, step: Result<(), AttachError>) {
        if self.keep(step).is_some() {
            self.taken.push(what);
        }
    }
}

fn place(slot: Slot) -> String {
    format!("{} {}", label(slot.interface), slot.direction.name())
}
