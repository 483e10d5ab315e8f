//! `cargo xtask setup`: what building and testing need on this machine, detected, and installed where missing.
//!
//! Debian 12 is the distribution that this installs on by itself, with apt and `cargo install` from the
//! registries that the machine already uses. Anywhere else it says what to install and exits with 3. When all
//! is there it looks at a few files and says nothing.

mod apt;
mod linker;
mod lint;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::sh::{self, Unfit};

pub(crate) use apt::Apt;
pub(crate) use lint::deny_installed;

/// What a verb may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Group {
    /// Compiling and linking for the kernel: Rust with a `core` for BPF, bpf-linker and its LLVM, bpftool
    Ebpf,
    /// Pods as network namespaces
    Lab,
    /// Virtual machines of other kernels
    Vm,
    /// rustfmt, clippy
    Lint,
    /// cargo-deny
    Deny,
    /// What the benchmark compares with: iptables, nftables
    Bench,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to set up; all of it where nothing is named
    #[arg(value_enum)]
    groups: Vec<Group>,
}

/// Something that has to be on the machine.
struct Need {
    group: Group,
    what: &'static str,
    /// Debian's packages that bring it.
    packages: &'static [&'static str],
    present: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        group: Group::Ebpf,
        what: "a C compiler",
        packages: &["build-essential"],
        present: || sh::find("cc").is_some(),
    },
    Need {
        group: Group::Ebpf,
        what: "Rust with a precompiled core for bpfel-unknown-none",
        packages: &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
        present: has_bpf_core,
    },
    Need {
        group: Group::Ebpf,
        what: "bpftool",
        packages: &["bpftool"],
        present: || sh::find("bpftool").is_some(),
    },
    Need {
        group: Group::Lint,
        what: "a C++ compiler, for libFuzzer",
        packages: &["build-essential"],
        present: || sh::find("c++").is_some(),
    },
    Need { group: Group::Lab, what: "ip", packages: &["iproute2"], present: || sh::find("ip").is_some() },
    Need { group: Group::Lab, what: "nft", packages: &["nftables"], present: || sh::find("nft").is_some() },
    Need {
        group: Group::Vm,
        what: "qemu-system-x86_64",
        packages: &["qemu-system-x86"],
        present: || sh::find("qemu-system-x86_64").is_some(),
    },
    Need {
        group: Group::Vm,
        what: "a static busybox",
        packages: &["busybox-static"],
        present: || sh::find("busybox").is_some_and(|path| is_static(&path)),
    },
    Need {
        group: Group::Bench,
        what: "iptables-restore",
        packages: &["iptables"],
        present: || sh::find("iptables-restore").is_some(),
    },
    Need { group: Group::Bench, what: "nft", packages: &["nftables"], present: || sh::find("nft").is_some() },
    Need { group: Group::Vm, what: "cpio", packages: &["cpio"], present: || sh::find("cpio").is_some() },
    Need { group: Group::Vm, what: "xz", packages: &["xz-utils"], present: || sh::find("xz").is_some() },
];

/// The compiler that has a `core` for BPF with the LLVM that bpf-linker is built against, where Debian's
/// packages are not to be had. Dated, because the undated names move to other LLVM versions.
const NIGHTLY: &str = "nightly-2026-05-20";

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let all = Group::value_variants();
    let groups = if args.groups.is_empty() { all } else { &args.groups };
    ensure(groups)?;
    sh::say("set up: nothing is missing");
    Ok(ExitCode::SUCCESS)
}

/// Installs what these groups lack; quick where nothing does.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|n| groups.contains(&n.group) && !(n.present)()).collect();
    let linker = groups.contains(&Group::Ebpf) && !linker::present();
    let mut packages: BTreeSet<&str> = missing.iter().flat_map(|n| n.packages).copied().collect();
    if linker {
        packages.extend(linker::PACKAGES);
    }
    if !packages.is_empty() {
        install(&missing, linker, &packages)?;
    }
    if linker {
        linker::install()?;
    }
    if groups.contains(&Group::Lint) {
        lint::components()?;
    }
    if groups.contains(&Group::Deny) {
        lint::deny()?;
    }
    Ok(())
}

