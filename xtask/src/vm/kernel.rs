//! Which kernel, and where it comes from: the newest package of a series that apt has today (point releases
//! vanish from the archive), unpacked below `target/vm` and kept there.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::setup::Apt;
use crate::sh::{self, Unfit};

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says it there.
    pub(crate) release: String,
    /// The image that boots.
    pub(crate) image: PathBuf,
    /// The tree of its modules.
    pub(crate) modules: PathBuf,
}

/// Suites of Debian by the series of their kernel, for a series that the machine's own suite has not. Any other
/// is looked for in the newest.
const SUITES: [(&str, &str); 3] = [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie")];
const NEWEST: &str = "sid";

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-amd64";

/// The newest kernel of a series (`6.1`), from `dir` or from apt.
pub(crate) fn fetch(series: &str, dir: &Path) -> Result<Kernel> {
    let cached = cached(series, dir);
    let Some(apt) = Apt::of_machine() else {
        let text = "this machine has no apt-get to fetch a kernel with: run this on Debian 12";
        return cached.ok_or_else(|| Unfit(text.into()).into());
    };
    if let Some(name) = newest(&apt.names(&prefix(series)), series) {
        if let Some(cached) = cached.as_ref().filter(|k| package(&k.release) == name) {
            return Kernel::open(dir, &cached.release);
        }
    } else if let Some(cached) = cached {
        // Lists that have never been fetched, or a machine without network: what is here serves.
        return Ok(cached);
    }
    match download(series, dir, &apt) {
        Err(error) => match cached {
            Some(kernel) => {
                sh::say(format_args!("{error:#}; going on with {}, which is here", kernel.release));
                Ok(kernel)
            }
            None => Err(error),
        },
        fetched => fetched,
    }
}

fn download(series: &str, dir: &Path, machine: &Apt) -> Result<Kernel> {
    machine.update()?;
    if let Some(name) = newest(&machine.names(&prefix(series)), series) {
        return unpack(machine, &name, dir);
    }
    let suite = SUITES.iter().find(|(s, _)| *s == series).map_or(NEWEST, |(_, suite)| suite);
    sh::say(format_args!("the machine's own sources have no kernel {series}; looking in {suite}"));
    let apt = Apt::of_suite(suite, &dir.join("apt").join(suite))?;
    apt.update()?;
    match newest(&apt.names(&prefix(series)), series) {
        Some(name) => unpack(&apt, &name, dir),
        None => bail!("neither this machine's suite nor {suite} has a kernel {series}"),
    }
}

fn unpack(apt: &Apt, package: &str, dir: &Path) -> Result<Kernel> {
    let release = release(package).ok_or_else(|| anyhow!("{package} is no kernel package"))?;
    let file = apt.download(package, &dir.join("packages"))?;
    // Beside first: what is half unpacked must not look whole.
    let (partial, whole) = (dir.join(format!("{package}.partial")), dir.join(package));
    for old in [&partial, &whole] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    let mut unpack = sh::command("dpkg");
    sh::run_as(format_args!("unpacking {package}"), unpack.arg("-x").arg(&file).arg(&partial))?;
    fs::rename(&partial, &whole).with_context(|| format!("renaming {}", partial.display()))?;
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    Kernel::open(dir, release)
}

impl Kernel {
    fn open(dir: &Path, release: &str) -> Result<Self> {
        let root = dir.join(package(release));
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        let modules = [root.join("lib/modules"), root.join("usr/lib/modules")];
        let modules = modules.iter().map(|m| m.join(release)).find(|m| m.is_dir());
        match modules {
            Some(modules) if image.is_file() => Ok(Self { release: release.to_owned(), image, modules }),
            Some(_) | None => bail!("{} is not an unpacked kernel: remove it", root.display()),
        }
    }
}

/// The newest of a series that is unpacked already.
fn cached(series: &str, dir: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(dir).ok()?;
    let names: Vec<String> =
        entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let name = newest(&names, series)?;
    Kernel::open(dir, release(&name)?).ok()
}

fn prefix(series: &str) -> String {
    format!("{PREFIX}{series}.")
}

fn package(release: &str) -> String {
    format!("{PREFIX}{release}")
}

fn release(package: &str) -> Option<&str> {
    package.strip_prefix(PREFIX).filter(|r| r.ends_with(SUFFIX))
}

/// The newest plain kernel among these packages: not a debug, cloud, realtime or unsigned one.
fn newest(names: &[String], series: &str) -> Option<String> {
    let prefix = prefix(series);
    let plain = |name: &&String| {
        let rest = name.strip_prefix(&prefix).and_then(|n| n.strip_suffix(SUFFIX));
        rest.is_some_and(|r| !r.split('-').any(|word| matches!(word, "cloud" | "rt")))
    };
    names.iter().filter(plain).max_by(|a, b| natural(a, b)).cloned()
}

/// Orders runs of digits by their value and all else by its bytes.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (a_run, a_rest) = run(a);
        let (b_run, b_rest) = run(b);
        let order = match (a_run.parse::<u64>(), b_run.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => a_run.cmp(b_run),
        };
        if order != Ordering::Equal || (a_rest.is_empty() && b_rest.is_empty()) {
            return order.then_with(|| a.len().cmp(&b.len()));
        }
        (a, b) = (a_rest, b_rest);
    }
}

/// The leading run of digits, or of anything else, and what follows it.
fn run(text: &str) -> (&str, &str) {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest_of(names: &[&str], series: &str) -> Option<String> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        newest(&names, series)
    }

    #[test]
    fn the_newest_is_by_number_not_by_letter() {
        let names = ["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64", "linux-image-6.1.0-47-amd64"];
        assert_eq!(newest_of(&names, "6.1").as_deref(), Some("linux-image-6.1.0-56-amd64"));
        let names = ["linux-image-6.12.95+deb12-amd64", "linux-image-6.12.117+deb12-amd64"];
        assert_eq!(newest_of(&names, "6.12").as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
    }

    #[test]
    fn other_series_and_flavours_are_passed_over() {
        let names = [
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-58-cloud-amd64",
            "linux-image-6.1.0-59-amd64-unsigned",
            "linux-image-6.1.0-60-amd64-dbg",
        ];
        assert_eq!(newest_of(&names, "6.1"), None);
    }

    #[test]
    fn the_release_is_what_uname_says() {
        assert_eq!(release("linux-image-6.1.0-56-amd64"), Some("6.1.0-56-amd64"));
        assert_eq!(release("linux-image-6.1.0-56-amd64.partial"), None);
    }

    #[test]
    fn equal_names_are_equal() {
        assert_eq!(natural("a1", "a1"), Ordering::Equal);
        assert_eq!(natural("a1", "a1b"), Ordering::Less);
    }
}
