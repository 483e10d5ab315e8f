//! `cargo xtask test`: everything that CI runs, layer by layer, the cheap ones first; a failure does not keep
//! the rest from running. The last line is `N passed, N failed, N skipped`.

pub(crate) mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::check::{self, Outcome};
use crate::cluster_test;
use crate::mutants;
use crate::setup::{self, Group};
use crate::sh;
use crate::vm_test;
use crate::workspace::{LAB, TESTS, TestTarget, Workspace};
use tally::{Reader, Show, Tally};

/// A layer of tests, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Layer {
    /// Which crate may depend on which
    Rooms,
    /// rustfmt
    Format,
    /// Everything compiles
    Build,
    /// clippy, warnings being errors
    Lint,
    /// cargo-deny
    Deny,
    /// The plain manifests are what the chart gives
    Manifests,
    /// rustdoc, warnings being errors
    Docs,
    /// Unit and property tests, examples in documentation
    Unit,
    /// The loaded programs, by test run
    Kernel,
    /// The agent's view against the oracle's
    Differential,
    /// Real connections between namespaces
    Lab,
    /// Kill, restart, take over
    Lifecycle,
    /// Every other integration test
    Other,
    /// A real cluster: our own tests and the upstream suite's
    Cluster,
    /// Three faults, others every day: do the tests notice?
    Faults,
    /// Another kernel, in a virtual machine
    Vm,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this layer; may be given more than once
    #[arg(long = "layer", value_enum, value_name = "LAYER")]
    layers: Vec<Layer>,
}

/// The oldest kernel that every change is tried on.
const VM_KERNEL: &str = "6.1";

/// How many faults a run tries.
const FAULTS: usize = 3;

/// What a layer consists of.
#[derive(Clone, Copy)]
enum Work {
    Checks(check::Kind),
    Build,
    /// Libraries, binaries, documentation and what else cargo tests without root.
    Unit,
    /// Binaries that need root and share what there is one of (a kernel's tables, two cores' time), so one test
    /// at a time.
    Alone,
    Cluster,
    Faults,
    Vm,
}

impl Layer {
    const fn work(self) -> Work {
        match self {
            Self::Rooms => Work::Checks(check::Kind::Rooms),
            Self::Format => Work::Checks(check::Kind::Format),
            Self::Build => Work::Build,
            Self::Lint => Work::Checks(check::Kind::Lint),
            Self::Deny => Work::Checks(check::Kind::Deny),
            Self::Manifests => Work::Checks(check::Kind::Manifests),
            Self::Docs => Work::Checks(check::Kind::Docs),
            Self::Unit => Work::Unit,
            Self::Kernel | Self::Differential | Self::Lab | Self::Lifecycle | Self::Other => Work::Alone,
            Self::Cluster => Work::Cluster,
            Self::Faults => Work::Faults,
            Self::Vm => Work::Vm,
        }
    }

    /// What it needs on the machine; all that compile need more.
    const fn groups(self) -> &'static [Group] {
        match self {
            Self::Format | Self::Lint => &[Group::Lint],
            Self::Deny => &[Group::Deny],
            // The benchmark's quick run is a test of the lab.
            Self::Lab | Self::Other => &[Group::Lab, Group::Bench],
            Self::Differential | Self::Lifecycle | Self::Faults => &[Group::Lab],
            Self::Vm => &[Group::Vm],
            // What it needs it looks for itself: without a rig it needs nothing.
            Self::Rooms
            | Self::Build
            | Self::Manifests
            | Self::Cluster
            | Self::Docs
            | Self::Unit
            | Self::Kernel => &[],
        }
    }

    /// True if it builds the agent, and so the programs.
    const fn compiles(self) -> bool {
        !matches!(self, Self::Rooms | Self::Format | Self::Deny | Self::Manifests)
    }

    /// The layer of an integration test, by the first word of its name where its package has several kinds.
    fn of(target: &TestTarget) -> Self {
        match target.package.as_str() {
            TESTS => {}
            LAB => return Self::Lab,
            _ => return Self::Unit,
        }
        let first = target.name.split('_').next().unwrap_or_default();
        match first {
            "userspace" => Self::Unit,
            "kernel" => Self::Kernel,
            "differential" => Self::Differential,
            "lab" => Self::Lab,
            "lifecycle" => Self::Lifecycle,
            "cluster" => Self::Cluster,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value().map(|v| v.get_name().to_owned());
        f.pad(&name.unwrap_or_default())
    }
}

/// How a layer ended.
struct Report {
    layer: Layer,
    tally: Tally,
    took: Duration,
}

