//! `cargo xtask demo`: pods as network namespaces of this machine, a policy that arrives while they talk, and
//! what changes, by real connections. Cleans up when it ends; `--keep` leaves it standing until `--down`.

mod act;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::setup::{self, Group};
use crate::sh;
use crate::standing::{self, Interrupt, Standing};
use crate::workspace::{self, Workspace};

/// The lab's id.
const ID: &str = "demo";

/// The manifests: pods alone, and the policy that joins them.
const BEFORE: &str = "tests/data/demo/before";
const POLICY: &str = "tests/data/demo/policy/np-backend.yaml";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the lab standing at the end
    #[arg(long)]
    keep: bool,
    /// Take down what an earlier `--keep` left, and do nothing else
    #[arg(long, conflicts_with = "keep")]
    down: bool,
    /// How pods hang on their node: routed, or ports of a bridge
    #[arg(long, value_name = "SHAPE", default_value = "routed", value_parser = ["routed", "bridge"])]
    cni: String,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    sh::need_root("making network namespaces and loading programs")?;
    let workspace = Workspace::load()?;
    let source = Source { dir: workspace.target_dir().join("demo") };
    if args.down {
        source.remove()?;
        if standing::dir(ID).exists() {
            standing::down(&build::existing_or_release(&workspace)?, ID)?;
            sh::say("the demo's lab is gone");
        } else {
            sh::say("no demo's lab stands");
        }
        return Ok(ExitCode::SUCCESS);
    }
    setup::ensure(&[Group::Ebpf, Group::Lab])?;
    let built = build::release(&workspace)?;
    let interrupt = Interrupt::listen()?;
    if standing::dir(ID).exists() {
        sh::say("an earlier demo still stands; taking it down");
        standing::down(&built, ID)?;
    }
    source.fresh()?;
    let lab = Standing::up(&built, ID, &source.dir, ["--cni", &args.cni])?;
    let ended = act::play(&lab, &built, &source);
    if interrupt.came() {
        drop(lab);
        source.remove()?;
        bail!("interrupted; all is taken down");
    }
    if args.keep {
        println!("\nThe lab stays until `cargo xtask demo --down`. Try:");
        for verb in ["matrix", "observe --follow"] {
            println!("  {} {verb} --run-dir {}", built.agent.display(), lab.run_dir().display());
        }
        println!("  edit {} and ask again", source.dir.display());
        lab.keep();
    } else {
        drop(lab);
        source.remove()?;
    }
    ended.map(|()| ExitCode::SUCCESS)
}

/// The directory that the demo's agent watches.
struct Source {
    dir: PathBuf,
}

impl Source {
    /// The pods alone.
    fn fresh(&self) -> Result<()> {
        self.remove()?;
        fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let before = workspace::root().join(BEFORE);
        for entry in fs::read_dir(&before).with_context(|| format!("reading {}", before.display()))? {
            self.add(&entry.context("reading the demo's manifests")?.path())?;
        }
        Ok(())
    }

    /// The policy joins them.
    fn add_policy(&self) -> Result<()> {
        self.add(&workspace::root().join(POLICY))
    }

    /// Copies a manifest in such that it is there whole or not at all: names with a dot are not read.
    fn add(&self, manifest: &Path) -> Result<()> {
        let name = manifest.file_name().with_context(|| format!("{} is no file", manifest.display()))?;
        let partial = self.dir.join(format!(".{}", name.to_string_lossy()));
        fs::copy(manifest, &partial).with_context(|| format!("copying {}", manifest.display()))?;
        fs::rename(&partial, self.dir.join(name)).with_context(|| format!("renaming {}", partial.display()))
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.dir.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
