//! `cargo xtask lab up|probe|down`: hands its arguments to portcullis-lab, which starts the agent built beside
//! it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::Workspace;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// `up|probe|down --source DIR ...` (`--help` shows what each takes)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    args: Vec<OsString>,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    setup::ensure(&[Group::Lab])?;
    // Only `up` needs what the tree says now: a lab must be able to go when the tree does not compile.
    let is_up = args.args.first().is_some_and(|a| a == "up");
    let built = if is_up { build::release(&workspace)? } else { build::existing_or_release(&workspace)? };
    Ok(sh::exit_code(sh::status(sh::command(&built.lab).args(&args.args))?))
}
