//! `portcullis-cni`: the CNI plugin, run by container runtimes. Small, because it is run for each pod: nothing of the
//! agent is in it that it does not call.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis_agent::cni::plugin::main()
}
