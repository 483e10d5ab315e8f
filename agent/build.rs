//! Builds the kernel side with the eBPF toolchain and leaves the object for `include_bytes!`.
//!
//! Two toolchains have a `core` for `bpfel-unknown-none`: Debian's `rustc-web` (no build-std; the one that is
//! tested) and a dated nightly with `rust-src`. The nightly is used where `PORTCULLIS_EBPF_NIGHTLY` names it, or
//! where Debian's packages are not installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, bail};

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// What only Debian's package for BPF brings; other distributions have a cargo in the same place.
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const NIGHTLY: &str = "PORTCULLIS_EBPF_NIGHTLY";
/// Dated, because the undated names move to other LLVM versions; `cargo xtask setup` names the same.
const DEFAULT_NIGHTLY: &str = "nightly-2026-05-20";

fn main() -> anyhow::Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().context("the agent lies in the workspace")?;
    let ebpf = root.join("ebpf");
    for watched in ["ebpf/src", "ebpf/Cargo.toml", "ebpf/Cargo.lock", "common/src", "common/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed={NIGHTLY}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = out.join("ebpf");
    build(&ebpf, &target)?;
    let object = target.join("bpfel-unknown-none/release/portcullis");
    fs::copy(&object, out.join("portcullis.bpf.o")).with_context(|| format!("{}", object.display()))?;
    Ok(())
}

fn build(ebpf: &Path, target: &Path) -> anyhow::Result<()> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let flags =
        [&*format!("--cfg=bpf_target_arch=\"{arch}\""), "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\x1f");
    let mut command = match toolchain()? {
        Toolchain::Debian => {
            let mut command = Command::new(DEBIAN_CARGO);
            command.arg("build").env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Toolchain::Nightly(name) => {
            let mut command = Command::new("rustup");
            command.args(["run", &name, "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
            command
        }
    };
    command
        .args(["--release", "--locked", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(target)
        .current_dir(ebpf)
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    for variable in
        ["CARGO", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"]
    {
        command.env_remove(variable);
    }
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("the eBPF programs did not build ({status}): `cargo xtask setup` installs what they need");
    }
    Ok(())
}

enum Toolchain {
    Debian,
    Nightly(String),
}

fn toolchain() -> anyhow::Result<Toolchain> {
    if let Ok(name) = env::var(NIGHTLY) {
        return Ok(Toolchain::Nightly(name));
    }
    if [DEBIAN_CARGO, DEBIAN_RUSTC, DEBIAN_CORE].iter().all(|path| Path::new(path).exists()) {
        return Ok(Toolchain::Debian);
    }
    let starts = Command::new("rustup").args(["run", DEFAULT_NIGHTLY, "rustc", "--version"]).output();
    if starts.is_ok_and(|out| out.status.success()) {
        return Ok(Toolchain::Nightly(DEFAULT_NIGHTLY.to_owned()));
    }
    bail!("no compiler here has a core for BPF: `cargo xtask setup` installs one or says what to install");
}
