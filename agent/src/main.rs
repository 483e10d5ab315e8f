//! `portcullis`: see `portcullis --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis_agent::cli::main()
}
