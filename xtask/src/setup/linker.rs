//! bpf-linker, built against the LLVM of the compiler that makes its input.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::sh;

/// Debian's packages that bpf-linker is built from.
pub(super) const PACKAGES: [&str; 6] =
    ["build-essential", "llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev", "libxml2-dev"];

/// How it is installed, for one who has to do it by hand.
pub(super) const COMMAND: &str =
    "cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22 --locked";

/// Its version and its LLVM, as cargo notes them; the default feature wants a newer LLVM than Debian 12 has.
const VERSION: &str = "0.13.0";
const FEATURE: &str = "llvm-22";

/// Where Debian puts that LLVM.
const LLVM: &str = "/usr/lib/llvm-22";

/// True if the right one is installed and starts.
pub(super) fn present() -> bool {
    let Some(program) = sh::find("bpf-linker") else {
        return false;
    };
    let notes = sh::cargo_bin().parent().and_then(|p| fs::read_to_string(p.join(".crates2.json")).ok());
    let version = sh::output(sh::command(program).arg("--version")).unwrap_or_default();
    fits(&version, notes.as_deref().unwrap_or_default())
}

/// True if what it is linked with is installed.
pub(super) fn llvm_present() -> bool {
    sh::find("llvm-config-22").is_some() || Path::new(LLVM).join("bin/llvm-config").exists()
}

fn fits(version: &str, notes: &str) -> bool {
    if version.trim() != format!("bpf-linker {VERSION}") {
        return false;
    }
    let notes: Value = serde_json::from_str(notes).unwrap_or_default();
    let installs = notes.get("installs").and_then(Value::as_object);
    let entry = installs.and_then(|i| i.iter().find(|(name, _)| name.starts_with("bpf-linker ")));
    // One that came by another way than cargo is taken at its word.
    entry.is_none_or(|(_, how)| {
        crate::workspace::array(how, "features").iter().any(|f| f.as_str() == Some(FEATURE))
    })
}

/// Builds and installs it: about a minute on two cores.
pub(super) fn install() -> Result<()> {
    sh::say(format_args!("building bpf-linker {VERSION} against LLVM 22: about a minute on two cores"));
    let mut command = sh::cargo();
    command.args(COMMAND.split(' ').skip(1)).arg("--force");
    if Path::new(LLVM).exists() {
        let path = command_path(LLVM);
        command.env("PATH", path).env("LLVM_PREFIX", LLVM);
    }
    sh::run(&mut command)
}

fn command_path(llvm: &str) -> std::ffi::OsString {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let first = [Path::new(llvm).join("bin")];
    std::env::join_paths(first.into_iter().chain(std::env::split_paths(&inherited))).unwrap_or(inherited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_llvm_must_fit() {
        let noted = |feature: &str| {
            format!(r#"{{"installs":{{"bpf-linker 0.13.0 (registry)":{{"features":["{feature}"]}}}}}}"#)
        };
        assert!(fits("bpf-linker 0.13.0\n", &noted("llvm-22")));
        assert!(!fits("bpf-linker 0.13.0\n", &noted("llvm-23")));
        assert!(!fits("bpf-linker 0.9.15\n", &noted("llvm-22")));
        assert!(!fits("", ""));
        assert!(fits("bpf-linker 0.13.0\n", ""), "installed by other means than cargo");
    }
}
