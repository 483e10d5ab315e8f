//! `portcullis-vmtest CASES.json`: what of portcullis a kernel decides, on the kernel that runs. Started by
//! `cargo xtask vm-test` in a machine that holds nothing else: no shell but busybox, no service, no pins.
//!
//! It loads the agent's own object, attaches it by the agent's own module, to cgroups too, follows a flow through it, and puts
//! every Cyclonus case to it; where the kernel has IPVS, it asks through Services of it. Says on its last line
//! `vmtest: N passed, N failed, N skipped`; exit 0, 1 (failed), 2 (usage).

mod attachment;
mod host;
mod ipvs;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use portcullis_agent::bpf::load::kernel_release;
use portcullis_oracle::cyclonus::{self, Step};
use portcullis_tests::kernel::{Loaded, Tally};
use portcullis_tests::{device, flow};

/// Differences of one step that are printed.
const PRINTED: usize = 3;

/// What has been tried.
#[derive(Debug)]
struct Checks {
    begin: Instant,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Checks {
    /// Says how a check ended, and counts it.
    fn note(&mut self, what: &str, result: &Result<String>) {
        let at = self.begin.elapsed().as_secs_f64();
        match result {
            Ok(found) => {
                self.passed += 1;
                println!("ok     {at:6.1} s  {what}: {found}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED {at:6.1} s  {what}: {error:#}");
            }
        }
    }

    /// Says why something was not tried, and counts it.
    fn skip(&mut self, what: &str, why: &str) {
        self.skipped += 1;
        println!("skipped: {what}: {why}");
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(cases), more) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: portcullis-vmtest CASES.json [ipvs]");
        return ExitCode::from(2);
    };
    let mut checks = Checks { begin: Instant::now(), passed: 0, failed: 0, skipped: 0 };
    if let Err(error) = all(Path::new(&cases), more.is_some_and(|word| word == "ipvs"), &mut checks) {
        checks.note("going on", &Err(error));
    }
    println!("vmtest: {} passed, {} failed, {} skipped", checks.passed, checks.failed, checks.skipped);
    if checks.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all(cases: &Path, with_ipvs: bool, checks: &mut Checks) -> Result<()> {
    let release = kernel_release()?;
    device::own_namespace()?;
    if with_ipvs && let Err(error) = ipvs::check(release, checks) {
        checks.note("Services through IPVS", &Err(error));
    }
    attachment::check(release, checks)?;
    let followed = flow::follow().map(|()| "refused, opened, established, with its ICMP errors".to_owned());
    checks.note("flows", &followed);
    cyclonus(cases, checks)
}

/// A check for each step of each case.
fn cyclonus(path: &Path, checks: &mut Checks) -> Result<()> {
    let steps = cyclonus::load_from(path).with_context(|| format!("reading {}", path.display()))?;
    let (mut loaded, mut packets) = (Loaded::default(), 0);
    let before = checks.failed;
    for step in &steps {
        let mut tally = Tally::default();
        loaded.step(step, &mut tally);
        packets += tally.packets;
        if tally.wrong.is_empty() {
            checks.passed += 1;
        } else {
            checks.note(&name(step), &Err(anyhow::anyhow!("{}", some(&tally))));
        }
    }
    let found = format!("{} of {} steps wrong, {packets} packets", checks.failed - before, steps.len());
    println!("       {:6.1} s  Cyclonus cases: {found}", checks.begin.elapsed().as_secs_f64());
    Ok(())
}

fn name(step: &Step) -> String {
    format!("case {} step {} ({:?}, {})", step.id, step.step, step.family, step.description)
}

fn some(tally: &Tally) -> String {
    let first: Vec<&str> = tally.wrong.iter().take(PRINTED).map(String::as_str).collect();
    format!("{} wrong: {}", tally.wrong.len(), first.join("; "))
}
