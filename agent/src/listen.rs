//! Where the agent listens for probes and for Prometheus, and what it answers there.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use hyper::StatusCode;
use thiserror::Error;

use crate::health::Health;
use crate::http::{Page, Pages};
use crate::metrics::PolicyLabels;

/// Where probes ask, unless the agent is told otherwise.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9869);

/// Why there is no listener.
#[derive(Debug, Error)]
#[error("{flag} {at}: {cause}: choose another address, or stop who listens there")]
pub struct ListenError {
    flag: &'static str,
    at: At,
    cause: io::Error,
}

/// `ADDRESS:PORT`, or `:PORT` for every address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// One.
    Address(SocketAddr),
    /// All.
    Everywhere(u16),
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let everywhere = text.strip_prefix(':').and_then(|port| port.parse().ok()).map(Self::Everywhere);
        let address = || text.parse().ok().map(Self::Address);
        everywhere.or_else(address).ok_or_else(|| "write ADDRESS:PORT or :PORT".to_owned())
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Everywhere(port) => write!(f, ":{port}"),
        }
    }
}

impl At {
    fn bind(self) -> io::Result<TcpListener> {
        match self {
            Self::Address(address) => TcpListener::bind(address),
            // A host without IPv6 has no such address.
            Self::Everywhere(port) => TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|error| {
                if error.kind() == io::ErrorKind::AddrInUse {
                    Err(error)
                } else {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                }
            }),
        }
    }
}

/// `--health-listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthListen {
    /// Nowhere.
    Off,
    /// There.
    At(At),
}

impl FromStr for HealthListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| "write ADDRESS:PORT, :PORT or off".to_owned())
    }
}

/// Where the agent listens.
#[derive(Clone, Debug, Default, Args)]
pub struct ListenArgs {
    /// Where /livez and /readyz are answered; `off`: nowhere [default: 127.0.0.1:9869]
    #[arg(long, value_name = "ADDRESS:PORT", env = "PORTCULLIS_HEALTH_LISTEN")]
    health_listen: Option<HealthListen>,
    /// Where /metrics is answered, for Prometheus [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT", env = "PORTCULLIS_METRICS_LISTEN")]
    metrics_listen: Option<At>,
    /// Count rules under the names of their policies in /metrics
    #[arg(long, env = "PORTCULLIS_METRICS_POLICY_LABELS", requires = "metrics_listen")]
    metrics_policy_labels: bool,
}

impl ListenArgs {
    /// The listener for probes. The default address may be another agent's on this host: that is logged. One that
    /// was asked for has to be free.
    pub fn health(&self) -> Result<Option<TcpListener>, ListenError> {
        let flag = "--health-listen";
        match self.health_listen {
            Some(HealthListen::Off) => Ok(None),
            Some(HealthListen::At(at)) => {
                at.bind().map(Some).map_err(|cause| ListenError { flag, at, cause })
            }
            None => Ok(TcpListener::bind(HEALTH)
                .inspect_err(|cause| {
                    tracing::warn!("no health endpoint on {HEALTH}: {cause}: choose one by {flag}");
                })
                .ok()),
        }
    }

    /// The listener for Prometheus, where one was asked for.
    pub fn metrics(&self) -> Result<Option<TcpListener>, ListenError> {
        let listen = |at: At| at.bind().map_err(|cause| ListenError { flag: "--metrics-listen", at, cause });
        self.metrics_listen.map(listen).transpose()
    }

    /// Whether metrics name policies.
    #[must_use]
    pub const fn policy_labels(&self) -> PolicyLabels {
        if self.metrics_policy_labels { PolicyLabels::On } else { PolicyLabels::Off }
    }
}

/// `/livez` and `/readyz`.
#[derive(Clone, Debug)]
pub struct HealthPages(pub Arc<Health>);

impl Pages for HealthPages {
    fn page(&self, path: &str) -> Option<Page> {
        let reasons: Vec<String> = match path {
            "/livez" => self.0.dead().into_iter().collect(),
            "/readyz" => self.0.not_ready(),
            _ => return None,
        };
        Some(if reasons.is_empty() {
            Page::text(StatusCode::OK, "ok\n".to_owned())
        } else {
            Page::text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_they_are_written() {
        assert_eq!(":9870".parse(), Ok(At::Everywhere(9870)));
        assert_eq!("[::1]:1".parse(), Ok(At::Address((Ipv6Addr::LOCALHOST, 1).into())));
        assert_eq!("off".parse(), Ok(HealthListen::Off));
        for text in ["9870", "localhost:1", ":x", "", "127.0.0.1"] {
            assert!(text.parse::<At>().is_err() && text.parse::<HealthListen>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_that_is_taken_is_an_error_where_it_was_asked_for() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = At::Address(taken.local_addr().unwrap());
        let args = ListenArgs {
            health_listen: Some(HealthListen::At(at)),
            metrics_listen: Some(at),
            metrics_policy_labels: false,
        };
        let error = args.health().unwrap_err().to_string();
        assert!(error.starts_with(&format!("--health-listen {at}: ")), "{error}");
        assert!(args.metrics().is_err());
        drop(taken);
        assert!(args.health().unwrap().is_some());
    }

    #[test]
    fn nothing_listens_where_nothing_was_asked_for() {
        let args = ListenArgs { health_listen: Some(HealthListen::Off), ..ListenArgs::default() };
        assert!(args.health().unwrap().is_none() && args.metrics().unwrap().is_none());
    }

    #[test]
    fn probes_are_answered_with_reasons() {
        let health = Arc::new(Health::new("/".into()));
        let pages = HealthPages(Arc::clone(&health));
        assert_eq!(pages.page("/livez").unwrap().status, StatusCode::OK);
        let unready = pages.page("/readyz").unwrap();
        assert_eq!(unready.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(unready.body, "nothing has been reconciled yet\n");
        health.reconciled(0, None);
        assert_eq!(pages.page("/readyz").unwrap().status, StatusCode::OK);
        assert_eq!(pages.page("/metrics"), None);
    }
}
