//! `observe`: verdicts as they fall.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use portcullis_policy::convert::printable;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::api::client::{self, Asked};
use crate::api::{Observed, ObservedVerdict, Observing, PodName, Request};
use crate::output::{self, Colour, Exit};

/// How verdicts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// To be read by people.
    Text(Colour),
    /// A JSON object each.
    Json,
}

/// Why the lines ended.
enum End {
    /// As many as wanted, or nobody reads on.
    Enough,
    /// The agent went.
    Closed,
}

/// Prints until it is interrupted, or `count` verdicts were printed.
pub fn observe(run_dir: &Path, lines: Lines, count: Option<u64>) -> Result<Exit, Failure> {
    let mut asked = client::ask(run_dir, &Request::Observe)?;
    let Some(Observing { observing }) = asked.next()? else {
        return Ok(closed());
    };
    asked.wait_for_ever()?;
    let node = observing.map(|node| format!(" of node {}", printable(&node))).unwrap_or_default();
    output::note(format_args!("verdicts{node} from now on; times are UTC"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::System)?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::System)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::System)?;
        let printing = tokio::task::spawn_blocking(move || print_all(asked, lines, count));
        tokio::select! {
            _ = terminate.recv() => Ok(End::Enough),
            _ = interrupt.recv() => Ok(End::Enough),
            ended = printing => ended.map_err(|error| Failure::System(io::Error::other(error)))?,
        }
    });
    // The printing thread may sit in a read that nothing ends.
    runtime.shutdown_background();
    match ended? {
        End::Enough => Ok(Exit::Fine),
        End::Closed => Ok(closed()),
    }
}

fn closed() -> Exit {
    output::note("the agent closed the connection: it ended or starts again; observe again when it is back");
    Exit::Unfit
}

fn print_all(mut asked: Asked, lines: Lines, count: Option<u64>) -> Result<End, Failure> {
    let mut left = count;
    while left != Some(0) {
        let Some(observed) = asked.next::<Observed>()? else { return Ok(End::Closed) };
        let text = match lines {
            Lines::Text(colour) => line(&observed, colour),
            Lines::Json => serde_json::to_string(&observed).map_err(|e| Failure::Output(e.into()))?,
        };
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Enough),
            written => written.map_err(Failure::Output)?,
        }
        match observed {
            Observed::Verdict(_) => left = left.map(|left| left - 1),
            Observed::Lost { .. } => {}
        }
    }
    Ok(End::Enough)
}

/// One line for people.
#[must_use]
pub fn line(observed: &Observed, colour: Colour) -> String {
    let verdict = match observed {
        Observed::Lost { lost } => {
            return format!("{lost} verdicts were lost: they fell faster than they were read");
        }
        Observed::Verdict(verdict) => verdict.as_ref(),
    };
    let (from, to) = match verdict.direction.as_str() {
        "egress" => (&verdict.pod, &verdict.peer),
        _ => (&verdict.peer, &verdict.pod),
    };
    let word = if verdict.enforced { verdict.verdict.shout() } else { "AUDIT" };
    let shout = format!("{word:5}");
    let mut text = format!(
        "{} {} {:7} {} -> {} {} {} > {} {}",
        clock(&verdict.time),
        colour.paint(verdict.verdict, &shout),
        verdict.direction,
        name(from.as_ref(), verdict.source),
        name(to.as_ref(), verdict.destination),
        verdict.protocol,
        address(verdict.source, verdict.source_port),
        address(verdict.destination, verdict.destination_port),
        verdict.reason,
    );
    attribute(verdict, &mut text);
    text
}

fn attribute(verdict: &ObservedVerdict, text: &mut String) {
    let Some(policy) = &verdict.policy else { return };
    // Writing to a string cannot fail.
    let _ = write!(text, " {}", policy.label());
    if let Some(rule) = verdict.rule {
        let _ = write!(text, " spec.{}[{rule}]", verdict.direction);
    }
}

/// `12:01:02.345` of RFC 3339.
fn clock(time: &str) -> &str {
    time.split_once('T').and_then(|(_, clock)| clock.get(..12)).unwrap_or(time)
}

fn name(pod: Option<&PodName>, address: IpAddr) -> String {
    pod.map_or_else(|| address.to_string(), |pod| printable(&format!("{}/{}", pod.namespace, pod.name)))
}

fn address(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Verdict;
    use crate::verbs::explain::PolicyRef;

    fn verdict(direction: &str) -> ObservedVerdict {
        let pod = |name: &str| PodName { namespace: "project-snake".to_owned(), name: name.to_owned() };
        let (pod, peer) = match direction {
            "egress" => (pod("backend-0"), pod("vault-0")),
            _ => (pod("vault-0"), pod("backend-0")),
        };
        ObservedVerdict {
            time: "2026-01-02T12:01:02.345678901Z".to_owned(),
            verdict: Verdict::Deny,
            enforced: true,
            direction: direction.to_owned(),
            reason: "isolated".to_owned(),
            pod: Some(pod),
            peer: Some(peer),
            source: IpAddr::from([10, 244, 0, 5]),
            source_port: Some(49_152),
            destination: IpAddr::from([10, 244, 0, 6]),
            destination_port: Some(3333),
            protocol: "TCP".to_owned(),
            tcp_flags: Some(2),
            bytes: 60,
            policy: Some(PolicyRef {
                kind: "NetworkPolicy".to_owned(),
                namespace: "project-snake".to_owned(),
                name: "np-backend".to_owned(),
            }),
            rule: None,
            node: None,
        }
    }

    #[test]
    fn a_drop_names_pods_and_policy() {
        let text = line(&Observed::Verdict(Box::new(verdict("egress"))), Colour::Plain);
        assert_eq!(
            text,
            "12:01:02.345 DENY  egress  project-snake/backend-0 -> project-snake/vault-0 TCP 10.244.0.5:49152 > \
             10.244.0.6:3333 isolated NetworkPolicy project-snake/np-backend"
        );
    }

    #[test]
    fn ingress_is_told_from_sender_to_receiver_with_its_rule() {
        let text = line(
            &Observed::Verdict(Box::new(ObservedVerdict { rule: Some(1), peer: None, ..verdict("ingress") })),
            Colour::Plain,
        );
        assert!(text.contains("ingress 10.244.0.5 -> project-snake/vault-0 TCP"), "{text}");
        assert!(text.ends_with("np-backend spec.ingress[1]"), "{text}");
    }

    #[test]
    fn a_loss_is_said() {
        assert!(line(&Observed::Lost { lost: 7 }, Colour::Plain).starts_with("7 verdicts were lost"));
    }
}
