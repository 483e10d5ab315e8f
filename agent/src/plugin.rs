//! `kubectl portcullis`: the verbs of a node, asked of the agents of a cluster. `kubectl` finds the pods and reaches
//! into them, so who may ask is who may exec there; no agent listens for it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader};
use std::process::{Command, ExitCode, ExitStatus, Output, Stdio};
use std::thread;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::output::{self, Exit};

/// Name of the program by which it is the plugin; `kubectl` looks for it on the PATH.
pub const NAME: &str = "kubectl-portcullis";
/// Which pods are agents.
const SELECTOR: &str = "app.kubernetes.io/name=portcullis,app.kubernetes.io/component=agent";
/// The container of theirs that is the agent.
const CONTAINER: &str = "agent";
/// The program in it.
const PROGRAM: &str = "portcullis";
/// Verbs that ask all that agents know of the cluster: one answers for all.
const OF_ONE: [&str; 2] = ["explain", "matrix"];

/// Ask the agents of a cluster
#[derive(Debug, Parser)]
#[command(name = "kubectl portcullis", bin_name = "kubectl portcullis", version)]
struct Plugin {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

/// How agents are reached.
#[derive(Debug, Args)]
struct Reach {
    /// The kubeconfig file
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<OsString>,
    /// The context of the kubeconfig file
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The namespace where the agents are
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    agents: String,
    /// Ask on this node; several with commas [default: all; of explain and matrix the first]
    #[arg(long = "node", value_name = "NODE", value_delimiter = ',')]
    nodes: Vec<String>,
}

/// Each is the agent's verb of the same name with the words that follow.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Say whether one flow is allowed, and which rule decides
    Explain(Words),
    /// Show which pod reaches which
    Matrix(Words),
    /// Show verdicts that fell, and with -f as they fall
    Observe(Words),
    /// Show how each agent and its node do; exit 1 if something is wrong on any
    Status(Words),
    /// Show the pods that are enforced on each node
    Endpoints(Words),
    /// Show what each policy does on each node
    Policies(Words),
    /// Wait until something is in force on all nodes
    Wait(Words),
    /// Say whether each node is fit, and who else is on it
    Preflight(Words),
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
struct Words {
    /// As the verb takes them: see `portcullis VERB --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    words: Vec<String>,
}

/// Why nobody was asked.
#[derive(Debug, Error)]
enum PluginError {
    #[error("run kubectl: {0}: install kubectl, or put it on the PATH")]
    Kubectl(io::Error),
    #[error("list the agents in namespace {namespace}: {said}")]
    List { namespace: String, said: String },
    #[error("the list of agents is not what kubectl prints: {0}")]
    Garbled(serde_json::Error),
    #[error(
        "no agent runs in namespace {namespace}: install portcullis there, or name the namespace with --agents"
    )]
    NoAgents { namespace: String },
    #[error("no agent runs on node {0}: name one of {1} with --node")]
    NoNode(String, String),
    #[error("write the result: {0}: make room where stdout goes")]
    Output(io::Error),
    #[error("wait for kubectl: its thread ended")]
    Thread,
}

impl PluginError {
    const fn exit(&self) -> Exit {
        match self {
            Self::NoNode(..) => Exit::Usage,
            Self::Kubectl(_)
            | Self::List { .. }
            | Self::Garbled(_)
            | Self::NoAgents { .. }
            | Self::Output(_)
            | Self::Thread => Exit::Unfit,
        }
    }
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Agent {
    node: String,
    pod: String,
}

/// One node's answer under `-o json`.
#[derive(Debug, Serialize)]
struct Answer {
    node: String,
    exit: u8,
    result: Value,
}

impl Verb {
    fn split(self) -> (&'static str, Vec<String>) {
        match self {
            Self::Explain(Words { words }) => ("explain", words),
            Self::Matrix(Words { words }) => ("matrix", words),
            Self::Observe(Words { words }) => ("observe", words),
            Self::Status(Words { words }) => ("status", words),
            Self::Endpoints(Words { words }) => ("endpoints", words),
            Self::Policies(Words { words }) => ("policies", words),
            Self::Wait(Words { words }) => ("wait", words),
            Self::Preflight(Words { words }) => ("preflight", words),
        }
    }
}

/// True if the program was called as the plugin.
#[must_use]
pub fn is_called(name: &OsString) -> bool {
    std::path::Path::new(name).file_stem().is_some_and(|stem| stem == NAME)
}

/// Reads the command line of this process and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let plugin = Plugin::parse();
    match run(&plugin.reach, plugin.verb) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::error(&error);
            error.exit().into()
        }
    }
}

/// The command line, for documents and completions.
#[must_use]
pub fn command() -> clap::Command {
    Plugin::command()
}

fn run(reach: &Reach, verb: Verb) -> Result<Exit, PluginError> {
    let (verb, words) = verb.split();
    let agents = chosen(agents(reach)?, &reach.nodes)?;
    if OF_ONE.contains(&verb)
        && let Some(agent) = agents.first()
    {
        let status = exec(reach, agent, verb, &words).status().map_err(PluginError::Kubectl)?;
        return Ok(exit_of(status));
    }
    let exits = if verb == "observe" {
        together(&agents, |agent| follow(reach, agent, verb, &words))?
    } else {
        let answers = together(&agents, |agent| exec(reach, agent, verb, &words).output())?;
        if is_json(&words) {
            print_json(&agents, &answers)?;
        } else {
            print_text(&agents, &answers)?;
        }
        answers.iter().map(|answer| answer.status).collect()
    };
    Ok(exits.into_iter().map(exit_of).max_by_key(|exit| exit.code()).unwrap_or(Exit::Unfit))
}

