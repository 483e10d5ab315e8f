//! Builds the kernel side with the eBPF toolchain and leaves the object for `include_bytes!`.
//!
//! Two toolchains have a `core` for `bpfel-unknown-none`: Debian's `rustc-web` (no build-std; the one that is
//! tested) and a dated nightly with `rust-src`. The nightly is used where `PORTCULLIS_EBPF_NIGHTLY` names it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, bail};

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const NIGHTLY: &str = "PORTCULLIS_EBPF_NIGHTLY";

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
    let mut command = if let Ok(toolchain) = env::var(NIGHTLY) {
        let mut command = Command::new("rustup");
        command.args(["run", &toolchain, "cargo", "build", "-Zbuild-std=core"]);
        command.env_remove("RUSTC");
        command
    } else {
        if !Path::new(DEBIAN_CARGO).exists() {
            bail!("{DEBIAN_CARGO} is missing: run `cargo xtask setup`, or name a nightly in {NIGHTLY}");
        }
        let mut command = Command::new(DEBIAN_CARGO);
        command.arg("build").env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        command
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
