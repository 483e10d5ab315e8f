//! `cargo xtask image`: the agent as an image made from nothing, as an OCI layout and as an archive of one. It
//! needs no daemon and no registry: the agent is linked statically, and the image holds it, the CNI plugin that it puts
//! on nodes, their bill of materials and their licence.
//!
//! The same tree at the same place gives the same bytes: times are fixed, order is fixed, and the compiler is told
//! to forget where the sources lie.

pub(crate) mod oci;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::{self, Workspace};
use oci::{Entry, Image, Meta};

/// What manifests call the image, less its tag. Not a name of a registry: whoever has one pushes there and says so
/// in the chart's values.
pub(crate) const REPOSITORY: &str = "localhost/portcullis";

/// Where the image holds its bill of materials.
const SBOM: &str = "usr/share/doc/portcullis/sbom.cdx.json";
const LICENCE: &str = "usr/share/doc/portcullis/LICENSE";
const PROGRAM: &str = "usr/bin/portcullis";
/// `portcullis cni install` looks for it beside itself.
const PLUGIN: &str = "usr/bin/portcullis-cni";

const AGENT: &str = "portcullis-agent";
const BINARY: &str = "portcullis";
const PLUGIN_BINARY: &str = "portcullis-cni";
const EBPF: &str = "ebpf/Cargo.toml";
const EBPF_PACKAGE: &str = "portcullis-ebpf";

/// What images can be made for. arm64 wants a cross-linker and a static libc of that architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arch {
    Amd64,
}

impl Arch {
    const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
        }
    }

    const fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its architecture
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,
    /// A static program to put in, instead of the agent that is built for this; `portcullis-cni` is taken from beside it
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// What was written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The archive, for `ctr images import` and `kind load image-archive`.
    pub(crate) archive: PathBuf,
    /// The image's full name.
    pub(crate) name: String,
    /// The digest of its manifest.
    pub(crate) digest: String,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => link(&workspace, args.arch)?,
    };
    let written = write(&workspace, args.arch, &program)?;
    sh::say(format_args!("{} {}", written.name, written.digest));
    println!("{}", written.archive.display());
    Ok(ExitCode::SUCCESS)
}

/// The image that a cluster of this machine's architecture runs.
pub(crate) fn build(workspace: &Workspace) -> Result<Written> {
    let arch = Arch::Amd64;
    write(workspace, arch, &link(workspace, arch)?)
}

fn write(workspace: &Workspace, arch: Arch, program: &Path) -> Result<Written> {
    // The plugin runs on nodes, whose C library may be any.
    let plugin = &program.with_file_name(PLUGIN_BINARY);
    for binary in [program, plugin] {
        ensure!(
            setup::is_static(binary),
            "{} asks for a loader, or is not there: the image has no loader",
            binary.display()
        );
    }
    let version = workspace.version(AGENT).context("the workspace has no agent")?;
    let name = format!("{REPOSITORY}:{version}");
    let licence = workspace::root().join("LICENSE");
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let entries = [
        Entry { path: PROGRAM, mode: 0o755, content: read(program)? },
        Entry { path: PLUGIN, mode: 0o755, content: read(plugin)? },
        Entry { path: LICENCE, mode: 0o644, content: read(&licence)? },
        Entry { path: SBOM, mode: 0o644, content: materials(arch, &version)? },
    ];
    let meta = Meta {
        arch: arch.name().to_owned(),
        name: name.clone(),
        tag: version.clone(),
        entrypoint: format!("/{PROGRAM}"),
        created: commit("%cd"),
        labels: labels(&version),
    };
    let image = Image::new(&entries, &meta)?;
    let dir = workspace.target_dir().join("image");
    let layout = dir.join(format!("oci-{}", arch.name()));
    let archive = dir.join(format!("{BINARY}-{}.tar", arch.name()));
    write_layout(&image, &layout)?;
    write_whole(&archive, &image.archive()?)?;
    Ok(Written { archive, name, digest: image.digest().to_owned() })
}

/// Builds the agent without a loader to look for libraries: nothing else is in the image.
fn link(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    setup::ensure(&[Group::Ebpf])?;
    let cargo_home = sh::cargo_bin().parent().map(Path::to_path_buf).unwrap_or_default();
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/portcullis", workspace::root().display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ];
    let mut command = sh::cargo();
    // With a target of its own, flags reach neither build scripts nor macros.
    command
        .args(["build", "--release", "--locked", "--workspace", "--bin", BINARY, "--bin", PLUGIN_BINARY])
        .args(["--target", arch.triple()])
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Names of functions stay, for what a panic prints.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .stdout(std::io::stderr());
    sh::run(&mut command)?;
    Ok(workspace.target_dir().join(arch.triple()).join("release").join(BINARY))
}

/// What the program is made of, the programs in the kernel included.
fn materials(arch: Arch, version: &str) -> Result<Vec<u8>> {
    let metadata = |manifest: Option<&str>| -> Result<Value> {
        let mut command = sh::cargo();
        command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", arch.triple()]);
        if let Some(manifest) = manifest {
            command.args(["--manifest-path", manifest]);
        }
        serde_json::from_str(&sh::output(&mut command)?).context("reading `cargo metadata`")
    };
    let graphs = [(metadata(None)?, AGENT), (metadata(Some(EBPF))?, EBPF_PACKAGE)];
    let text = serde_json::to_vec_pretty(&sbom::document(&graphs, version)?)?;
    Ok(text)
}

/// The labels that say what the image is (`image-spec`, annotations).
fn labels(version: &str) -> Vec<(String, String)> {
    let mut labels = vec![
        ("title", BINARY.to_owned()),
        ("description", "An eBPF policy dataplane for Kubernetes nodes".to_owned()),
        ("licenses", "Apache-2.0".to_owned()),
        ("version", version.to_owned()),
    ];
    if let Some(revision) = commit("%H") {
        let modified = sh::output(git().args(["status", "--porcelain", "--untracked-files=no"]));
        let modified = modified.is_ok_and(|text| !text.trim().is_empty());
        labels.push(("revision", if modified { format!("{revision}-modified") } else { revision }));
    }
    let name = |(key, value): (&str, String)| (format!("org.opencontainers.image.{key}"), value);
    labels.into_iter().map(name).collect()
}

fn git() -> std::process::Command {
    let mut git = sh::command("git");
    git.current_dir(workspace::root()).env("TZ", "UTC");
    git
}

/// Of the tree's last commit; none where it is no checkout.
fn commit(format: &str) -> Option<String> {
    let format = format!("--format={format}");
    let text = sh::output(git().args(["log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", &format]));
    text.ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn write_layout(image: &Image, dir: &Path) -> Result<()> {
    // What an earlier image left would be blobs that nothing names.
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("clearing {}", dir.display()));
        }
        Ok(()) | Err(_) => {}
    }
    for (name, content) in image.files() {
        write_whole(&dir.join(name), content)?;
    }
    Ok(())
}

fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
