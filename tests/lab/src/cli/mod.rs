//! Verbs and their arguments.

mod down;
mod probe;
mod up;

use std::io::{ErrorKind, Write as _, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use portcullis_lab::{Family, source};
use portcullis_policy::manifest::Loaded;
use portcullis_policy::model::{Protocol, Severity};

/// Something is wrong with the arguments: exit 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Pods of Kubernetes manifests as network namespaces of this machine, and real connections between them.
///
/// A lab is a namespace that stands for a node, one for each pod with a veth pair, and one for the world
/// outside. Nothing outside these is touched. Needs root and iproute2.
#[derive(Parser)]
#[command(name = "portcullis-lab", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  portcullis-lab up --source manifests/         pods, servers and the agent; they stay
  portcullis-lab probe --source manifests/      who reaches whom, tried for real
  portcullis-lab probe --source manifests/ TCP/80 UDP/53 -o json
  portcullis-lab down                           nothing is left

Exit status: 0 fine, 1 something failed, 2 usage, 3 this machine lacks something.";

#[derive(Subcommand)]
enum Verb {
    /// Make namespaces for the pods of manifests, serve their ports, and start the agent
    Up(up::Up),
    /// Try a connection for every ordered pair of pods and every port
    Probe(probe::ProbeArgs),
    /// Take a lab away: processes, namespaces, mounts, files
    Down(down::Down),
    /// Serve a lab's ports; started by `up`
    #[command(hide = true)]
    Serve {
        /// Which lab
        #[arg(long)]
        id: String,
    },
}

/// Where manifests come from, and which lab is meant.
#[derive(Args)]
pub(crate) struct Common {
    /// Directory of Kubernetes manifests (.yaml, .yml, .json), read recursively
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// Which lab: several stand side by side
    #[arg(long, default_value = "lab")]
    id: String,
    /// Where pods without an address get one (repeatable; default: 10.244.0.0/16 and `fd00:10:244::/64`)
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Vec<IpNet>,
}

/// A family as arguments name it.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FamilyArg {
    Ipv4,
    Ipv6,
}

impl From<FamilyArg> for Family {
    fn from(family: FamilyArg) -> Self {
        match family {
            FamilyArg::Ipv4 => Self::Ipv4,
            FamilyArg::Ipv6 => Self::Ipv6,
        }
    }
}

/// Runs the verb.
pub(crate) fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Up(args) => up::run(&args),
        Verb::Probe(args) => probe::run(&args),
        Verb::Down(args) => down::run(&args),
        Verb::Serve { id } => portcullis_lab::serve(&id),
    }
}

/// Reads the manifests, and tells what is wrong with them.
fn load(dir: &Path, pod_cidrs: &[IpNet]) -> Result<Loaded> {
    let loaded = source::read(dir, pod_cidrs)?;
    for problem in loaded.problems.iter().filter(|p| p.severity > Severity::Note) {
        eprintln!("{problem}");
    }
    if loaded.cluster.pods.is_empty() {
        return Err(Usage(format!("{} holds no pod and no workload", dir.display())).into());
    }
    Ok(loaded)
}

/// Prints to stdout; a reader that has gone has seen what it wanted.
fn print(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("writing to stdout"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads `PROTO/PORT`.
fn parse_port(text: &str) -> Result<(Protocol, u16), String> {
    let shape = || format!("`{text}` is no PROTO/PORT, such as TCP/80 or UDP/53");
    let (protocol, port) = text.split_once('/').ok_or_else(shape)?;
    let protocol = Protocol::from_name(&protocol.to_ascii_uppercase()).ok_or_else(shape)?;
    match port.parse() {
        Ok(0) | Err(_) => Err(shape()),
        Ok(port) => Ok((protocol, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn ports_are_read() {
        assert_eq!(parse_port("udp/53"), Ok((Protocol::Udp, 53)));
        assert!(parse_port("TCP/0").is_err());
        assert!(parse_port("80").is_err());
    }
}
