//! Debian's package manager: the machine's own, or one with sources and state of its own for the packages of
//! another suite. Nothing here names an archive: they are the machine's.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// apt with its options.
pub(crate) struct Apt {
    options: Vec<String>,
    updated: Cell<bool>,
}

impl Apt {
    /// The machine's apt; none where there is no `apt-get`.
    pub(crate) fn of_machine() -> Option<Self> {
        sh::find("apt-get").map(|_| Self { options: Vec::new(), updated: Cell::new(false) })
    }

    /// An apt for another suite, with its sources, lists and cache below `dir`: the machine's own sources with
    /// the name of their suite rewritten. The machine's apt is not touched.
    pub(crate) fn of_suite(suite: &str, dir: &Path) -> Result<Self> {
        let own = own_suite()?;
        let parts = dir.join("sources.list.d");
        for sub in [&parts, &dir.join("lists/partial"), &dir.join("cache/archives/partial")] {
            fs::create_dir_all(sub).with_context(|| format!("creating {}", sub.display()))?;
        }
        for (name, text) in own_sources()? {
            let path = parts.join(name);
            fs::write(&path, text.replace(&own, suite))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        let options = [
            ("Dir::Etc::SourceList", PathBuf::from("/dev/null")),
            ("Dir::Etc::SourceParts", parts),
            ("Dir::State::Lists", dir.join("lists")),
            ("Dir::Cache", dir.join("cache")),
        ];
        let mut options: Vec<String> =
            options.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
        // A suite that is no longer maintained keeps its last, by now outdated, signature.
        options.push("Acquire::Check-Valid-Until=false".into());
        // Directories of ours are not open to the user that apt would download as.
        options.push("APT::Sandbox::User=root".into());
        Ok(Self { options, updated: Cell::new(false) })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// `apt-get update`, once in the life of this process.
    pub(crate) fn update(&self) -> Result<()> {
        if self.updated.replace(true) {
            return Ok(());
        }
        if self.options.is_empty() {
            sh::need_root("apt-get update")?;
        }
        let mut command = self.command("apt-get");
        command.args(["-qq", "update"]).stdout(std::io::stderr());
        let status = sh::status_as("apt-get update", &mut command)?;
        if !status.success() {
            // One unreachable source of several is no reason to stop: what it would bring shows itself as missing.
            sh::say(format_args!("apt-get update: {status}; going on with the lists that are here"));
        }
        Ok(())
    }

    /// Those of the packages that no source has, after an update.
    pub(crate) fn without_candidate(&self, packages: &BTreeSet<&str>) -> Result<Vec<String>> {
        self.update()?;
        let text = sh::output(self.command("apt-cache").arg("policy").args(packages))?;
        let known = candidates(&text);
        Ok(packages.iter().filter(|p| !known.contains(**p)).map(|p| (*p).to_owned()).collect())
    }

    /// Names of packages that begin so, as the lists here have them.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let text = sh::output(self.command("apt-cache").args(["pkgnames", prefix])).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Installs packages without what they merely recommend.
    pub(crate) fn install(&self, packages: &BTreeSet<&str>) -> Result<()> {
        sh::need_root("installing packages")?;
        let mut command = self.command("apt-get");
        command.args(["-qq", "-y", "--no-install-recommends"]);
        command.args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=600", "install"]).args(packages);
        // Results own stdout; dpkg's progress joins ours.
        command.stdout(std::io::stderr());
        let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
        sh::run_as(format_args!("apt-get install {list}"), &mut command)
    }

    /// Downloads a package into a directory and returns the file.
    pub(crate) fn download(&self, package: &str, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let unsandboxed = ["-o", "APT::Sandbox::User=root"];
        let mut command = self.command("apt-get");
        command
            .current_dir(dir)
            .args(unsandboxed)
            .args(["-qq", "download", package])
            .stdout(std::io::stderr());
        sh::run_as(format_args!("apt-get download {package}"), &mut command)?;
        let prefix = format!("{package}_");
        let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
        let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        files.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)));
        files.sort();
        files.pop().with_context(|| format!("apt-get downloaded no {package}"))
    }
}

/// Packages that `apt-cache policy` has a candidate for.
fn candidates(policy: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let mut package = "";
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|n| !n.starts_with(' ')) {
            package = name;
        } else if line.trim().strip_prefix("Candidate: ").is_some_and(|c| c != "(none)") {
            known.insert(package.to_owned());
        }
    }
    known
}

/// The suite of this machine, as its sources name it.
fn own_suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    match codename(&text) {
        Some(name) => Ok(name),
        None => bail!("/etc/os-release names no VERSION_CODENAME, so no suite can be put in its place"),
    }
}

fn codename(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned()).filter(|v| !v.is_empty())
}

/// The machine's sources, by file name.
fn own_sources() -> Result<Vec<(String, String)>> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        paths.extend(dir.filter_map(Result::ok).map(|e| e.path()));
    }
    let mut sources = Vec::new();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "list" || e == "sources")) {
        if let (Ok(text), Some(name)) = (fs::read_to_string(path), path.file_name()) {
            sources.push((name.to_string_lossy().into_owned(), text));
        }
    }
    if sources.is_empty() {
        bail!("no sources in /etc/apt");
    }
    sources.sort();
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_without_candidate_are_not_known() {
        let policy = "cpio:\n  Installed: (none)\n  Candidate: 2.13\n  Version table:\n     2.13 500\n\
                      gone:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), BTreeSet::from(["cpio".to_owned()]));
    }

    #[test]
    fn the_codename_may_be_quoted_or_absent() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n").as_deref(), Some("noble"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
