//! `portcullis-bench`: what packets, changes and connections cost, a part a module. Tables come from manifests by the
//! agent's own compiler. Started by `cargo xtask bench`; `docs/performance.md` says what came out.
//!
//! - `packets` (`scenario`, `measure`, `table`): one packet many times by `BPF_PROG_TEST_RUN`, beside a program that
//!   does nothing, by numbers of rules and peers.
//! - `flows` (`flows`, `live`): real packets of many flows through a device, beside the same program.
//! - `services`: packets to a Service and to a pod, in pairs.
//! - `events`: from a change of objects to the tables.
//! - `baseline`, `off-on` (`pairs`, `pods`, `traffic`, `rules`): connections between two pods, in pairs without and with
//!   something between them.
//!
//! The order of measuring is shuffled anew in each round, so that a machine that is slow for a while is slow for
//! all; each measurement is shorter than a time slice, so that on a busy machine some run undisturbed: the lowest
//! is what the code costs, the median what it cost here. Every one is checked: the verdict counters must have
//! grown by its packets, under the reason that it is about. Nobody reads the ring of events there, and past 20,000
//! events in a second the programs only count: that is what opening and refusing cost under a flood.
//!
//! Everything happens in network namespaces of its own that end with the process, for a time that is set beforehand.

mod baseline;
mod events;
mod flows;
mod live;
mod measure;
mod off_on;
mod pairs;
mod pods;
mod rules;
mod scenario;
mod services;
mod table;
mod target;
mod traffic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;
use portcullis_oracle::rng::SplitMix64;
use portcullis_tests::device;
use serde_json::{Value, json};

use measure::Bench;
use scenario::Sizes;

/// Every so many rounds it says where it is.
const REPORTED: u32 = 15;

/// Rounds of what takes a second each.
const MAX_TELLING: u32 = 15;

/// Of so many rounds one also puts packets of many flows, ...
const FLOWS_SHARE: u32 = 3;
/// ... so many times the packets: these meet the caches as they are, and those are large.
const FLOWS_PACKETS: u32 = 2;

#[derive(Parser)]
#[command(name = "portcullis-bench", about = "What packets, changes and connections cost. Needs root.")]
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
    /// Numbers of flows in a pod's table
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,1000,10000,100000,1000000",
        value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    flows: Vec<u32>,
    /// Numbers of policies between two pods with connections
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,100,1000",
        value_parser = clap::value_parser!(u32).range(1..=2_000))]
    policies: Vec<u32>,
    /// Pairs of connections without and with something between the pods
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(10..=1_000))]
    pairs: u32,
    /// Length of one of the four runs of a pair, for each kind of traffic
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    slice: u64,
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
    #[arg(long, conflicts_with_all = ["rounds", "packets", "rules", "peers", "flows", "policies", "pairs", "slice"])]
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
    /// Nanoseconds a packet among many flows
    Flows,
    /// Nanoseconds a packet to a Service, beside the same to a pod
    Services,
    /// Connections between two pods with no policy, with ours, with iptables and with nftables
    Baseline,
    /// The same connections, ours off against ours on
    OffOn,
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
    let kernel = uname().context("asking for the kernel's release")?.release().to_string_lossy().into_owned();
    device::own_namespace()?;
    let mut rng = SplitMix64::new(args.seed);
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let mut all = Printed { text: String::new(), json: json!({"kernel": kernel.clone(), "seed": args.seed}) };
    let begin = Instant::now();
    let rows = if wanted(Part::Events) { changes(args, &mut rng)? } else { Vec::new() };
    if wanted(Part::Packets) {
        all.part(None, packets(args, &kernel, &mut rng)?);
    }
    if wanted(Part::Events) {
        all.part(Some("events"), (events::text(&rows), events::json(&rows)));
    }
    if wanted(Part::Flows) {
        let plan = flows_plan(args);
        let rows = flows::measure(&plan, &mut rng)?;
        all.part(Some("flows"), (flows::text(&plan, &rows), flows::json(&plan, &rows)));
    }
    if wanted(Part::Services) {
        let (rounds, packets) = if args.quick { (3, 5_000) } else { (args.rounds, args.packets) };
        let rows = services::measure(rounds, packets, &mut rng)?;
        all.part(Some("services"), (services::text(rounds, packets, &rows), services::json(&rows)));
    }
    if wanted(Part::Baseline) {
        let policies = if args.quick { &[2][..] } else { &args.policies };
        let plan = pairs_plan(args);
        let (rows, lacking) = baseline::measure(plan, policies, &mut rng)?;
        let mut json = pairs::json(plan, &rows);
        if let Some(fields) = json.as_object_mut() {
            fields.insert("lacking".to_owned(), json!(lacking));
        }
        all.part(Some("baseline"), (baseline::text(plan, &rows, &lacking), json));
    }
    if wanted(Part::OffOn) {
        let plan = pairs_plan(args);
        let rows = off_on::measure(plan, &mut rng)?;
        all.part(Some("offOn"), (off_on::text(plan, &rows), pairs::json(plan, &rows)));
    }
    let seconds = begin.elapsed().as_secs_f64();
    match args.output {
        Format::Text => print!("{}\nkernel {kernel}, seed {}, {seconds:.0} s in all\n", all.text, args.seed),
        Format::Json => println!("{}", all.json),
    }
    Ok(())
}

