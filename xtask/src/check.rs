//! `cargo xtask check`: format, lints, dependencies, rooms, manifests, documentation. Each check is one test to
//! `cargo xtask test`.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::manifests;
use crate::rooms;
use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::{self, Workspace};

#[derive(clap::Args)]
pub(crate) struct Args {}

/// How a check ended. What is wrong was shown while it ran, or comes as the error of [`Check::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// It could not be asked here, and why.
    Skipped(String),
}

/// Which of the layers of `cargo xtask test` it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rooms,
    Format,
    Lint,
    Deny,
    Manifests,
    Docs,
}

/// One check.
pub(crate) struct Check {
    pub(crate) kind: Kind,
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Result<Outcome>,
}

/// All of them. The rooms come first: they ask for a lock file that needs no change, which cargo's other verbs
/// would quietly make.
pub(crate) const CHECKS: &[Check] = &[
    Check { kind: Kind::Rooms, name: "rooms keep to their dependencies", run: rooms::check },
    Check {
        kind: Kind::Format,
        name: "format of the workspace",
        run: || passes(sh::cargo().args(["fmt", "--all", "--", "--check", "-l"])),
    },
    Check {
        kind: Kind::Format,
        name: "format of ebpf",
        run: || passes(sh::cargo().args(["fmt", "--manifest-path", EBPF, "--", "--check", "-l"])),
    },
    Check {
        kind: Kind::Format,
        name: "format of the coverage targets",
        run: || passes(sh::cargo().args(["fmt", "--manifest-path", COVERAGE, "--", "--check", "-l"])),
    },
    Check { kind: Kind::Lint, name: "clippy of the workspace", run: clippy },
    Check { kind: Kind::Lint, name: "clippy of ebpf", run: clippy_ebpf },
    Check { kind: Kind::Lint, name: "clippy of the coverage targets", run: clippy_coverage },
    Check {
        kind: Kind::Deny,
        name: "bans, licences and sources of the workspace",
        run: || deny("Cargo.toml"),
    },
    Check { kind: Kind::Deny, name: "bans, licences and sources of ebpf", run: || deny(EBPF) },
    Check { kind: Kind::Deny, name: "advisories", run: advisories },
    Check { kind: Kind::Manifests, name: "manifests are the chart's", run: manifests::check },
    Check { kind: Kind::Docs, name: "documentation", run: docs },
];

const EBPF: &str = "ebpf/Cargo.toml";
/// The fuzz targets that follow coverage, a workspace of their own.
const COVERAGE: &str = "tests/fuzz/Cargo.toml";

pub(crate) fn verb(_: &Args) -> Result<ExitCode> {
    setup::ensure(&[Group::Ebpf, Group::Lint, Group::Deny])?;
    let mut failed = 0;
    for check in CHECKS {
        if !check.report() {
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed", CHECKS.len());
    }
    Ok(ExitCode::SUCCESS)
}

impl Check {
    /// Runs it and says how it ended; false if it failed.
    fn report(&self) -> bool {
        match (self.run)() {
            Ok(Outcome::Passed) => sh::say(format_args!("{}: ok", self.name)),
            Ok(Outcome::Skipped(why)) => sh::say(format_args!("{}: skipped: {why}", self.name)),
            Err(error) => {
                sh::say(format_args!("{}: FAILED: {error:#}", self.name));
                return false;
            }
        }
        true
    }
}

fn passes(command: &mut Command) -> Result<Outcome> {
    sh::run(command).map(|()| Outcome::Passed)
}

/// In the release profile, as everything that is built, so that build scripts and macros compile once.
fn clippy() -> Result<Outcome> {
    let what = ["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    passes(sh::cargo().args(what))
}

/// They compile: who wants to run them gives the flags of their README.
fn clippy_coverage() -> Result<Outcome> {
    clippy_apart(COVERAGE)
}

/// For the host: the compiler that has a `core` for BPF comes without clippy. What is built meanwhile goes where
/// the workspace's does.
fn clippy_ebpf() -> Result<Outcome> {
    clippy_apart(EBPF)
}

/// A crate that is no member of the workspace.
fn clippy_apart(manifest: &str) -> Result<Outcome> {
    let mut command = sh::cargo();
    command.args(["clippy", "--release", "--locked", "--manifest-path", manifest, "--target-dir"]);
    command.arg(Workspace::load()?.target_dir()).args(["--", "--deny", "warnings"]);
    passes(&mut command)
}

fn docs() -> Result<Outcome> {
    let mut command = sh::cargo();
    command.args(["doc", "--release", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    passes(command.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn deny_command(manifest: &str) -> Result<Command> {
    if !setup::deny_installed() {
        bail!("cargo-deny is not installed: `cargo xtask setup deny` does it");
    }
    let mut command = sh::cargo();
    let root = workspace::root();
    command.args(["deny", "--log-level", "error", "--manifest-path"]).arg(root.join(manifest));
    command.arg("--config").arg(root.join("deny.toml")).arg("check");
    Ok(command)
}

fn deny(manifest: &str) -> Result<Outcome> {
    passes(deny_command(manifest)?.args(["bans", "licenses", "sources"]))
}

/// The advisories live in a repository of their own, which not every machine reaches.
fn advisories() -> Result<Outcome> {
    let mut command = deny_command("Cargo.toml")?;
    command.args(["advisories"]);
    match sh::output(&mut command) {
        Ok(_) => Ok(Outcome::Passed),
        Err(error) if is_unreachable(&error.to_string()) => {
            Ok(Outcome::Skipped("the advisory database cannot be reached from here".into()))
        }
        Err(error) => Err(error),
    }
}

fn is_unreachable(text: &str) -> bool {
    text.contains("failed to fetch advisory database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_fetch_is_unreachable() {
        assert!(is_unreachable("[ERROR] failed to fetch advisory database URL with cli: failed to clone"));
        assert!(!is_unreachable("error[vulnerability]: something, advisories FAILED"));
    }
}
