//! `portcullis-bench`: nanoseconds a packet in the attached kind of load, by `BPF_PROG_TEST_RUN`, beside a program
//! that does nothing. Tables come from manifests by the agent's own compiler. Started by `cargo xtask bench`.
//!
//! The order of measuring is shuffled anew in each round, so that a machine that is slow for a while is slow for
//! all; each measurement is shorter than a time slice, so that on a busy machine some run undisturbed: the lowest
//! is what the code costs, the median what it cost here. Every one is checked: the verdict counters must have
//! grown by its packets, under the reason that it is about. Nobody reads the ring of events, and past 20,000
//! events in a second the programs only count: that is what opening and refusing cost under a flood.
//!
//! Everything happens in a network namespace of its own that ends with the process.

mod events;
mod measure;
mod scenario;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;
use portcullis_oracle::rng::SplitMix64;
use portcullis_tests::device;

use measure::Bench;
use scenario::Sizes;

/// Every so many rounds it says where it is.
const REPORTED: u32 = 15;

/// Rounds of what takes a second each.
const MAX_TELLING: u32 = 15;

#[derive(Parser)]
#[command(name = "portcullis-bench", about = "Nanoseconds a packet, by BPF_PROG_TEST_RUN. Needs root.")]
struct Args {
    /// Rounds, each measuring everything once; an odd number has a median of its own
    #[arg(long, value_name = "N", default_value_t = 75, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets of one measurement
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    packets: u32,
    /// Numbers of rules
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,10,100,1000",
        value_parser = clap::value_parser!(u32).range(1..=8_000))]
    rules: Vec<u32>,
    /// Numbers of peers: pods with an address of each family, and as many CIDRs
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,100,1000,10000",
        value_parser = clap::value_parser!(u32).range(1..=16_000))]
    peers: Vec<u32>,
    /// Only this part
    #[arg(long, value_name = "PART", value_enum)]
    only: Option<Part>,
    /// Sizes of clusters at which changes are measured: pods and policies
    #[arg(long, value_name = "PODS:POLICIES,...", value_delimiter = ',',
        default_value = "100:10,1000:10,1000:100,10000:10,10000:100,10000:1000", value_parser = pair)]
    clusters: Vec<(u32, u32)>,
    /// Changes of each kind
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    changes: u32,
    /// What is measured when, and which CIDRs are made
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A few seconds: to see that it works
    #[arg(long, conflicts_with_all = ["rounds", "packets", "rules", "peers"])]
    quick: bool,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What there is to measure.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds a packet
    Packets,
    /// Milliseconds from a change of objects to the tables in the kernel
    Events,
}

/// `PODS:POLICIES`, neither 0.
fn pair(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| (1..=100_000).contains(number));
    text.split_once(':')
        .and_then(|(pods, policies)| Some((number(pods)?, number(policies)?)))
        .ok_or_else(|| format!("{text}: write PODS:POLICIES, as in 1000:100, each from 1 to 100000"))
}

/// What was run, and on what.
#[derive(Clone, Debug)]
struct Conditions {
    kernel: String,
    seed: u64,
    rounds: u32,
    packets: u32,
    seconds: f64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    ensure!(geteuid().is_root(), "loading programs needs root");
    let begin = Instant::now();
    let (rounds, packets) = if args.quick { (5, 5_000) } else { (args.rounds, args.packets) };
    let sizes = if args.quick {
        Sizes { rules: vec![1, 100], peers: vec![1, 100] }
    } else {
        Sizes { rules: args.rules.clone(), peers: args.peers.clone() }
    };
    let kernel = uname().context("asking for the kernel's release")?.release().to_string_lossy().into_owned();
    device::own_namespace()?;
    let mut rng = SplitMix64::new(args.seed);
    let (of_packets, of_events) = (args.only != Some(Part::Events), args.only != Some(Part::Packets));
    let rows = if of_events { changes(args, &mut rng)? } else { Vec::new() };
    if !of_packets {
        match args.output {
            Format::Text => print!("{}", events::text(&rows)),
            Format::Json => {
                println!("{}", serde_json::json!({ "kernel": kernel, "events": events::json(&rows) }));
            }
        }
        return Ok(());
    }
    let mut bench = Bench::prepare(&sizes, &mut rng)?;
    for round in 0..rounds {
        if round % REPORTED == 0 {
            eprintln!("round {} of {rounds}, {:.0} s", round + 1, begin.elapsed().as_secs_f64());
        }
        bench.round(packets, &mut rng)?;
    }
    let telling = bench.telling(&sizes, rounds.min(MAX_TELLING))?;
    let seconds = begin.elapsed().as_secs_f64();
    let conditions = Conditions { kernel, seed: args.seed, rounds, packets, seconds };
    let results = bench.results(telling);
    match args.output {
        Format::Text => print!("{}{}", table::text(&conditions, &sizes, &results), events::text(&rows)),
        Format::Json => {
            let mut all = table::json(&conditions, &results);
            if let Some(fields) = all.as_object_mut() {
                fields.insert("events".to_owned(), events::json(&rows));
            }
            println!("{all}");
        }
    }
    Ok(())
}

/// From objects to tables, at every size.
fn changes(args: &Args, rng: &mut SplitMix64) -> Result<Vec<events::Row>> {
    let quick = [(100, 10), (1_000, 100)];
    let (sizes, changes) = if args.quick { (&quick[..], 10) } else { (&args.clusters[..], args.changes) };
    let mut rows = Vec::new();
    for (pods, policies) in sizes {
        eprintln!("changes among {pods} pods and {policies} policies");
        rows.extend(events::measure(*pods, *policies, changes, rng)?);
    }
    Ok(rows)
}
