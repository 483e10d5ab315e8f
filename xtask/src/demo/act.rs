//! The demo itself, on a lab that stands: what is shown, in which order, and what has to come out.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::table::Table;
use super::{ID, Source};
use crate::build::Built;
use crate::sh;
use crate::standing::{self, Standing};
use crate::workspace::{array, text};

const NAMESPACE: &str = "project-snake";
const BACKEND: &str = "backend-0";
const VAULT: &str = "vault-0";
const VAULT_PORT: u64 = 3333;
const POLICY: &str = "np-backend";

/// What the policy leaves of the backend's connections.
const EXPECTED: [(&str, u64, char); 3] =
    [("db1-0", 1111, '.'), ("db2-0", 2222, '.'), (VAULT, VAULT_PORT, 'X')];

/// How long a change may take until it is in force, with room for a busy machine.
const IN_FORCE: Duration = Duration::from_secs(10);

/// How long an event may take from the drop to the terminal.
const SEEN: Duration = Duration::from_secs(5);

/// Plays it; an error if anything comes out other than it has to.
pub(super) fn play(lab: &Standing<'_>, built: &Built, source: &Source) -> Result<()> {
    println!("\nFour pods, each in a network namespace of its own, and no policy.");
    println!("Every pair and every port by a real connection; ---- is a port that did not answer:\n");
    let before = probe(built, source)?;
    println!("{}", before.render());
    ensure!(before.is_open(), "without a policy every pod has to reach every other");

    println!("\nNow the policy {POLICY} is copied into the directory that the agent watches:");
    println!("the backend may reach db1 on 1111 and db2 on 2222, and nothing else.\n");
    source.add_policy()?;
    let took = wait_in_force(lab)?;
    println!("In force after {} ms. The same connections again:\n", took.as_millis());
    let after = probe(built, source)?;
    println!("{}", after.render());

    println!("\nWhy does the backend not reach the vault?\n");
    let mut explain = explain(lab);
    println!("$ {}", sh::line(&explain));
    let status = explain.status().context("starting `portcullis explain`")?;
    ensure!(status.code() == Some(1), "`explain` has to end with 1, denied, and ended with {status}");

    println!("\nOne more try, and what `portcullis observe` says of it while it happens:\n");
    println!("{}", observe_one_drop(lab)?);

    println!();
    let mut wrong = Vec::new();
    for (to, port, expected) in EXPECTED {
        let name = to.trim_end_matches("-0");
        let found = after.cell(BACKEND, to, port);
        let says = match found {
            Some('.') => "reaches",
            Some('X') => "does not reach",
            Some(_) | None => "may or may not reach",
        };
        println!("  backend {says:<14} {name}:{port}");
        if found != Some(expected) {
            wrong.push(format!("{name}:{port}"));
        }
    }
    ensure!(wrong.is_empty(), "this is not what the policy says: {}", wrong.join(", "));
    Ok(())
}

fn probe(built: &Built, source: &Source) -> Result<Table> {
    let mut command = standing::command(built, "probe", ID);
    Table::parse(&sh::output(command.arg("--source").arg(&source.dir).args(["-o", "json"]))?)
}

fn explain(lab: &Standing<'_>) -> Command {
    let mut command = lab.ask("explain");
    command.args([BACKEND, VAULT].map(|pod| format!("{NAMESPACE}/{pod}")));
    command.arg(format!("TCP/{VAULT_PORT}"));
    command
}

/// Asks the agent until it denies what the policy denies; returns how long that took.
fn wait_in_force(lab: &Standing<'_>) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let answer = explain(lab).stdin(Stdio::null()).output().context("starting `portcullis explain`")?;
        match answer.status.code() {
            Some(1) => return Ok(begin.elapsed()),
            Some(0) if begin.elapsed() < IN_FORCE => thread::sleep(Duration::from_millis(20)),
            Some(0) => bail!("the policy is not in force after {} s", IN_FORCE.as_secs()),
            _ => {
                let text = String::from_utf8_lossy(&answer.stderr);
                bail!("`portcullis explain` failed: {}: {}", answer.status, text.trim());
            }
        }
    }
}

/// Makes one connection that is denied, and returns the line that tells of it with its policy.
fn observe_one_drop(lab: &Standing<'_>) -> Result<String> {
    let mut command = lab.ask("observe");
    command.arg("--follow");
    let mut observer = Observer::start(&mut command)?;
    // What happened before it listens is not told again, and it does not say when it does: so a connection
    // every second until one is told.
    let connect = Connection::of_state()?;
    let deadline = Instant::now() + SEEN;
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(300));
        ensure!(!connect.attempt()?, "the backend reached the vault");
        if let Some(line) = observer.line_with(&[VAULT, POLICY], Duration::from_millis(500)) {
            return Ok(format!("$ {}\n{line}", sh::line(&command)));
        }
    }
    bail!("`portcullis observe` told of no drop by {POLICY}; it said:\n{}", observer.said.join("\n"))
}

/// A running `portcullis observe`; ended when it goes.
struct Observer {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Observer {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting `portcullis observe`")?;
        let stdout = child.stdout.take().context("observe without stdout")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, said: Vec::new() })
    }

    fn line_with(&mut self, words: &[&str], patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if words.iter().all(|w| line.contains(w)) {
                return Some(line);
            }
            self.said.push(line);
        }
        None
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// From the backend's namespace to the vault.
struct Connection {
    netns: String,
    address: String,
}

impl Connection {
    fn of_state() -> Result<Self> {
        let path = standing::dir(ID).join("state.json");
        let state = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let state: Value = serde_json::from_slice(&state).context("reading the lab's state")?;
        let pod = |name: &str| {
            let found = array(&state, "pods").iter().find(|p| text(p, "name") == name);
            found.ok_or_else(|| anyhow!("the lab has no pod {name}"))
        };
        let address = array(pod(VAULT)?, "addresses").first().and_then(Value::as_str);
        let address = address.context("the vault has no address")?.to_owned();
        Ok(Self { netns: text(pod(BACKEND)?, "netns"), address })
    }

    /// True if it was made, false if there was silence for a second.
    fn attempt(&self) -> Result<bool> {
        let net = format!("--net=/run/netns/{}", self.netns);
        let open = format!("exec 3<>/dev/tcp/{}/{VAULT_PORT}", self.address);
        let mut command = sh::command("timeout");
        command.args(["1", "nsenter", &net, "bash", "-c", &open]);
        let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status();
        Ok(status.context("starting timeout")?.success())
    }
}