/// What the parts have to say.
struct Printed {
    text: String,
    json: Value,
}

impl Printed {
    /// Adds a part's, under a name or beside the others' names.
    fn part(&mut self, name: Option<&str>, (text, json): (String, Value)) {
        self.text.push_str(&text);
        let Some(fields) = self.json.as_object_mut() else { return };
        match (name, json) {
            (Some(name), json) => drop(fields.insert(name.to_owned(), json)),
            (None, Value::Object(more)) => fields.extend(more),
            (None, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {}
        }
    }
}

/// Nanoseconds a packet, by test run.
fn packets(args: &Args, kernel: &str, rng: &mut SplitMix64) -> Result<(String, Value)> {
    let begin = Instant::now();
    let (rounds, packets) = if args.quick { (3, 5_000) } else { (args.rounds, args.packets) };
    let sizes = if args.quick {
        Sizes { rules: vec![1, 100], peers: vec![1, 100] }
    } else {
        Sizes { rules: args.rules.clone(), peers: args.peers.clone() }
    };
    let mut bench = Bench::prepare(&sizes, rng)?;
    for round in 0..rounds {
        if round % REPORTED == 0 {
            eprintln!("round {} of {rounds}, {:.0} s", round + 1, begin.elapsed().as_secs_f64());
        }
        bench.round(packets, rng)?;
    }
    let telling = bench.telling(&sizes, rounds.min(MAX_TELLING))?;
    let seconds = begin.elapsed().as_secs_f64();
    let conditions = Conditions { kernel: kernel.to_owned(), seed: args.seed, rounds, packets, seconds };
    let results = bench.results(telling);
    Ok((table::text(&conditions, &sizes, &results), table::json(&conditions, &sizes, &results)))
}

fn flows_plan(args: &Args) -> flows::Plan {
    if args.quick {
        return flows::Plan { sizes: vec![1, 1_000], rounds: 2, packets: 2_000 };
    }
    flows::Plan {
        sizes: args.flows.clone(),
        rounds: args.rounds.div_ceil(FLOWS_SHARE),
        packets: args.packets.saturating_mul(FLOWS_PACKETS),
    }
}

fn pairs_plan(args: &Args) -> pairs::Plan {
    let (pairs, milliseconds) = if args.quick { (2, 20) } else { (args.pairs, args.slice) };
    pairs::Plan { pairs, slice: Duration::from_millis(milliseconds) }
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