fn install(missing: &[&Need], linker: bool, packages: &BTreeSet<&str>) -> Result<()> {
    let mut what: Vec<&str> = missing.iter().map(|n| n.what).collect();
    if linker {
        what.push("what bpf-linker is built from");
    }
    sh::say(format_args!("missing here: {}", what.join(", ")));
    let remedy = || {
        let ebpf = linker || missing.iter().any(|n| n.group == Group::Ebpf);
        remedy(packages, ebpf)
    };
    let Some(apt) = Apt::of_machine() else {
        if missing.is_empty() && linker::llvm_present() {
            return Ok(());
        }
        return Err(Unfit(format!("this machine has no apt-get. {}", remedy())).into());
    };
    let absent = apt.without_candidate(packages)?;
    if !absent.is_empty() {
        let absent = absent.join(" ");
        return Err(Unfit(format!("apt does not know: {absent}. {}", remedy())).into());
    }
    apt.install(packages)?;
    let still: Vec<&str> = missing.iter().filter(|n| !(n.present)()).map(|n| n.what).collect();
    if still.is_empty() {
        return Ok(());
    }
    Err(Unfit(format!("installed {packages:?}, and yet missing: {}", still.join(", "))).into())
}

/// What to install by hand, precisely.
fn remedy(packages: &BTreeSet<&str>, ebpf: bool) -> String {
    let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
    let mut text = format!("Install what these packages of Debian 12 bring: {list}");
    if ebpf {
        text +=
            "\nWhere rustc-web is not to be had, rustup serves as well; LLVM 22 comes from the distribution:";
        text += "\n  rustup toolchain install ";
        text += NIGHTLY;
        text += " --profile minimal --component rust-src\n  PATH=$LLVM_22/bin:$PATH LLVM_PREFIX=$LLVM_22 ";
        text += linker::COMMAND;
        text += "\n(another nightly does only if its `rustc -vV` says LLVM 22)";
    }
    text
}

/// True if Debian's compiler for BPF is here, or the dated nightly that stands in for it.
fn has_bpf_core() -> bool {
    let debian = Path::new("/usr/bin/rustc").exists()
        && Path::new("/usr/bin/cargo").exists()
        && has_file("/usr/lib/rustlib/bpfel-unknown-none/lib".as_ref(), "libcore-");
    debian || nightly_has_sources()
}

fn nightly_has_sources() -> bool {
    let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let Some(home) = home.or_else(|| sh::cargo_bin().parent()?.parent().map(|p| p.join(".rustup"))) else {
        return false;
    };
    let Ok(toolchains) = fs::read_dir(home.join("toolchains")) else {
        return false;
    };
    toolchains
        .filter_map(Result::ok)
        .filter(|t| t.file_name().to_string_lossy().starts_with(NIGHTLY))
        .any(|t| t.path().join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

/// True for a program without a loader, which a machine without libraries can run.
pub(crate) fn is_static(program: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(program).and_then(|f| f.take(4096).read_to_end(&mut head));
    read.is_ok() && !head.windows(9).any(|w| w == b"/ld-linux")
}

fn has_file(dir: &Path, prefix: &str) -> bool {
    fs::read_dir(dir)
        .is_ok_and(|d| d.filter_map(Result::ok).any(|e| e.file_name().to_string_lossy().starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_every_package_and_the_other_route() {
        let text = remedy(&BTreeSet::from(["rustc-web", "cpio"]), true);
        for word in ["rustc-web", "cpio", NIGHTLY, "rust-src", "bpf-linker"] {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
        assert!(!remedy(&BTreeSet::from(["cpio"]), false).contains("nightly"));
    }

    #[test]
    fn every_need_can_be_met() {
        assert!(NEEDS.iter().all(|n| !n.packages.is_empty()));
    }
}
