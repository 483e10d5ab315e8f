//! `portcullis-fuzz`: random packets to the loaded programs and to the oracle, side by side. Started by
//! `cargo xtask fuzz`.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use nix::unistd::geteuid;
use portcullis_tests::fuzz::{Extent, Findings, stateful, stateless};
use serde_json::json;

#[derive(Parser)]
#[command(
    name = "portcullis-fuzz",
    about = "Random packets to the loaded programs and to the oracle. Needs root."
)]
struct Args {
    /// How long each part runs: a number and s, m or h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    time: Option<Duration>,
    /// What is made; a new one each time, which is printed, unless given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Only this part
    #[arg(long, value_name = "PART", value_enum)]
    only: Option<Part>,
    /// So many packets, or sequences
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Only this sequence, by the two numbers that a failure prints
    #[arg(long, value_name = "SCRIPT:N", conflicts_with_all = ["time", "seed", "only", "count"])]
    sequence: Option<stateful::Name>,
    /// So many packets, where sequences are counted by --count
    #[arg(long, value_name = "N", requires = "count")]
    packets: Option<u64>,
    /// Threads, each with a load of its own; what is found does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Packets one by one
    Stateless,
    /// Sequences of packets, changes and time
    Stateful,
}

/// Where neither time nor count is given.
const SHORT: Duration = Duration::from_secs(10);
/// Threads for each CPU where most of the time is spent waiting.
const WAITING: usize = 4;
/// More than anybody waits for.
const ENDLESS: Duration = Duration::from_secs(1 << 30);

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = |text: &str, factor| text.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    let parsed = match text.as_bytes().last() {
        Some(b's') => seconds(&text[..text.len() - 1], 1),
        Some(b'm') => seconds(&text[..text.len() - 1], 60),
        Some(b'h') => seconds(&text[..text.len() - 1], 3_600),
        _ => None,
    };
    parsed.map(Duration::from_secs).ok_or_else(|| format!("{text}: write a number and s, m or h, as in 30s"))
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the number of mismatches.
fn run(args: &Args) -> Result<u64> {
    ensure!(geteuid().is_root(), "loading programs needs root");
    if let Some(name) = args.sequence {
        let begin = Instant::now();
        // The namespaces are the thread's.
        let findings = thread::spawn(move || stateful::again(name)).join().expect("a worker ends")?;
        print("stateful", "sequences", name.script, begin.elapsed(), &findings, args.output);
        return Ok(findings.mismatches());
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
    };
    let time = args.time.unwrap_or(if args.count.is_some() { ENDLESS } else { SHORT });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let extent = |count: Option<u64>, of_unit: u64| {
        let of_unit = count.map_or(of_unit, |count| count.clamp(1, of_unit));
        (Extent { time, units: count.map_or(u64::MAX, |count| count.div_ceil(of_unit)) }, of_unit)
    };
    let threads = |usual: usize| args.threads.map_or(usual, usize::from);
    let mut mismatches = 0;
    if args.only != Some(Part::Stateful) {
        let (extent, packets) = extent(args.packets.or(args.count), stateless::PACKETS);
        let begin = Instant::now();
        let findings = stateless::run(seed, threads(cpus), extent, packets)?;
        print("stateless", "packets", seed, begin.elapsed(), &findings, args.output);
        mismatches += findings.mismatches();
    }
    if args.only != Some(Part::Stateless) {
        let (extent, sequences) = extent(args.count, stateful::SEQUENCES);
        let begin = Instant::now();
        // A change waits for the kernel most of the time.
        let findings = stateful::run(seed, threads(cpus * WAITING), extent, sequences)?;
        print("stateful", "sequences", seed, begin.elapsed(), &findings, args.output);
        mismatches += findings.mismatches();
    }
    Ok(mismatches)
}

fn print(part: &str, what: &str, seed: u64, took: Duration, findings: &Findings, format: Format) {
    let seconds = took.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = findings.compared as f64 / seconds;
    let differences: Vec<_> = findings
        .wrong
        .iter()
        .map(|(difference, times)| (difference, times, findings.cases.get(difference)))
        .collect();
    match format {
        Format::Text => {
            println!(
                "{part}: {} {what} in {seconds:.1} s ({rate:.0} a second), {} packets in the kernel, seed {seed}, {} mismatches",
                findings.compared,
                findings.packets,
                findings.mismatches(),
            );
            for (answer, times) in &findings.answers {
                println!("  {answer:<24}{times:>12}");
            }
            for (difference, times, case) in differences {
                println!("{times} times {difference}, as in\n  {}", case.map_or("", String::as_str));
            }
        }
        Format::Json => {
            let differences: Vec<_> = differences
                .iter()
                .map(|(difference, times, case)| {
                    json!({"oracle": difference.oracle, "program": difference.program, "times": times, "case": case})
                })
                .collect();
            println!(
                "{}",
                json!({
                    "part": part, what: findings.compared, "kernel_packets": findings.packets, "seconds": seconds,
                    "per_second": rate, "seed": seed, "mismatches": findings.mismatches(),
                    "answers": findings.answers, "differences": differences,
                })
            );
        }
    }
}
