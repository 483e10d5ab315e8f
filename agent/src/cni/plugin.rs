//! The plugin: what a container runtime runs for each pod, behind the primary plugin. It closes the pod's interface and
//! waits until the agent enforces it; what the primary made is passed on in its own bytes. It decides nothing.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::conf::{Conf, NEWEST, Previous, VERSIONS, WhenUnavailable, pod_name};
use super::error::{CniError, Code};
use super::host::host_side;
use crate::api::cni::{Attachment, CniAnswer, CniRequest, Made};
use crate::api::{Request, socket};

/// The largest configuration that is read: results of real chains have some kilobytes.
const MAX_INPUT: u64 = 16 << 20;
/// The longest answer of the agent.
const MAX_ANSWER: u64 = 1 << 20;
/// Between two looks for an agent that is not there.
const PAUSE: Duration = Duration::from_millis(50);
/// So long before its own time is over the plugin has the agent's last word.
const MARGIN: Duration = Duration::from_millis(300);
/// How long the agent may take for what needs no waiting.
const SOON: Duration = Duration::from_secs(3);

/// What the runtime put into the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Environment {
    fn read() -> Self {
        let variable = |name: &str| env::var(name).unwrap_or_default();
        Self {
            command: variable("CNI_COMMAND"),
            container: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            ifname: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
        }
    }

    fn attachment(&self) -> Result<Attachment, CniError> {
        for (name, value) in [("CNI_CONTAINERID", &self.container), ("CNI_IFNAME", &self.ifname)] {
            if value.is_empty() {
                return Err(missing(name));
            }
        }
        Ok(Attachment { container: self.container.clone(), ifname: self.ifname.clone() })
    }
}

fn missing(variable: &str) -> CniError {
    CniError::new(
        Code::InvalidEnvironment,
        format!("{variable} is missing in the environment"),
        "the plugin is run by a container runtime, not by hand",
    )
}

/// Does what the environment and stdin say, and answers on stdout.
#[must_use]
pub fn main() -> ExitCode {
    let mut input = String::new();
    let read = io::stdin().lock().take(MAX_INPUT).read_to_string(&mut input);
    let (answer, exit) = match read {
        Ok(_) => match run(&Environment::read(), &input) {
            Ok(answer) => (answer, ExitCode::SUCCESS),
            Err(error) => (error.json(&spoken(&input)), ExitCode::FAILURE),
        },
        Err(error) => {
            let error = CniError::new(
                Code::InputOutput,
                format!("the configuration on stdin cannot be read ({error})"),
                "the plugin is run by a container runtime, not by hand",
            );
            (error.json(NEWEST), ExitCode::FAILURE)
        }
    };
    let mut stdout = io::stdout().lock();
    if stdout.write_all(answer.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        return ExitCode::FAILURE;
    }
    exit
}

/// The version to answer in: the runtime's, if it says one that can be read.
fn spoken(input: &str) -> String {
    let value: Option<Value> = serde_json::from_str(input).ok();
    let version = value.as_ref().and_then(|conf| conf.get("cniVersion")).and_then(Value::as_str);
    version.unwrap_or(NEWEST).to_owned()
}

/// One call of the plugin: what it prints, or why it fails.
pub fn run(environment: &Environment, input: &str) -> Result<String, CniError> {
    match environment.command.as_str() {
        "VERSION" => {
            let version = spoken(input);
            Ok(json!({"cniVersion": version, "supportedVersions": VERSIONS}).to_string())
        }
        "ADD" => add(environment, &Conf::read(input)?),
        "DEL" => del(environment, &Conf::read(input)?),
        "CHECK" => check(environment, &Conf::read(input)?),
        "GC" => gc(&Conf::read(input)?),
        "STATUS" => status(&Conf::read(input)?),
        "" => Err(missing("CNI_COMMAND")),
        other => Err(CniError::new(
            Code::InvalidEnvironment,
            format!("CNI_COMMAND `{other}` is not known"),
            "known are ADD, DEL, CHECK, GC, STATUS and VERSION",
        )),
    }
}

