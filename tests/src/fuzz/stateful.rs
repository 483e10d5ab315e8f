//! Sequences: packets of several conversations at several endpoints, with everything changing between them, through
//! the attached kind of load and the agent's own reconciler. A unit is one script and some sequences in it.

use std::fmt;
use std::iter::successors;
use std::ops::Range;
use std::str::FromStr;

use anyhow::Result;
use serde_json::{Value, json};

use super::rig::Rig;
use super::script::{Script, Stage, Step, Wrong};
use super::sequences::{Plot, plot, sequence};
use super::{Extent, Findings, on_threads, seed_of};

/// Sequences of one script, unless told otherwise.
pub const SEQUENCES: u64 = 100;

/// Compares random sequences.
pub fn run(seed: u64, threads: usize, extent: Extent, sequences: u64) -> Result<Findings> {
    on_threads(threads, extent, Rig::new, |rig, number, end| {
        // A cluster without pods gives way to the next.
        let mut seeds = successors(Some(seed_of(seed, number)), |seed| Some(seed_of(*seed, 0)));
        let script = seeds.find(|seed| plot(*seed).is_some()).unwrap_or_default();
        unit(rig, script, 0..sequences, || end.has_come())
    })
}

/// One sequence of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The script's seed.
    pub script: u64,
    /// Which of its sequences.
    pub number: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.script, self.number)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let two = text.split_once(':').and_then(|(script, number)| {
            Some(Self { script: script.parse().ok()?, number: number.parse().ok()? })
        });
        two.ok_or_else(|| format!("{text}: write it as it was printed, two numbers with a colon between"))
    }
}

/// Compares one sequence again.
pub fn again(name: Name) -> Result<Findings> {
    unit(&mut Rig::new()?, name.script, name.number..name.number + 1, || false)
}

fn unit(rig: &mut Rig, seed: u64, sequences: Range<u64>, is_over: impl Fn() -> bool) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(plot) = plot(seed) else { return Ok(findings) };
    let mut stage = Stage::new(&plot.script);
    stage.set(rig)?;
    for number in sequences {
        if is_over() {
            break;
        }
        let (first, steps) = sequence(&plot, number, seed_of(seed, number));
        let played = stage.play(rig, first, &steps)?;
        findings.compared += 1;
        findings.packets += played.packets;
        for (answer, times) in played.answers {
            *findings.answers.entry(answer).or_default() += times;
        }
        let Some(wrong) = played.wrong else { continue };
        let is_new = !findings.wrong.contains_key(&wrong.difference);
        let told = if is_new { tell(rig, &mut stage, &plot, first, &steps, &wrong)? } else { String::new() };
        let name = Name { script: seed, number };
        findings.note(wrong.difference, || format!("--sequence {name}: {told}"));
    }
    Ok(findings)
}

/// The shortest form of a failing sequence that was found, as a case.
fn tell(
    rig: &mut Rig,
    stage: &mut Stage,
    plot: &Plot,
    first: usize,
    steps: &[Step],
    wrong: &Wrong,
) -> Result<String> {
    let mut short = steps[..=wrong.step].to_vec();
    if !is_wrong(rig, stage, first, &short, wrong)? {
        return Ok(format!("does not happen again: {}", case(&plot.script, first, steps, wrong)));
    }
    // From the end on: what came last is most likely needed, and what it did not need goes at once.
    let mut at = short.len();
    while at > 0 {
        at -= 1;
        let step = short.remove(at);
        if !is_wrong(rig, stage, first, &short, wrong)? {
            short.insert(at, step);
        }
    }
    Ok(case(&plot.script, first, &short, wrong).to_string())
}

fn is_wrong(rig: &mut Rig, stage: &mut Stage, first: usize, steps: &[Step], wrong: &Wrong) -> Result<bool> {
    let played = stage.play(rig, first, steps)?;
    Ok(played.wrong.is_some_and(|again| again.difference == wrong.difference))
}

/// A case as `tests/data/fuzz` keeps it: only the states that it comes to.
fn case(script: &Script, first: usize, steps: &[Step], wrong: &Wrong) -> Value {
    let used = steps.iter().filter_map(|step| match step {
        Step::State(number) => Some(*number),
        Step::Packet(_) | Step::Settle | Step::Wait(_) | Step::Expire | Step::Restart => None,
    });
    let mut numbers: Vec<usize> = std::iter::once(first).chain(used).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let renumbered = |number: &usize| numbers.binary_search(number).unwrap_or_default();
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| match step {
            Step::State(number) => Step::State(renumbered(number)).to_json(),
            Step::Packet(_) | Step::Settle | Step::Wait(_) | Step::Expire | Step::Restart => step.to_json(),
        })
        .collect();
    let states: Vec<_> = numbers.iter().filter_map(|number| script.states.get(*number)).collect();
    json!({
        "why": wrong.difference.to_string(), "devices": script.devices, "states": states,
        "first": renumbered(&first), "steps": steps,
    })
}

/// Plays a case; returns how the two differ, if they do.
pub fn replay(rig: &mut Rig, case: &Value) -> Result<Option<Wrong>> {
    let list = |name: &str| case[name].as_array().cloned().unwrap_or_default();
    let script = Script {
        states: list("states").iter().map(|state| state.as_array().cloned().unwrap_or_default()).collect(),
        devices: serde_json::from_value(case["devices"].clone())?,
    };
    let steps: Vec<Step> = list("steps").iter().map(Step::from_json).collect::<Result<_>>()?;
    let first = usize::try_from(case["first"].as_u64().unwrap_or(0))?;
    let mut stage = Stage::new(&script);
    stage.set(rig)?;
    Ok(stage.play(rig, first, &steps)?.wrong)
}
