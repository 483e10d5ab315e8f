//! `cargo xtask mutants`: puts one fault at a time into a copy of the tree and asks the tests that should notice. A fault
//! that no test notices, or whose place is no longer in the sources, is a failure.
//!
//! The copy and what is built from it lie in `target/mutants`: an agent with a fault never gets where anyone starts one.

mod faults;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::{Workspace, root};
use faults::{FAULTS, Fault, Tests};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these, by name
    names: Vec<String>,
    /// Only so many, chosen by the seed
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Which ones `--count` chooses; by default the day's
    #[arg(long, value_name = "N", requires = "count")]
    seed: Option<u64>,
    /// Print them, and what notices each
    #[arg(long)]
    list: bool,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let faults = chosen(args)?;
    if args.list {
        for fault in faults {
            println!("{:<28} {:<7} {:<34} {}", fault.name, fault.tests.layer(), fault.file, fault.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let tried = run(&faults)?;
    Ok(if tried.missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of some faults.
pub(crate) struct Tried {
    /// How many there were.
    pub(crate) faults: usize,
    /// Names of those that nobody noticed.
    pub(crate) missed: Vec<String>,
}

/// So many of them, others every day; without root of those that need none.
pub(crate) fn some(count: usize) -> Result<Tried> {
    let all = picked(count, today());
    let faults: Vec<&Fault> =
        all.into_iter().filter(|fault| sh::is_root() || !fault.tests.needs_root()).collect();
    run(&faults)
}

fn today() -> u64 {
    const DAY: u64 = 86_400;
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / DAY)
}

fn picked(count: usize, seed: u64) -> Vec<&'static Fault> {
    sh::say(format_args!("faults of seed {seed}: `cargo xtask mutants --count {count} --seed {seed}`"));
    // One window behind the other: in as many days as there are faults each has been tried.
    let start = usize::try_from(seed).unwrap_or(0).wrapping_mul(count);
    (0..count.min(FAULTS.len())).filter_map(|n| FAULTS.get(start.wrapping_add(n) % FAULTS.len())).collect()
}

fn chosen(args: &Args) -> Result<Vec<&'static Fault>> {
    if let Some(unknown) = args.names.iter().find(|name| FAULTS.iter().all(|fault| fault.name != **name)) {
        bail!("{unknown} is no fault: `cargo xtask mutants --list` shows them");
    }
    Ok(match args.count {
        Some(count) => picked(count, args.seed.unwrap_or_else(today)),
        None if args.names.is_empty() => FAULTS.iter().collect(),
        None => FAULTS.iter().filter(|fault| args.names.iter().any(|name| name == fault.name)).collect(),
    })
}

/// Puts them in one by one.
fn run(faults: &[&Fault]) -> Result<Tried> {
    if faults.iter().any(|fault| fault.tests.needs_root()) {
        sh::need_root("loading eBPF programs with a fault in them")?;
        setup::ensure(&[Group::Ebpf, Group::Lab])?;
    }
    let begin = Instant::now();
    let copy = Copy::make(&Workspace::load()?.target_dir())?;
    // First without a fault: what fails anyway notices nothing. Each set of tests once.
    let mut sound: BTreeSet<Tests> = BTreeSet::new();
    let mut missed = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        if sound.insert(fault.tests) {
            sh::say(format_args!("without a fault: {}", fault.tests));
            if !copy.passes(fault.tests)?.passes {
                bail!("{} fails without a fault", fault.tests);
            }
        }
        let start = Instant::now();
        let told = match copy.with(fault) {
            Ok(Ended { passes: false, failed }) => format!("noticed by {failed}"),
            Ok(Ended { passes: true, .. }) => {
                missed.push(fault.name.to_owned());
                format!("NOT NOTICED by {}", fault.tests)
            }
            Err(error) => {
                missed.push(fault.name.to_owned());
                format!("NOT TRIED: {error:#}")
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        println!("{:>2}/{} {:<28} {seconds:>5.1} s  {told}", number + 1, faults.len(), fault.name);
    }
    let noticed = faults.len() - missed.len();
    println!("{noticed} of {} faults noticed, {:.0} s", faults.len(), begin.elapsed().as_secs_f64());
    Ok(Tried { faults: faults.len(), missed })
}

/// How tests ended.
struct Ended {
    passes: bool,
    /// The first that failed.
    failed: String,
}

/// A copy of the tree that may have faults.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Copies what git knows, and takes what is built of other crates along.
    fn make(target: &Path) -> Result<Self> {
        let home = target.join("mutants");
        let copy = Self { tree: home.join("tree"), target: home.join("target") };
        let listed = sh::output(sh::command("git").current_dir(root()).args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        for name in listed.lines() {
            let (from, to) = (root().join(name), copy.tree.join(name));
            // One that is gone and not yet committed so.
            let Ok(bytes) = fs::read(&from) else { continue };
            // What is as it was keeps its time, so that cargo builds it once.
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            }
            fs::write(&to, bytes).with_context(|| format!("writing {}", to.display()))?;
        }
        if !copy.target.join("debug").exists() {
            for part in ["deps", "build", ".fingerprint"] {
                let (from, to) = (target.join("debug").join(part), copy.target.join("debug"));
                fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
                if from.exists() {
                    // By links: nothing is written to these files, cargo makes new ones.
                    sh::run_as(
                        format_args!("taking along {part}"),
                        sh::command("cp").args(["-al"]).arg(&from).arg(&to),
                    )?;
                }
            }
        }
        Ok(copy)
    }

    /// Runs tests with a fault, which is taken out again.
    fn with(&self, fault: &Fault) -> Result<Ended> {
        let path = self.tree.join(fault.file);
        let sound = fs::read_to_string(&path).with_context(|| format!("reading {}", fault.file))?;
        let places = sound.matches(fault.from).count();
        if places != 1 {
            bail!("{}: the fault's place is there {places} times, not once: mend faults.rs", fault.file);
        }
        fs::write(&path, sound.replacen(fault.from, fault.to, 1))
            .with_context(|| format!("writing {}", fault.file))?;
        let ended = self.passes(fault.tests);
        fs::write(&path, sound).with_context(|| format!("writing {}", fault.file))?;
        ended
    }

    fn passes(&self, tests: Tests) -> Result<Ended> {
        for what in tests.built() {
            let mut build = self.cargo();
            build.args(what).stdout(Stdio::null()).stderr(Stdio::piped());
            let out = build.output().with_context(|| format!("starting `{}`", sh::line(&build)))?;
            if !out.status.success() {
                let text = String::from_utf8_lossy(&out.stderr);
                let error = text.lines().find(|line| line.starts_with("error")).unwrap_or("it says nothing");
                bail!("`{}` fails: {error}", sh::line(&build));
            }
        }
        let mut command = self.cargo();
        command.args(tests.run()).stdin(Stdio::null()).stderr(Stdio::null());
        let out = command.output().with_context(|| format!("starting `{}`", sh::line(&command)))?;
        let text = String::from_utf8_lossy(&out.stdout);
        let failed = text.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
        if out.status.success() && !text.contains(" passed;") {
            bail!("`{}` ran no test", sh::line(&command));
        }
        if out.status.success()
            && text.lines().filter(|line| line.contains(" 0 passed;")).count()
                == text.lines().filter(|line| line.contains(" passed;")).count()
        {
            bail!("`{}` ran no test", sh::line(&command));
        }
        let failed = failed.unwrap_or("a test that ended early").to_owned();
        Ok(Ended { passes: out.status.success(), failed })
    }

    fn cargo(&self) -> Command {
        let mut command = sh::cargo();
        // What a test prints when it fails has no reader here.
        command
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUST_BACKTRACE", "0")
            .env("CARGO_TERM_COLOR", "never");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_faults_place_is_there_once() {
        let is_there = |fault: &&Fault| {
            let text = fs::read_to_string(root().join(fault.file)).unwrap();
            text.matches(fault.from).count() == 1 && fault.from != fault.to
        };
        let gone: Vec<&str> =
            FAULTS.iter().filter(|fault| !is_there(fault)).map(|fault| fault.name).collect();
        assert!(gone.is_empty(), "mend faults.rs: {gone:?}");
    }

    #[test]
    fn the_days_visit_every_fault() {
        let days = u64::try_from(FAULTS.len()).unwrap();
        let seen: BTreeSet<&str> = (0..days).flat_map(|day| picked(3, day)).map(|fault| fault.name).collect();
        assert_eq!(seen.len(), FAULTS.len());
    }

    #[test]
    fn names_are_names_of_one() {
        let names: BTreeSet<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
    }
}
