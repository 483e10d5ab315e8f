//! `cargo xtask vm-test`: the same object on another kernel, in a virtual machine without KVM.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::setup::{self, Group};
use crate::sh;
use crate::test::tally::{self, Tally};
use crate::vm::{initramfs, kernel, qemu};
use crate::workspace::{self, Workspace};

/// The program that runs in the machine, and what it prints its closing line with.
const BINARY: &str = "portcullis-vmtest";
const WORD: &str = "vmtest";

/// The cases that it is given.
const CASES: &str = "tests/data/cyclonus-cases.json";

/// What asks it for Services of IPVS.
const IPVS: &str = "ipvs";

const DEFAULT_SECONDS: u64 = 600;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel's series; may be given more than once (tried: 5.10, 6.1, 6.12)
    #[arg(long = "kernel", value_name = "SERIES", default_value = "6.1")]
    kernels: Vec<String>,
    /// Seconds until the machine is ended
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SECONDS)]
    limit: u64,
    /// A program to run instead of the tests
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Ask through Services of IPVS first, with the whole agent's part of it: some minutes more
    #[arg(long)]
    ipvs: bool,
}

/// How a machine is run.
pub(crate) struct Options {
    limit: Duration,
    program: Option<PathBuf>,
    ipvs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { limit: Duration::from_secs(DEFAULT_SECONDS), program: None, ipvs: false }
    }
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let options =
        Options { limit: Duration::from_secs(args.limit), program: args.program.clone(), ipvs: args.ipvs };
    let mut sum = Tally::default();
    for series in &args.kernels {
        sum += run(&workspace, series, &options)?;
    }
    println!("{sum}");
    Ok(if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One machine of one kernel, from fetching the kernel to the program's closing line.
pub(crate) fn run(workspace: &Workspace, series: &str, options: &Options) -> Result<Tally> {
    setup::ensure(&[Group::Vm])?;
    let dir = workspace.target_dir().join("vm");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => build(workspace)?,
    };
    let kernel = kernel::fetch(series, &dir)?;
    let cases = workspace::root().join(CASES);
    let mut arguments = vec![argument()];
    if options.ipvs {
        arguments.push(IPVS.to_owned());
    }
    let content = initramfs::Content { program: &program, data: &[cases], arguments: &arguments };
    let archive = initramfs::write(&kernel, &content, &dir)?;
    sh::say(format_args!("booting {} (without KVM, at most {} s)", kernel.release, options.limit.as_secs()));
    let begin = Instant::now();
    let mut console = Console::default();
    let ended = qemu::boot(&kernel, &archive, options.limit, |line| {
        println!("  | {line}");
        console.line(line);
    });
    sh::say(format_args!("the machine ran {:.1} s", begin.elapsed().as_secs_f64()));
    ended?;
    console.close()
}

fn argument() -> String {
    let name = CASES.rsplit('/').next().unwrap_or(CASES);
    format!("/{name}")
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    if !workspace.has_binary(BINARY) {
        bail!("the workspace has no binary {BINARY}");
    }
    build::binaries(&[BINARY])?;
    Ok(workspace.binary(BINARY))
}

/// What the console said.
#[derive(Default)]
struct Console {
    begun: bool,
    last: Option<Tally>,
}

impl Console {
    fn line(&mut self, line: &str) {
        self.begun |= line == initramfs::BEGIN;
        if let Some(tally) = tally::plain(line, WORD) {
            self.last = Some(tally);
        }
    }

    fn close(self) -> Result<Tally> {
        match (self.last, self.begun) {
            (Some(tally), _) => Ok(tally),
            (None, true) => bail!("the program ended without a line `{WORD}: N passed, N failed`"),
            (None, false) => bail!("the kernel did not come as far as the program"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Tally> {
        let mut console = Console::default();
        for line in lines {
            console.line(line);
        }
        console.close()
    }

    #[test]
    fn the_last_closing_line_counts() {
        let lines =
            [initramfs::BEGIN, "vmtest: 1 passed, 0 failed", "vmtest: 5 passed, 1 failed", "==== ended"];
        assert_eq!(read(&lines).unwrap(), Tally { passed: 5, failed: 1, skipped: 0 });
    }

    #[test]
    fn silence_is_an_error_that_says_how_far_it_came() {
        assert!(read(&[initramfs::BEGIN]).unwrap_err().to_string().contains("program ended"));
        assert!(read(&["SeaBIOS"]).unwrap_err().to_string().contains("did not come as far"));
    }

    #[test]
    fn the_cases_are_found_at_the_root() {
        assert_eq!(argument(), "/cyclonus-cases.json");
    }
}
