//! What should come out: matrices in the shape of `matrix -o json`, and single flows with ends that are no
//! pods. Read from files that were written by hand, or made from an oracle's cases.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use portcullis_agent::output::Verdict;
use portcullis_agent::verbs::ask::Family;
use portcullis_agent::verbs::matrix::Matrix;
use portcullis_oracle::cyclonus::Step;
use portcullis_oracle::{Traffic, World};
use serde::Deserialize;
use serde_json::Value;

use super::{State, data};

/// What should come out of one state.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Expected {
    /// Every pair, for each protocol and port.
    pub matrix: Vec<Matrix>,
    /// Beyond pairs of pods.
    #[serde(default)]
    pub flows: Vec<Flow>,
}

/// One flow, its ends as `explain` takes them: `NS/POD`, an address of the outside, `world`, or `node` as `from`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Flow {
    /// Who sends.
    pub from: String,
    /// To whom.
    pub to: String,
    /// `PROTO/PORT` or `ICMP`.
    pub traffic: String,
    /// By which family; where nothing is said, the address's, else IPv4.
    pub family: Option<Family>,
    /// Allowed or denied.
    pub verdict: Verdict,
}

impl From<&Step> for Expected {
    fn from(step: &Step) -> Self {
        let family = family_of(step.family);
        let matrix = |((protocol, port), rows): (&(String, u16), &Vec<String>)| Matrix {
            protocol: protocol.clone(),
            port: Some(*port),
            family,
            order: step.order.clone(),
            rows: rows.clone(),
            services: Vec::new(),
            service_rows: Vec::new(),
        };
        Self { matrix: step.expected.iter().map(matrix).collect(), flows: Vec::new() }
    }
}

impl Expected {
    /// What the oracle says of all pairs, in every family that any pod has.
    #[must_use]
    pub fn by_oracle(manifests: &[Value], traffics: &[Traffic]) -> Self {
        let world = World::new(manifests);
        let mut expected = Self::default();
        for family in [portcullis_oracle::Family::Ipv4, portcullis_oracle::Family::Ipv6] {
            let order = world.order(family);
            for traffic in traffics.iter().filter(|_| !order.is_empty()) {
                let (protocol, port) = match traffic {
                    Traffic::To(protocol, port) => (protocol.to_string(), Some(*port)),
                    Traffic::IcmpEcho => ("ICMP".to_owned(), None),
                };
                let rows = world.matrix(*traffic, family);
                let (family, order) = (family_of(family), order.clone());
                expected.matrix.push(Matrix {
                    protocol,
                    port,
                    family,
                    order,
                    rows,
                    services: Vec::new(),
                    service_rows: Vec::new(),
                });
            }
        }
        expected
    }
}

fn family_of(family: portcullis_oracle::Family) -> Family {
    match family {
        portcullis_oracle::Family::Ipv4 => Family::Ipv4,
        portcullis_oracle::Family::Ipv6 => Family::Ipv6,
    }
}

/// A published example: states that follow each other, and what should come out of each.
#[derive(Clone, Debug, Deserialize)]
pub struct Seed {
    /// What it is about.
    pub what: String,
    /// Its states.
    pub steps: Vec<SeedStep>,
}

/// A state of an example.
#[derive(Clone, Debug, Deserialize)]
pub struct SeedStep {
    /// Paths of its manifests, from `tests/data`.
    files: Vec<String>,
    /// What should come out.
    #[serde(flatten)]
    pub expected: Expected,
}

impl SeedStep {
    /// Its manifests.
    #[must_use]
    pub fn state(&self) -> State {
        State::of_files(&self.files)
    }
}

impl Seed {
    /// The example `tests/data/seeds/NAME.json`.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    #[must_use]
    pub fn load(name: &str) -> Self {
        let path = data().join("seeds").join(name).with_extension("json");
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Names of all examples.
    ///
    /// # Panics
    ///
    /// If they cannot be listed.
    #[must_use]
    pub fn names() -> BTreeSet<String> {
        let entries = fs::read_dir(data().join("seeds")).expect("the examples are there");
        let path = |entry: std::io::Result<fs::DirEntry>| entry.expect("the examples can be listed").path();
        let files = entries.map(path).filter(|path| path.extension().is_some_and(|e| e == "json"));
        files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    }

    /// Addresses that the outside has to hold for its flows.
    #[must_use]
    pub fn outside(&self) -> Vec<IpAddr> {
        let flows = self.steps.iter().flat_map(|step| &step.expected.flows);
        let ends: BTreeSet<&String> = flows.flat_map(|flow| [&flow.from, &flow.to]).collect();
        ends.into_iter().filter_map(|end| end.parse().ok()).collect()
    }
}
