//! The policy tables: compiles a cluster, and writes what differs to the kernel. Knows pods by name, and nothing of
//! slots and interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis_common::addr::Addr;
use portcullis_policy::compile::{Compiler, Fitted, Held};
use portcullis_policy::desired::{Desired, EndpointRulesets};
use portcullis_policy::diff::{MapOp, diff, leftovers, released};
use portcullis_policy::model::{Cluster, ObjectKey, Problem};
use portcullis_policy::sizes::Sizes;

use crate::bpf::Kernel;
use crate::bpf::counters::CounterNames;
use crate::bpf::load::{BpfError, Purpose};

/// After so many changes that took the short way everything is compiled once, when there is time: what the tables
/// hold and nobody needs goes then.
const TIDY_AFTER: u32 = 1_024;

/// What the tables were compiled from: while that is the same, there is nothing to do.
#[derive(Debug)]
struct Compiled {
    cluster: Arc<Cluster>,
    pods: BTreeSet<ObjectKey>,
    problems: Vec<Problem>,
    held: Vec<Held>,
}

/// Compiler, kernel, and what was written.
#[derive(Debug)]
pub struct Tables {
    /// The maps.
    pub kernel: Kernel,
    names: Option<CounterNames>,
    compiler: Compiler,
    /// The tables as they are known to be.
    written: Desired,
    /// The tables as they were last compiled.
    goal: Desired,
    compiled: Option<Compiled>,
    /// Changes that took the short way since everything was compiled.
    followed: u32,
    /// Writes of the last change.
    writes: usize,
    /// True if something may be left to free.
    unsettled: bool,
    /// True if writes ended half-way: an address may have changed whose epoch did not, and what is written already is
    /// no news to the next change. Then all flows are judged again.
    interrupted: bool,
}

impl Tables {
    /// On these maps, with the counters that earlier agents named.
    #[must_use]
    pub fn new(kernel: Kernel, names: CounterNames, sizes: &Sizes) -> Self {
        let mut tables = Self::without_names(kernel, sizes);
        for (counter, name) in names.all() {
            tables.compiler.restore_counter(name.clone(), *counter);
        }
        tables.names = Some(names);
        tables
    }

    /// On maps that nobody else has, for tests and the benchmark.
    pub fn private() -> Result<Self, BpfError> {
        let (kernel, _) = Kernel::private(Purpose::Ask, 0)?;
        Ok(Self::without_names(kernel, &Sizes::default()))
    }

    fn without_names(kernel: Kernel, sizes: &Sizes) -> Self {
        let written = Desired { bank: kernel.bank(), ..Desired::default() };
        Self {
            names: None,
            compiler: Compiler::with_sizes(kernel.bank(), sizes.clone()),
            goal: written.clone(),
            written,
            compiled: None,
            followed: 0,
            writes: 0,
            unsettled: false,
            interrupted: false,
            kernel,
        }
    }

    /// The tables as they are known to be, with the rulesets and counters that were compiled last.
    #[must_use]
    pub fn written(&self) -> &Desired {
        &self.written
    }

    /// The tables as last compiled: what of them is needed.
    #[must_use]
    pub fn goal(&self) -> &Desired {
        &self.goal
    }

    /// Counters that have names, those of earlier agents too.
    #[must_use]
    pub fn named_counters(&self) -> usize {
        self.names.as_ref().map_or(0, |names| names.all().len())
    }

    /// Writes of the last change.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.writes
    }

    /// What is wrong, and whose policies have no room; nothing while nothing could be compiled.
    #[must_use]
    pub fn problems(&self) -> (&[Problem], &[Held]) {
        self.compiled.as_ref().map_or((&[], &[]), |compiled| (&compiled.problems, &compiled.held))
    }

    /// Brings the tables to what these pods need, unless they hold it already. `in_force` are their rulesets now.
    pub fn bring(
        &mut self,
        cluster: &Arc<Cluster>,
        pods: BTreeSet<ObjectKey>,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
    ) -> anyhow::Result<()> {
        let Some(mut last) = self.compiled.take() else {
            return self.compile(cluster, pods, in_force);
        };
        if last.pods != pods {
            return self.compile(cluster, pods, in_force);
        }
        if !Arc::ptr_eq(&last.cluster, cluster) {
            // What has no room may find some: only the whole compilation looks for it.
            let followed = last
                .held
                .is_empty()
                .then(|| self.compiler.follow(&last.cluster, cluster, &pods, &mut self.goal));
            let Some(plan) = followed.flatten() else {
                return self.compile(cluster, pods, in_force);
            };
            // A write that fails leaves nothing compiled: the next change compiles everything.
            self.write_all(&plan.before)?;
            self.followed += 1;
            self.unsettled |= self.followed >= TIDY_AFTER;
            last.cluster = Arc::clone(cluster);
        }
        self.compiled = Some(last);
        Ok(())
    }

    /// Compiles everything.
    fn compile(
        &mut self,
        cluster: &Arc<Cluster>,
        pods: BTreeSet<ObjectKey>,
        in_force: &BTreeMap<ObjectKey, EndpointRulesets>,
    ) -> anyhow::Result<()> {
        self.compiled = None;
        self.unsettled = true;
        let Fitted { desired, problems, held } =
            self.compiler.compile_what_fits(cluster, pods.iter(), in_force)?;
        if let Some(names) = &mut self.names {
            for (counter, name) in &desired.counters {
                if names.name(*counter) != Some(name) {
                    self.kernel.zero_counter(*counter)?;
                    names.set(*counter, name)?;
                }
            }
        }
        let plan = diff(&self.written, &desired);
        self.write_all(&plan.before)?;
        if self.interrupted {
            self.write_all(&[MapOp::BumpPrefixEpoch])?;
            self.interrupted = false;
        }
        self.written.endpoints.clone_from(&desired.endpoints);
        self.written.counters.clone_from(&desired.counters);
        self.goal = desired;
        self.followed = 0;
        self.compiled = Some(Compiled { cluster: Arc::clone(cluster), pods, problems, held });
        Ok(())
    }

    /// True if something is left to free: [`Tables::free`], after a grace period.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.unsettled
            && (self.followed >= TIDY_AFTER
                || self.compiler.has_unused()
                || leftovers(&self.written, &self.goal).next().is_some())
    }

    /// Nothing was left to free.
    pub fn settled(&mut self) {
        self.unsettled = false;
    }

    /// Frees what nobody needs and nobody reads any more, and compiles again: what had no room may have some now.
    pub fn free(&mut self, in_force: &BTreeMap<ObjectKey, EndpointRulesets>) -> anyhow::Result<()> {
        let after: Vec<MapOp> = leftovers(&self.written, &self.goal).collect();
        self.write_all(&after)?;
        self.compiler.sweep();
        match self.compiled.take() {
            Some(last) => self.compile(&last.cluster, last.pods, in_force),
            None => Ok(()),
        }
    }

    /// Addresses that no pod owns any more match nothing, though nothing else can be written.
    pub fn release(&mut self, is_owned: impl Fn(&Addr) -> bool) -> anyhow::Result<()> {
        self.write_all(&released(&self.written, is_owned).before)
    }

    fn write_all(&mut self, ops: &[MapOp]) -> anyhow::Result<()> {
        self.writes = ops.len();
        for op in ops {
            self.kernel.apply(op).inspect_err(|_| self.interrupted = true)?;
            op.apply(&mut self.written);
        }
        Ok(())
    }
}