/// What the layers have in common.
struct Run {
    workspace: Workspace,
    targets: BTreeMap<Layer, BTreeSet<String>>,
    /// What could not be installed, and why.
    lacking: BTreeMap<Group, String>,
    failures: Vec<String>,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let all = Layer::value_variants();
    let layers: BTreeSet<Layer> =
        if args.layers.is_empty() { all } else { &args.layers }.iter().copied().collect();
    let lacking = set_up(&layers)?;
    let workspace = Workspace::load()?;
    let mut targets: BTreeMap<Layer, BTreeSet<String>> = BTreeMap::new();
    for target in workspace.test_targets() {
        targets.entry(Layer::of(&target)).or_default().insert(target.name);
    }
    let mut run = Run { workspace, targets, lacking, failures: Vec::new() };
    let mut reports = Vec::new();
    for layer in layers {
        sh::say(format_args!("---- {layer}"));
        let begin = Instant::now();
        let tally = run.layer(layer);
        reports.push(Report { layer, tally, took: begin.elapsed() });
    }
    Ok(close(&reports, &run.failures))
}

/// Installs what the layers need, before the first runs. Nothing goes without the eBPF toolchain; what else
/// cannot be had is returned, and concerns its layers only.
fn set_up(layers: &BTreeSet<Layer>) -> Result<BTreeMap<Group, String>> {
    if layers.iter().any(|l| l.compiles()) {
        setup::ensure(&[Group::Ebpf])?;
    }
    let groups: BTreeSet<Group> = layers.iter().flat_map(|l| l.groups()).copied().collect();
    let lacking = groups.into_iter().filter_map(|group| {
        let error = setup::ensure(&[group]).err()?;
        sh::say(format_args!("{error:#}"));
        Some((group, format!("{error:#}")))
    });
    Ok(lacking.collect())
}

/// In CI what cannot run has failed; elsewhere it was skipped.
fn is_ci() -> bool {
    std::env::var("CI").as_deref() == Ok("true")
}

impl Run {
    fn layer(&mut self, layer: Layer) -> Tally {
        if let Some(why) = layer.groups().iter().find_map(|group| self.lacking.get(group)) {
            if is_ci() {
                return self.failed(format!("{layer}: {why}"));
            }
            println!("skipped: {layer}: {why}");
            return Tally::SKIPPED;
        }
        match layer.work() {
            Work::Checks(kind) => self.checks(kind),
            Work::Build => self.build(),
            Work::Unit => self.unit(),
            Work::Alone => self.alone(layer),
            Work::Cluster => self.cluster(),
            Work::Faults => self.faults(),
            Work::Vm => self.vm(),
        }
    }

    fn failed(&mut self, what: impl fmt::Display) -> Tally {
        sh::say(format_args!("FAILED: {what}"));
        self.failures.push(what.to_string());
        Tally::FAILED
    }

    fn checks(&mut self, kind: check::Kind) -> Tally {
        let mut sum = Tally::default();
        for check in check::CHECKS.iter().filter(|c| c.kind == kind) {
            sum += match (check.run)() {
                Ok(Outcome::Passed) => Tally::PASSED,
                Ok(Outcome::Skipped(why)) => {
                    sh::say(format_args!("skipped: {}: {why}", check.name));
                    Tally::SKIPPED
                }
                Err(error) => self.failed(format_args!("{}: {error:#}", check.name)),
            };
        }
        sum
    }

    /// Everything, for release: what the tests start as programs of their own, then the tests.
    fn build(&mut self) -> Tally {
        for what in [&["build", "--bins"][..], &["test", "--no-run"]] {
            let mut command = sh::cargo();
            command.args(what).args(["--release", "--workspace"]).stdout(std::io::stderr());
            if let Err(error) = sh::run(&mut command) {
                return self.failed(format_args!("{error:#}"));
            }
        }
        Tally::PASSED
    }

    fn unit(&mut self) -> Tally {
        let names = self.targets.get(&Layer::Unit).cloned().unwrap_or_default();
        let mut sum = self.counted(Layer::Unit, test_command(&["--lib", "--bins"], &names));
        sum += self.counted(Layer::Unit, test_command(&["--doc"], &BTreeSet::new()));
        sum
    }

    fn alone(&mut self, layer: Layer) -> Tally {
        let names = self.targets.get(&layer).cloned().unwrap_or_default();
        if names.is_empty() {
            sh::say("no tests in this layer");
            return Tally::default();
        }
        let mut command = test_command(&[], &names);
        command.arg("--test-threads=1");
        self.counted(layer, command)
    }

    fn counted(&mut self, layer: Layer, command: Command) -> Tally {
        match count(command) {
            Ok((tally, failures)) => {
                self.failures.extend(failures.iter().map(|f| format!("{layer}: {f}")));
                tally
            }
            Err(error) => self.failed(format_args!("{layer}: {error:#}")),
        }
    }

