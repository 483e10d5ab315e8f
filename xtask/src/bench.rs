//! `cargo xtask bench`: builds and runs the benchmark, which loads the programs and needs root.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::setup::{self, Group};
use crate::sh;
use crate::workspace::Workspace;

const BINARY: &str = "portcullis-bench";

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// For the benchmark itself (`--help` shows what it takes)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    sh::need_root("loading eBPF programs")?;
    // Without them it says what it does not compare with.
    if let Err(error) = setup::ensure(&[Group::Bench]) {
        sh::say(format_args!("{error:#}"));
    }
    build::binaries(&[BINARY])?;
    let binary = Workspace::load()?.binary(BINARY);
    Ok(sh::exit_code(sh::status(sh::command(binary).args(&args.args))?))
}
