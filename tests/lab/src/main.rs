//! `portcullis-lab up|probe|down`: a lab that stands between commands. Parses arguments and prints; what a
//! lab is, the library knows. Exit: 0 fine, 1 something failed, 2 usage, 3 the environment is not fit.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use portcullis_lab::unfit::Unfit;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-lab: {error:#}");
            let code = error.downcast_ref::<Unfit>().map(|_| 3);
            let code = code.or_else(|| error.downcast_ref::<cli::Usage>().map(|_| 2));
            ExitCode::from(code.unwrap_or(1))
        }
    }
}
