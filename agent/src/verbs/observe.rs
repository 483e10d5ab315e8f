//! `observe`: verdicts that fell, and verdicts as they fall.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use clap::Args;
use clap::builder::PossibleValuesParser;
use portcullis_common::event::Reason;
use portcullis_policy::convert::printable;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::api::client::{self, Asked};
use crate::api::{ObserveRequest, Observed, ObservedVerdict, Observing, PodName, Request, Told};
use crate::observe::filter::{Came, EndText, Filter, LabelText, NameText, ProtocolText};
use crate::observe::fold::Folding;
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

/// The filters of the command line.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters (each narrows; of several values of one, any fits)")]
pub struct FilterArgs {
    /// Only what was allowed, what was denied, or of that what passed nevertheless
    #[arg(long)]
    verdict: Option<Came>,
    /// Towards the pod, or from it
    #[arg(long, value_parser = PossibleValuesParser::new(["ingress", "egress"]))]
    direction: Option<String>,
    /// At either end: NAMESPACE/POD, an address or a CIDR
    #[arg(long, value_name = "END", value_delimiter = ',')]
    pod: Vec<EndText>,
    /// Who sends, as --pod
    #[arg(long, value_name = "END", value_delimiter = ',')]
    from: Vec<EndText>,
    /// To whom, as --pod
    #[arg(long, value_name = "END", value_delimiter = ',')]
    to: Vec<EndText>,
    /// Namespace of a pod at either end
    #[arg(short, long, value_name = "NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Label of a pod at either end, when the verdict fell; of several, one pod has all
    #[arg(short, long, value_name = "KEY=VALUE", value_delimiter = ',')]
    label: Vec<LabelText>,
    /// The destination's port
    #[arg(long, value_name = "N", value_delimiter = ',')]
    port: Vec<u16>,
    /// TCP, UDP, SCTP, ICMP, ICMPv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    protocol: Vec<ProtocolText>,
    /// The policy of the rule or isolation that decided: NAMESPACE/NAME, or HostPolicy/NAME
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_name = "POLICY", value_delimiter = ',')]
    policy: Vec<NameText>,
    /// Why; `portcullis explain --help` lists them
    #[arg(long, value_name = "REASON", value_delimiter = ',', hide_possible_values = true,
          value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.name())))]
    reason: Vec<String>,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        Self {
            verdict: args.verdict,
            direction: args.direction,
            pods: args.pod,
            from: args.from,
            to: args.to,
            namespaces: args.namespace,
            labels: args.label,
            ports: args.port,
            protocols: args.protocol,
            policies: args.policy,
            reasons: args.reason,
        }
    }
}

/// Lines of the past without `--last`, where nothing follows; as `kubectl logs` of one's own eyes, a screenful.
const LAST: u64 = 20;

/// What of the past and of the future is wanted.
#[derive(Clone, Copy, Debug, Args)]
pub struct WhenArgs {
    /// Go on with verdicts as they fall, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N lines of those that fell [default: 20, with --follow 0]
    #[arg(long, value_name = "N")]
    last: Option<u64>,
    /// A line for each verdict; else repeats within half a second are one line with a count
    #[arg(long)]
    no_fold: bool,
    /// End after this many lines
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Prints what was asked for; with `--follow` until it is interrupted.
pub fn observe(run_dir: &Path, lines: Lines, when: WhenArgs, filter: FilterArgs) -> Result<Exit, Failure> {
    let WhenArgs { follow, last, no_fold, count } = when;
    let last = last.unwrap_or(if follow { 0 } else { LAST });
    let folding = if no_fold { Folding::Each } else { Folding::Fold };
    let request = ObserveRequest { filter: filter.into(), last, follow, folding };
    let mut asked = client::ask(run_dir, &Request::Observe(request))?;
    let Some(Observing { observing }) = asked.next()? else {
        return Ok(closed());
    };
    asked.wait_for_ever()?;
    let node = observing.map(|node| format!(" of node {}", printable(&node))).unwrap_or_default();
    let since = if follow && last == 0 { " from now on" } else { "" };
    output::note(format_args!("verdicts{node}{since}; times are UTC"));
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
        let observed = match asked.next::<Told>()? {
            None => return Ok(End::Closed),
            Some(Told::End { .. }) => return Ok(End::Enough),
            Some(Told::Observed(observed)) => observed,
        };
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
    if let Some(via) = &verdict.via {
        let asked = SocketAddr::new(via.address, via.port);
        // Writing to a string cannot fail.
        let _ = match &via.service {
            Some(PodName { namespace, name }) => {
                write!(text, " via svc/{} {asked}", printable(&format!("{namespace}/{name}")))
            }
            None => write!(text, " via {asked}"),
        };
    }
    if verdict.count > 1 {
        // Writing to a string cannot fail.
        let _ = write!(text, " ({} times until {})", verdict.count, clock(&verdict.last_time));
    }
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
    use crate::api::Via;
    use crate::verbs::explain::PolicyRef;

    fn verdict(direction: &str) -> ObservedVerdict {
        let pod = |name: &str| PodName { namespace: "project-snake".to_owned(), name: name.to_owned() };
        let (pod, peer) = match direction {
            "egress" => (pod("backend-0"), pod("vault-0")),
            _ => (pod("vault-0"), pod("backend-0")),
        };
        ObservedVerdict {
            time: "2026-01-02T12:01:02.345678901Z".to_owned(),
            last_time: "2026-01-02T12:01:02.745678901Z".to_owned(),
            count: 1,
            verdict: crate::output::Verdict::Deny,
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
                namespace: Some("project-snake".to_owned()),
                name: "np-backend".to_owned(),
            }),
            rule: None,
            node: None,
            via: None,
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
    fn repeats_are_said() {
        let folded = ObservedVerdict { count: 3, ..verdict("egress") };
        let text = line(&Observed::Verdict(Box::new(folded)), Colour::Plain);
        assert!(text.ends_with("np-backend (3 times until 12:01:02.745)"), "{text}");
    }

    #[test]
    fn a_service_is_said_beside_its_backend() {
        let service = PodName { namespace: "project-snake".to_owned(), name: "vault".to_owned() };
        let via = Via { address: IpAddr::from([10, 96, 0, 9]), port: 80, service: Some(service) };
        let text = |via| {
            line(
                &Observed::Verdict(Box::new(ObservedVerdict { via: Some(via), ..verdict("egress") })),
                Colour::Plain,
            )
        };
        let unknown = text(Via { service: None, ..via.clone() });
        assert!(unknown.ends_with("np-backend via 10.96.0.9:80"), "{unknown}");
        let named = text(via);
        assert!(named.ends_with("np-backend via svc/project-snake/vault 10.96.0.9:80"), "{named}");
    }

    #[test]
    fn a_loss_is_said() {
        assert!(line(&Observed::Lost { lost: 7 }, Colour::Plain).starts_with("7 verdicts were lost"));
    }
}
