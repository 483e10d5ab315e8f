//! `cargo xtask fuzz`: builds and runs the fuzzers of the packet path, which load the programs and need root.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::sh;
use crate::workspace::Workspace;

const BINARY: &str = "portcullis-fuzz";

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// For the fuzzer itself (`--help` shows what it takes)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    sh::need_root("loading eBPF programs")?;
    build::binaries(&[BINARY])?;
    let binary = Workspace::load()?.binary(BINARY);
    Ok(sh::exit_code(sh::status(sh::command(binary).args(&args.args))?))
}
