//! `down`: nothing is left.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use portcullis_lab::{state, unfit};

use super::print;

/// Arguments of `down`.
#[derive(Args)]
pub(crate) struct Down {
    /// Which lab
    #[arg(long, default_value = "lab", conflicts_with = "all")]
    id: String,
    /// Every lab, but those that a running program holds and takes down itself
    #[arg(long)]
    all: bool,
    /// Taken for the sake of the other verbs; `down` reads no manifests
    #[arg(long, value_name = "DIR", hide = true)]
    source: Option<PathBuf>,
}

/// Takes labs away, and says what it took.
pub(crate) fn run(args: &Down) -> Result<()> {
    unfit::check()?;
    let _ = &args.source;
    if !args.all {
        return one(&args.id);
    }
    for id in state::ids()? {
        let owner = state::State::read(&id).ok().flatten().and_then(|s| s.owner).filter(|o| o.is_running());
        match owner {
            Some(owner) => print(&format!("lab `{id}` is left: process {} holds it\n", owner.pid))?,
            None => one(&id)?,
        }
    }
    Ok(())
}

fn one(id: &str) -> Result<()> {
    let taken = state::take_down(id)?;
    if taken.is_empty() {
        return print(&format!("there is no lab `{id}`\n"));
    }
    print(&format!("removed {}\n", taken.join("\nremoved ")))
}