fn add(environment: &Environment, conf: &Conf) -> Result<String, CniError> {
    let deadline = Instant::now() + conf.timeout;
    let attachment = environment.attachment()?;
    if environment.netns.is_empty() {
        return Err(missing("CNI_NETNS"));
    }
    let previous = conf.previous()?;
    let made = made(environment, conf, &previous, attachment)?;
    let passed_on = conf.previous.as_ref().map(|raw| raw.get().to_owned()).unwrap_or_default();
    match bounded(socket(&conf.run_dir), made.clone(), deadline) {
        Held::Enforced => Ok(passed_on),
        Held::Refused(why) => {
            Err(CniError::new(Code::NotEnforceable, why, "see `portcullis status` on this node"))
        }
        Held::Waited(why) => Err(CniError::new(
            Code::TryAgainLater,
            format!(
                "{}/{} is not enforced after {} s ({why})",
                made.namespace,
                made.pod,
                conf.timeout.as_secs()
            ),
            "its start is tried again; see `portcullis status` on this node",
        )),
        Held::Nobody(why) => match conf.when_unavailable {
            WhenUnavailable::Allow => Ok(passed_on),
            WhenUnavailable::Deny => Err(unavailable(Code::TryAgainLater, conf, &why)),
        },
    }
}

fn unavailable(code: Code, conf: &Conf, why: &str) -> CniError {
    CniError::new(
        code,
        format!("no agent answers on {} ({why})", socket(&conf.run_dir).display()),
        "look at the portcullis pod of this node and its log; `portcullis cni remove` lets pods start without it",
    )
}

/// What the agent is told.
fn made(
    environment: &Environment,
    conf: &Conf,
    previous: &Previous,
    attachment: Attachment,
) -> Result<Made, CniError> {
    let pod = pod_name(&environment.args)?;
    let host = host_side(previous, Path::new(&environment.netns), &environment.ifname)?;
    Ok(Made {
        network: conf.name.clone(),
        attachment,
        namespace: pod.namespace,
        pod: pod.name,
        uid: pod.uid,
        interface: host.interface,
        name: host.name,
        station: host.station,
        addresses: previous.addresses(&environment.ifname)?,
    })
}

/// What became of a request to hold an interface.
enum Held {
    Enforced,
    /// The agent says that it never will be.
    Refused(String),
    /// The agent was there, and it was not enforced in time.
    Waited(String),
    /// The agent never was there.
    Nobody(String),
}

/// Holds on a thread of its own: a socket whose queue is full lets nobody connect, and tells nobody.
fn bounded(socket: PathBuf, made: Made, deadline: Instant) -> Held {
    let (send, receive) = channel();
    // The process ends when the answer is known; so does the thread.
    thread::spawn(move || send.send(hold(&socket, &made, deadline)));
    let left = deadline.saturating_duration_since(Instant::now()).saturating_add(MARGIN);
    let stuck = || Held::Waited("the agent takes no calls: look at its log, and restart it".to_owned());
    receive.recv_timeout(left).unwrap_or_else(|_| stuck())
}

/// Asks again until the deadline: an agent that is being replaced comes back, and knows what it was told.
fn hold(socket: &Path, made: &Made, deadline: Instant) -> Held {
    let mut waited = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = left.saturating_sub(MARGIN).as_millis();
        let request = CniRequest::Hold {
            made: Box::new(made.clone()),
            patience_ms: u64::try_from(patience).unwrap_or(u64::MAX),
        };
        let why = match ask(socket, request, left) {
            Ok(CniAnswer::Done) => return Held::Enforced,
            Ok(CniAnswer::Refused { why }) => return Held::Refused(why),
            Ok(CniAnswer::Waiting { why }) => {
                waited = Some(why.clone());
                why
            }
            Err(Failure { why, was_there }) => {
                if was_there {
                    waited.get_or_insert_with(|| why.clone());
                }
                why
            }
        };
        // Nobody could be given time to look: the last word stands.
        if deadline.saturating_duration_since(Instant::now()) <= MARGIN {
            return waited.map_or(Held::Nobody(why), Held::Waited);
        }
        thread::sleep(PAUSE);
    }
}

