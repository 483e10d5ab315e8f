//! `probe`: the matrix, by real connections.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use portcullis_lab::{Family, Lab, MatrixResult, ProbeOptions, default_family, default_ports};
use portcullis_policy::model::Protocol;

use super::{Common, FamilyArg, Usage, load, parse_port, print};

/// Arguments of `probe`.
#[derive(Args)]
pub(crate) struct ProbeArgs {
    #[command(flatten)]
    common: Common,
    /// What is tried, such as TCP/80 or UDP/53 [default: every declared containerPort]
    #[arg(value_name = "PROTO/PORT", value_parser = parse_port)]
    ports: Vec<(Protocol, u16)>,
    /// Which family [default: IPv4 where any pod has it]
    #[arg(long, value_enum)]
    family: Option<FamilyArg>,
    /// How it is printed; json as `portcullis matrix` prints it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// How long silence lasts, in milliseconds, before it counts as denied
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    timeout: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people: `.` allowed, `X` denied, `-` self, `?` not probed
    Table,
    /// For programs
    Json,
}

/// Tries, and prints.
pub(crate) fn run(args: &ProbeArgs) -> Result<()> {
    let Common { source, id, pod_cidr } = &args.common;
    let cluster = load(source, pod_cidr)?.cluster;
    let lab = Lab::open(id)?;
    let family = args.family.map_or_else(|| default_family(&cluster), Family::from);
    let ports = match args.ports.as_slice() {
        [] => default_ports(&cluster).into_iter().collect(),
        asked => asked.to_vec(),
    };
    if ports.is_empty() {
        return Err(Usage("no pod declares a containerPort: name what to try, such as TCP/80".into()).into());
    }
    let options = ProbeOptions { timeout: Duration::from_millis(args.timeout), ..ProbeOptions::default() };
    let results = lab.matrix(&cluster, &ports, family, &options)?;
    let text = match args.output {
        Output::Json => serde_json::to_string(&results).context("writing JSON")? + "\n",
        Output::Table => results.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    print(&text)?;
    results.iter().for_each(explain_unknown);
    Ok(())
}

/// Tells why cells are `?`, each reason once.
fn explain_unknown(result: &MatrixResult) {
    let mut said = Vec::new();
    for (from, to, outcome) in &result.unknown {
        let why = outcome.to_string();
        if !said.contains(&why) {
            eprintln!("{}/{}: `?` from {from} to {to}: {why}", result.protocol, result.port);
            said.push(why);
        }
    }
}