    fn faults(&mut self) -> Tally {
        let tried = match mutants::some(FAULTS) {
            Ok(tried) => tried,
            Err(error) => return self.failed(format_args!("faults: {error:#}")),
        };
        let mut sum = Tally::default();
        for _ in tried.missed.len()..tried.faults {
            sum += Tally::PASSED;
        }
        for _ in tried.faults..FAULTS {
            println!("skipped: a fault that needs root to be noticed");
            sum += Tally::SKIPPED;
        }
        for name in tried.missed {
            sum += self.failed(format_args!("the fault {name}: nobody notices"));
        }
        sum
    }

    fn cluster(&mut self) -> Tally {
        match cluster_test::layer(&self.workspace) {
            Ok(Ok((tally, failures))) => {
                self.failures.extend(failures.iter().map(|f| format!("cluster: {f}")));
                tally
            }
            Ok(Err(why)) => {
                println!("skipped: cluster: {why}");
                Tally::SKIPPED
            }
            Err(error) => self.failed(format_args!("cluster: {error:#}")),
        }
    }

    fn vm(&mut self) -> Tally {
        match vm_test::run(&self.workspace, VM_KERNEL, &vm_test::Options::default()) {
            Ok(tally) => {
                if tally.failed > 0 {
                    self.failures.push(format!("vm: kernel {VM_KERNEL}: {tally}"));
                }
                tally
            }
            Err(error) => self.failed(format_args!("vm: kernel {VM_KERNEL}: {error:#}")),
        }
    }
}

/// Always the whole workspace, narrowed by the kind or name of target: with `--package` cargo would unify
/// features differently and compile everything again.
pub(crate) fn test_command(kinds: &[&str], names: &BTreeSet<String>) -> Command {
    let mut command = sh::cargo();
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]).args(kinds);
    for name in names {
        command.args(["--test", name]);
    }
    command.args(["--", "--show-output"]);
    command
}

/// Runs it, shows its output as it comes, and counts.
pub(crate) fn count(mut command: Command) -> Result<(Tally, Vec<String>)> {
    sh::say(sh::line(&command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{}`", sh::line(&command)))?;
    let mut reader = Reader::default();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut bytes = Vec::new();
        // By bytes: a test may print what is not UTF-8.
        while lines.read_until(b'\n', &mut bytes).context("reading what a test prints")? > 0 {
            let text = String::from_utf8_lossy(&bytes);
            let line = text.trim_end_matches(['\n', '\r']);
            match reader.line(line) {
                Show::Line => println!("{line}"),
                Show::Skip(skip) => println!("{skip}"),
                Show::Nothing => {}
            }
            bytes.clear();
        }
    }
    let status = child.wait().with_context(|| format!("waiting for `{}`", sh::line(&command)))?;
    Ok(reader.finish(status.success()))
}

/// The table, what failed, and the closing line.
fn close(reports: &[Report], failures: &[String]) -> ExitCode {
    let mut sum = Tally::default();
    println!("\n{:<14}{:>8}{:>8}{:>8}{:>10}", "layer", "passed", "failed", "skipped", "seconds");
    for Report { layer, tally, took } in reports {
        let Tally { passed, failed, skipped } = tally;
        println!("{layer:<14}{passed:>8}{failed:>8}{skipped:>8}{:>10.1}", took.as_secs_f64());
        sum += *tally;
    }
    if !failures.is_empty() {
        println!("\nfailed:");
    }
    for failure in failures {
        println!("  {failure}");
    }
    println!("\n{sum}");
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(package: &str, name: &str) -> TestTarget {
        TestTarget { package: package.into(), name: name.into() }
    }

    #[test]
    fn no_integration_test_is_left_out() {
        assert_eq!(Layer::of(&target(TESTS, "kernel")), Layer::Kernel);
        assert_eq!(Layer::of(&target(TESTS, "userspace")), Layer::Unit);
        assert_eq!(Layer::of(&target(TESTS, "lab_cases")), Layer::Lab);
        assert_eq!(Layer::of(&target(TESTS, "lifecycle")), Layer::Lifecycle);
        assert_eq!(Layer::of(&target(TESTS, "cluster")), Layer::Cluster);
        assert_eq!(Layer::of(&target(TESTS, "something_new")), Layer::Other);
        assert_eq!(Layer::of(&target(LAB, "reach")), Layer::Lab);
        assert_eq!(Layer::of(&target("portcullis-oracle", "lab_cases")), Layer::Unit);
    }

    #[test]
    fn integration_tests_are_named_one_by_one() {
        let names = BTreeSet::from(["kernel".to_owned()]);
        assert!(sh::line(&test_command(&[], &names)).ends_with("--test kernel -- --show-output"));
        let unit = sh::line(&test_command(&["--lib"], &BTreeSet::new()));
        assert!(unit.ends_with("--lib -- --show-output"));
    }

    #[test]
    fn layers_line_up_in_the_table() {
        assert_eq!(format!("{:<8}|", Layer::Vm), "vm      |");
    }
}