/// Why there is no answer.
struct Failure {
    why: String,
    /// Somebody took the call.
    was_there: bool,
}

/// Sends a request and reads its answer, within so long.
fn ask(socket: &Path, request: CniRequest, within: Duration) -> Result<CniAnswer, Failure> {
    let nobody = |error: io::Error| Failure { why: error.to_string(), was_there: false };
    let stream = UnixStream::connect(socket).map_err(nobody)?;
    converse(stream, request, within).map_err(|why| Failure { why, was_there: true })
}

fn converse(mut stream: UnixStream, request: CniRequest, within: Duration) -> Result<CniAnswer, String> {
    // Zero would be for ever.
    let within = within.max(PAUSE);
    let mut line = serde_json::to_vec(&Request::Cni(request)).map_err(|error| error.to_string())?;
    line.push(b'\n');
    let sent = stream
        .set_read_timeout(Some(within))
        .and_then(|()| stream.set_write_timeout(Some(within)))
        .and_then(|()| stream.write_all(&line));
    sent.map_err(|error| format!("the agent does not listen: {error}"))?;
    let mut answer = Vec::new();
    let read = BufReader::new(stream).take(MAX_ANSWER).read_until(b'\n', &mut answer);
    match read {
        Ok(0) => return Err("the agent ended while the pod waited".to_owned()),
        Ok(_) => {}
        Err(error) => return Err(format!("the agent does not answer: {error}")),
    }
    serde_json::from_slice(&answer).map_err(|_| {
        let said = String::from_utf8_lossy(&answer);
        format!("the agent is not of this plugin's version, it answers {}", said.trim_end())
    })
}

/// Ends well whatever happens: the agent also forgets an interface that is gone.
fn del(environment: &Environment, conf: &Conf) -> Result<String, CniError> {
    let attachment = environment.attachment()?;
    // Without an agent there is nobody to tell.
    let _ = ask(&socket(&conf.run_dir), CniRequest::Release(attachment), SOON);
    Ok(String::new())
}

fn check(environment: &Environment, conf: &Conf) -> Result<String, CniError> {
    let attachment = environment.attachment()?;
    conf.previous()?;
    match ask(&socket(&conf.run_dir), CniRequest::Check(attachment), SOON) {
        Ok(CniAnswer::Done) => Ok(String::new()),
        Ok(CniAnswer::Waiting { why } | CniAnswer::Refused { why }) => {
            Err(CniError::new(Code::NotEnforced, why, "see `portcullis status` on this node"))
        }
        // What is in force stays in force without an agent, so that is no finding where pods may start without one.
        Err(Failure { why, .. }) => match conf.when_unavailable {
            WhenUnavailable::Allow => Ok(String::new()),
            WhenUnavailable::Deny => Err(unavailable(Code::TryAgainLater, conf, &why)),
        },
    }
}

fn gc(conf: &Conf) -> Result<String, CniError> {
    let Some(valid) = conf.valid.clone() else {
        return Err(CniError::new(
            Code::InvalidConfiguration,
            "cni.dev/valid-attachments is missing",
            "the plugin is run by a container runtime, not by hand",
        ));
    };
    let request = CniRequest::Retain { network: conf.name.clone(), valid };
    // The agent also forgets interfaces that are gone.
    let _ = ask(&socket(&conf.run_dir), request, SOON);
    Ok(String::new())
}

fn status(conf: &Conf) -> Result<String, CniError> {
    let path: PathBuf = socket(&conf.run_dir);
    match (ask(&path, CniRequest::Ready, SOON), conf.when_unavailable) {
        (Ok(CniAnswer::Done), _) | (Err(_), WhenUnavailable::Allow) => Ok(String::new()),
        (Ok(CniAnswer::Waiting { why } | CniAnswer::Refused { why }), _) => {
            Err(CniError::new(Code::Unavailable, why, "see `portcullis status` on this node"))
        }
        (Err(Failure { why, .. }), WhenUnavailable::Deny) => Err(unavailable(Code::Unavailable, conf, &why)),
    }
}

#[cfg(test)]
#[path = "plugin_tests.rs"]
mod tests;
