//! `man`: manual pages, made from the same words as `--help`.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::{Man, generate_to};

use super::Failure;
use crate::output::{self, Exit};

/// Prints the page of a verb, or that of the whole program.
pub fn page(verb: Option<&str>, mut command: Command) -> Result<Exit, Failure> {
    command.build();
    let page = match verb {
        None => command,
        Some(verb) => command.find_subcommand(verb).cloned().ok_or_else(|| {
            let verbs: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            Failure::UnknownVerb { verb: verb.to_owned(), known: verbs.join(", ") }
        })?,
    };
    let mut text = Vec::new();
    // A verb's page is called as `git` calls its own: program, hyphen, verb.
    let name = page.get_display_name().unwrap_or(page.get_name()).to_owned();
    Man::new(page.name(name).version(env!("CARGO_PKG_VERSION")))
        .render(&mut text)
        .map_err(Failure::Output)?;
    output::print(&String::from_utf8_lossy(&text)).map_err(Failure::Output)?;
    Ok(Exit::Fine)
}

/// Writes a page for the program and for each verb into a directory, which is made where it is missing.
pub fn pages(dir: &Path, command: Command) -> Result<Exit, Failure> {
    let failed = |cause: io::Error| Failure::WritePages { dir: dir.to_owned(), cause };
    fs::create_dir_all(dir).map_err(failed)?;
    generate_to(command, dir).map_err(failed)?;
    Ok(Exit::Fine)
}
