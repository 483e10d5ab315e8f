//! How xtask starts other programs and tells what it does. Knows no verb.
//!
//! What xtask itself says goes to stderr, so that stdout holds the results of the program that was asked for.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

/// This machine lacks something: what, and the remedy. xtask exits with 3.
#[derive(Debug)]
pub(crate) struct Unfit(pub(crate) String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// One line of progress.
pub(crate) fn say(line: impl fmt::Display) {
    eprintln!("xtask: {line}");
}

/// True for the superuser.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Fails with [`Unfit`] for anyone but root.
pub(crate) fn need_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(Unfit(format!("{what} needs root: run as root (`sudo -E env \"PATH=$PATH\" cargo xtask ...`)"))
        .into())
}

/// Where `cargo install` puts binaries.
pub(crate) fn cargo_bin() -> PathBuf {
    let home = env::var_os("CARGO_INSTALL_ROOT").or_else(|| env::var_os("CARGO_HOME")).map(PathBuf::from);
    home.unwrap_or_else(|| {
        PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo")
    })
    .join("bin")
}

/// The search path for every program that xtask starts: cargo's own binaries (the bpf-linker of ours is there)
/// come first, the system's sbin directories last, which a plain `su` leaves out.
fn search_path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let all = [cargo_bin()].into_iter().chain(env::split_paths(&inherited)).chain(system);
    env::join_paths(all.filter(|p| !p.as_os_str().is_empty())).unwrap_or(inherited)
}

/// Where a program is, if it is anywhere on the search path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// A command with our search path and without what `cargo run` told about xtask itself.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The cargo that runs us, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace::root());
    command
}

/// The command as one would type it, without the directories of its program.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = [name].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs it to its end with our terminal; says it first.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    status_as(line(command), command)
}

/// The same, said in other words than its own, which are long.
pub(crate) fn status_as(words: impl fmt::Display, command: &mut Command) -> Result<ExitStatus> {
    say(words);
    command.status().with_context(|| format!("starting `{}`", line(command)))
}

/// Runs it to its end with our terminal; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    run_as(line(command), command)
}

/// The same, said in other words than its own, which are long.
pub(crate) fn run_as(words: impl fmt::Display, command: &mut Command) -> Result<()> {
    let status = status_as(words, command)?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// What it writes to stdout; anything but success is an error with what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting `{}`", line(command)))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` failed: {}: {}", line(command), out.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// True if it can be started and ends well; shows nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// A child's end as ours: its code, or 128 and its signal as a shell would say.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_typed() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args(["test", "--release"]);
        assert_eq!(line(&command), "cargo test --release");
    }

    #[test]
    fn programs_are_found_on_the_search_path_only() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
