//! Attaching by the agent's module on this kernel, and taking it away again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_agent::attach::{
    self, AttachOp, Attacher, Hook, HookChoice, KernelRelease, Observed, Role, State, plan,
};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_tests::attached::Attached;
use portcullis_tests::device::Veth;

use crate::{Checks, host};

/// Where links are pinned; no agent runs here.
const BPFFS: &str = "/sys/fs/bpf";
const OURS: &str = "portcullis-vmtest";
/// How long packets may take: neighbour discovery begins within two seconds of a link's coming up (RFC 4861).
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// Every hook that this kernel has.
pub(crate) fn check(release: KernelRelease, checks: &mut Checks) -> Result<()> {
    checks.note("the hook that is chosen", &chosen(release));
    let mut load = Attached::load().context("loading the programs")?;
    let mut other = Attached::load().context("loading the programs again")?;
    checks.note("loading", &Ok("twice, by the verifier".to_owned()));
    checks.note("the host firewall", &host::check(&mut other));
    let hooks: &[Hook] =
        if release >= KernelRelease::TCX { &[Hook::Clsact, Hook::Tcx] } else { &[Hook::Clsact] };
    for hook in hooks {
        let what = format!("attachment by {hook}");
        checks.note(&what, &attach(*hook, &mut load, &mut other));
    }
    Ok(())
}

fn chosen(release: KernelRelease) -> Result<String> {
    let expected = if release >= KernelRelease::TCX { Hook::Tcx } else { Hook::Clsact };
    let hook = HookChoice::Auto.resolve(release)?;
    ensure!(hook == expected, "auto is {hook} on {release}");
    let asked = HookChoice::Clsact.resolve(release)?;
    ensure!(asked == Hook::Clsact, "clsact is {asked} on {release}");
    ensure!(
        HookChoice::Tcx.resolve(release).is_ok() == (expected == Hook::Tcx),
        "tcx is not refused on {release}"
    );
    Ok(format!("{hook} on {release}"))
}

/// Attaches, sees packets, swaps the programs, sees packets, and takes everything away.
fn attach(hook: Hook, first: &mut Attached, second: &mut Attached) -> Result<String> {
    let links = Links::new()?;
    let attacher = Attacher::new(hook, links.0.join("links"));
    let veth = Veth::create(&format!("pct-{hook}"))?;
    step(&attacher, &veth, first, |op| matches!(op, AttachOp::Attach { .. }))?;
    veth.up()?;
    let before = seen(first)?;
    seen_both_ways(first, before)?;
    step(&attacher, &veth, second, |op| matches!(op, AttachOp::Replace { .. }))?;
    let cleanup = attach::cleanup(&links.0.join("links"));
    ensure!(cleanup.failed.is_empty(), "cleaning up: {:?}", cleanup.failed);
    let left = attacher.observed()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(format!("attached, seeing packets both ways, replaced, removed ({} things)", cleanup.taken.len()))
}

/// Carries out the plan for both programs on the device, and looks whether they are there.
fn step(attacher: &Attacher, at: &Veth, load: &mut Attached, kind: impl Fn(&AttachOp) -> bool) -> Result<()> {
    let hook = attacher.hook();
    let mut programs = load.programs()?;
    let ids = programs.ids()?;
    let wanted = BTreeMap::from([(at.index, Role::Pod)]);
    let ops = plan(hook, &wanted, &attacher.observed()?, ids);
    ensure!(ops.len() == 2 && ops.iter().all(kind), "planned {ops:?}");
    let report = attacher.apply(&ops, &mut programs);
    if let Some((op, error)) = report.failed.first() {
        bail!("{op}: {error}");
    }
    ensure!(report.done == ops, "done is {:?}", report.done);
    let found = attacher.observed()?;
    let as_wanted = |o: &Observed| {
        o.hook == hook
            && o.slot.interface == at.index
            && o.state == State::Live { program: ids.of(Role::Pod, o.slot.direction) }
    };
    ensure!(found.len() == 2 && found.iter().all(as_wanted), "found {found:?}, not {ids:?}");
    Ok(())
}

/// Packets to and from a pod that the load has dropped, for it knows no endpoint there.
fn seen(load: &Attached) -> Result<(u64, u64)> {
    let of = |direction| load.packets(direction, Action::Deny, Reason::UnknownEndpoint);
    Ok((of(Direction::Ingress)?, of(Direction::Egress)?))
}

/// Waits for packets of the kernel's own neighbour discovery, which both ends of the pair send.
fn seen_both_ways(load: &Attached, before: (u64, u64)) -> Result<()> {
    let begin = Instant::now();
    loop {
        let now = seen(load)?;
        if now.0 > before.0 && now.1 > before.1 {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "after {} s: {before:?} then {now:?}", PATIENCE.as_secs());
        thread::sleep(PAUSE);
    }
}

/// A directory of pins, gone at the end.
pub(crate) struct Links(PathBuf);

impl Links {
    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn new() -> Result<Self> {
        let path = Path::new(BPFFS).join(OURS);
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // Only what no failed check is about can be left in it.
        drop(fs::remove_dir_all(&self.0));
    }
}