fn kubectl(reach: &Reach) -> Command {
    let mut command = Command::new("kubectl");
    if let Some(file) = &reach.kubeconfig {
        command.arg("--kubeconfig").arg(file);
    }
    if let Some(context) = &reach.context {
        command.args(["--context", context]);
    }
    command.args(["--namespace", &reach.agents]);
    command
}

/// The agents' pods that run, by node.
fn agents(reach: &Reach) -> Result<Vec<Agent>, PluginError> {
    let listed = kubectl(reach)
        .args([
            "get",
            "pods",
            "--selector",
            SELECTOR,
            "--field-selector",
            "status.phase=Running",
            "-o",
            "json",
        ])
        .output()
        .map_err(PluginError::Kubectl)?;
    if !listed.status.success() {
        let said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(PluginError::List { namespace: reach.agents.clone(), said });
    }
    let found = listed_agents(&listed.stdout)?;
    if found.is_empty() {
        return Err(PluginError::NoAgents { namespace: reach.agents.clone() });
    }
    Ok(found)
}

fn listed_agents(list: &[u8]) -> Result<Vec<Agent>, PluginError> {
    let list: Value = serde_json::from_slice(list).map_err(PluginError::Garbled)?;
    let mut found: Vec<Agent> = list
        .get("items")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none())
        .filter_map(|pod| {
            let text = |path| pod.pointer(path).and_then(Value::as_str).map(str::to_owned);
            Some(Agent { node: text("/spec/nodeName")?, pod: text("/metadata/name")? })
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Those on the nodes that were named, or all.
fn chosen(agents: Vec<Agent>, nodes: &[String]) -> Result<Vec<Agent>, PluginError> {
    let known: BTreeSet<&str> = agents.iter().map(|agent| agent.node.as_str()).collect();
    if let Some(unknown) = nodes.iter().find(|node| !known.contains(node.as_str())) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(PluginError::NoNode(unknown.clone(), known));
    }
    Ok(agents.into_iter().filter(|agent| nodes.is_empty() || nodes.contains(&agent.node)).collect())
}

fn exec(reach: &Reach, agent: &Agent, verb: &str, words: &[String]) -> Command {
    let mut command = kubectl(reach);
    command.args(["exec", &agent.pod, "--container", CONTAINER, "--", PROGRAM, verb]).args(words);
    command
}

/// Asks all agents at once.
fn together<T: Send>(
    agents: &[Agent],
    ask: impl Fn(&Agent) -> io::Result<T> + Sync,
) -> Result<Vec<T>, PluginError> {
    let ask = &ask;
    thread::scope(|scope| {
        let asked: Vec<_> = agents.iter().map(|agent| scope.spawn(move || ask(agent))).collect();
        asked
            .into_iter()
            .map(|thread| thread.join().map_err(|_| PluginError::Thread)?.map_err(PluginError::Kubectl))
            .collect()
    })
}

/// Prints one agent's lines as they come, each with its node.
fn follow(reach: &Reach, agent: &Agent, verb: &str, words: &[String]) -> io::Result<ExitStatus> {
    let mut child = exec(reach, agent, verb, words).stdout(Stdio::piped()).spawn()?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            output::print(&with_node(&line?, &agent.node))?;
        }
    }
    child.wait()
}

/// A line of `observe`: an object of JSON with a key more, or text with a column before.
fn with_node(line: &str, node: &str) -> String {
    match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(mut object) => {
            object.insert("node".to_owned(), node.into());
            format!("{}\n", Value::Object(object))
        }
        Err(_) => format!("{node}  {line}\n"),
    }
}

/// The status that the verb ended with; kubectl's own is its.
fn exit_of(status: ExitStatus) -> Exit {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(Exit::Unfit, Exit::from_code)
}

fn is_json(words: &[String]) -> bool {
    let follows = |pair: &[String]| matches!(pair, [flag, word] if (flag == "-o" || flag == "--output") && word == "json");
    words.windows(2).any(follows) || words.iter().any(|word| word == "-ojson" || word == "--output=json")
}

fn print_json(agents: &[Agent], answers: &[Output]) -> Result<(), PluginError> {
    let answers: Vec<Answer> = agents
        .iter()
        .zip(answers)
        .map(|(agent, answer)| {
            complain(agent, answer);
            // What is no JSON was an error, which stderr has.
            let result = serde_json::from_slice(&answer.stdout).unwrap_or(Value::Null);
            Answer { node: agent.node.clone(), exit: exit_of(answer.status).code(), result }
        })
        .collect();
    let text = serde_json::to_string_pretty(&answers).map_err(PluginError::Garbled)?;
    output::print(&(text + "\n")).map_err(PluginError::Output)
}

fn print_text(agents: &[Agent], answers: &[Output]) -> Result<(), PluginError> {
    for (at, (agent, answer)) in agents.iter().zip(answers).enumerate() {
        let gap = if at == 0 { "" } else { "\n" };
        let text = String::from_utf8_lossy(&answer.stdout);
        output::print(&format!("{gap}node {}\n{text}", agent.node)).map_err(PluginError::Output)?;
        complain(agent, answer);
    }
    Ok(())
}

/// What one agent said beside its answer.
fn complain(agent: &Agent, answer: &Output) {
    for line in String::from_utf8_lossy(&answer.stderr).lines() {
        output::note(format_args!("node {}: {line}", agent.node));
    }
}

#[cfg(test)]
mod tests;
