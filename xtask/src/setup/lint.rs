//! rustfmt, clippy and cargo-deny.

use anyhow::{Result, bail};

use crate::sh::{self, Unfit};

/// The cargo-deny that deny.toml is written for.
const DENY_VERSION: &str = "0.20.2";

/// True if cargo-deny is here, in whatever version.
pub(crate) fn deny_installed() -> bool {
    sh::find("cargo-deny").is_some()
}

/// rustfmt and clippy, of the toolchain that runs us.
pub(super) fn components() -> Result<()> {
    let missing: Vec<&str> = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, verb)| !sh::succeeds(sh::cargo().args([*verb, "--version"])))
        .map(|(component, _)| component)
        .collect();
    if !missing.is_empty() {
        let list = missing.join(" ");
        if sh::find("rustup").is_none() {
            let text = format!("this toolchain has no {list}, and there is no rustup to add it: install it");
            return Err(Unfit(text).into());
        }
        sh::run(sh::command("rustup").args(["component", "add"]).args(&missing))?;
    }
    Ok(())
}

/// cargo-deny.
pub(super) fn deny() -> Result<()> {
    if deny_installed() { Ok(()) } else { install_deny() }
}

/// Unoptimised: the whole tree is checked in well under a second either way, and the build is what costs.
fn install_deny() -> Result<()> {
    sh::say(format_args!("building cargo-deny {DENY_VERSION}: about two minutes on two cores, once"));
    let mut command = sh::cargo();
    command.args(["install", "cargo-deny", "--version", DENY_VERSION, "--locked", "--no-default-features"]);
    for (setting, value) in [("OPT_LEVEL", "0"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "0")] {
        command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    if !sh::status(&mut command)?.success() {
        bail!("cargo-deny could not be installed; without it the dependency checks cannot run");
    }
    Ok(())
}
