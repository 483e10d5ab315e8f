//! `completions`: what a shell needs to complete our command line.

use clap::Command;
use clap_complete::{Shell, generate};

use super::Failure;
use crate::output::{self, Exit};

/// Prints the script for a shell.
pub fn completions(shell: Shell, mut command: Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    generate(shell, &mut command, name, &mut script);
    output::print(&String::from_utf8_lossy(&script)).map_err(Failure::Output)?;
    Ok(Exit::Fine)
}
