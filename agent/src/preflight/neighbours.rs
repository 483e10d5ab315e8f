//! Who else is on the node: programs and filters on the interfaces of this network namespace, other engines of
//! NetworkPolicy, the node-local DNS cache. Facts of the kernel only: what processes run says less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::attach::foreign::{Foreign, addresses, chains, devices, foreign};
use crate::bpf::programs::{Program, Symbols, program};

/// The address that the node-local DNS cache listens on by default, and the device that holds it (its manifest in
/// `cluster/addons/dns/nodelocaldns` of Kubernetes).
pub const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
const NODE_LOCAL_DNS_DEVICE: &str = "nodelocaldns";

/// Where a bpffs is mounted by habit.
const BPFFS: &str = "/sys/fs/bpf";

/// Where engines keep pins, below a bpffs.
const PIN_DIRS: [&str; 3] = ["", "globals", "tc/globals"];

/// An engine of NetworkPolicy, and the names by which it is known.
struct Engine {
    name: &'static str,
    programs: &'static [&'static str],
    interfaces: &'static [&'static str],
    pins: &'static [&'static str],
    chains: &'static [&'static str],
}

/// Engines by the beginnings of what they make, as their sources and documents name it.
const ENGINES: [Engine; 7] = [
    Engine {
        name: "Cilium",
        programs: &["cil_"],
        interfaces: &["cilium_"],
        pins: &["cilium"],
        chains: &["CILIUM_"],
    },
    Engine {
        name: "Calico",
        programs: &["cali_", "calico_"],
        interfaces: &["cali"],
        pins: &["cali"],
        chains: &["cali-"],
    },
    Engine { name: "Antrea", programs: &[], interfaces: &["antrea-"], pins: &[], chains: &["ANTREA-"] },
    Engine {
        name: "kube-router",
        programs: &[],
        interfaces: &["kube-bridge", "kube-dummy-if"],
        pins: &[],
        chains: &["KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-"],
    },
    Engine { name: "Weave Net", programs: &[], interfaces: &["weave"], pins: &[], chains: &["WEAVE-NPC"] },
    Engine {
        name: "the AWS network policy agent",
        programs: &[],
        interfaces: &[],
        pins: &["aws"],
        chains: &[],
    },
    Engine {
        name: "kube-network-policies",
        programs: &[],
        interfaces: &[],
        pins: &[],
        chains: &["kube-network-policies/", "kindnet-network-policies/"],
    },
];

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thoroughness {
    /// What a starting agent waits for: programs, interfaces, pins.
    Start,
    /// Chains of the packet filter too.
    Full,
}

/// Everybody who was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Programs and filters of others.
    pub foreign: Vec<Foreign>,
    /// What is known of each program among them.
    pub programs: BTreeMap<u32, Program>,
    /// Other engines, and what gave each away.
    pub engines: BTreeMap<&'static str, BTreeSet<String>>,
    /// What gave the node-local DNS cache away.
    pub node_local_dns: Option<String>,
}

impl Neighbours {
    /// Looks at the network namespace of the calling thread.
    pub fn gather(bpffs: &Path, thoroughness: Thoroughness) -> Result<Self, String> {
        let devices = devices().map_err(|error| error.to_string())?;
        let foreign = foreign(&devices, &super::links(bpffs)).map_err(|error| error.to_string())?;
        let ids: BTreeSet<u32> = foreign.iter().filter_map(|one| one.program).collect();
        // A table of some 100,000 lines.
        let symbols = match thoroughness {
            Thoroughness::Start if ids.is_empty() => Symbols::default(),
            Thoroughness::Start | Thoroughness::Full => Symbols::read().unwrap_or_default(),
        };
        let programs = ids.into_iter().map(|id| (id, program(id, &symbols))).collect();
        let mut found = Self { foreign, programs, ..Self::default() };
        let names: Vec<String> = devices.iter().map(|device| device.name.clone()).collect();
        // Asking a kernel without nf_tables could load it.
        let chains = match thoroughness {
            Thoroughness::Full if symbols.has_nf_tables() => chains().unwrap_or_default(),
            Thoroughness::Full | Thoroughness::Start => BTreeSet::new(),
        };
        found.tell_engines(&names, &pins(bpffs), &chains);
        found.node_local_dns = match addresses() {
            Ok(addresses) if addresses.contains(&NODE_LOCAL_DNS) => Some(format!("address {NODE_LOCAL_DNS}")),
            Ok(_) | Err(_) => {
                let device = names.iter().find(|name| *name == NODE_LOCAL_DNS_DEVICE);
                device.map(|name| format!("interface {name}"))
            }
        };
        Ok(found)
    }

    /// What a program or filter is called: by the kernel, else by the filter.
    #[must_use]
    pub fn name_of<'a>(&'a self, one: &'a Foreign) -> Option<&'a str> {
        let program =
            one.program.and_then(|id| self.programs.get(&id)).and_then(|program| program.name.as_deref());
        program.filter(|name| !name.is_empty()).or(one.label.as_deref())
    }

    /// The engine that a program's or a filter's name belongs to.
    #[must_use]
    pub fn engine_of(&self, one: &Foreign) -> Option<&'static str> {
        let program =
            one.program.and_then(|id| self.programs.get(&id)).and_then(|program| program.name.as_deref());
        [program, one.label.as_deref()].into_iter().flatten().find_map(|name| {
            ENGINES.iter().find(|engine| begins(name, engine.programs)).map(|engine| engine.name)
        })
    }

    /// An engine on this node whose programs may redirect: whose a program without a name may be.
    #[must_use]
    pub fn suspect(&self) -> Option<&'static str> {
        let redirects = |name: &&'static str| {
            ENGINES.iter().any(|engine| engine.name == *name && !engine.programs.is_empty())
        };
        self.engines.keys().copied().find(redirects)
    }

    fn tell_engines(&mut self, devices: &[String], pins: &[String], chains: &BTreeSet<String>) {
        let mut engines: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        for one in &self.foreign {
            if let (Some(engine), Some(name)) = (self.engine_of(one), self.name_of(one)) {
                engines.entry(engine).or_default().insert(format!("program {name} on {}", one.interface));
            }
        }
        for engine in &ENGINES {
            let clues = devices
                .iter()
                .find(|name| begins(name, engine.interfaces))
                .map(|name| format!("interface {name}"))
                .into_iter()
                .chain(pins.iter().find(|pin| is_pin(pin, engine)).map(|pin| format!("pin {pin}")))
                .chain(
                    chains.iter().find(|chain| is_chain(chain, engine)).map(|chain| format!("chain {chain}")),
                );
            let clues: Vec<String> = clues.collect();
            if !clues.is_empty() {
                engines.entry(engine.name).or_default().extend(clues);
            }
        }
        self.engines = engines;
    }
}

/// Names where engines pin: in our bpffs, and in the usual one.
fn pins(bpffs: &Path) -> Vec<String> {
    let mut found = BTreeSet::new();
    for dir in [bpffs, Path::new(BPFFS)].into_iter().flat_map(|root| PIN_DIRS.map(|dir| root.join(dir))) {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        let paths = entries.flatten().map(|entry| entry.path());
        found.extend(paths.map(|path| path.to_string_lossy().into_owned()));
    }
    found.into_iter().collect()
}

fn is_pin(pin: &str, engine: &Engine) -> bool {
    begins(pin.rsplit('/').next().unwrap_or_default(), engine.pins)
}

/// A chain is `TABLE/CHAIN`; an engine may be known by either.
fn is_chain(chain: &str, engine: &Engine) -> bool {
    let name = chain.split_once('/').map_or(chain, |(_, name)| name);
    begins(name, engine.chains) || begins(chain, engine.chains)
}

fn begins(name: &str, with: &[&str]) -> bool {
    with.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::foreign::Place;

    fn told(devices: &[&str], pins: &[&str], chains: &[&str]) -> Vec<(&'static str, String)> {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let mut found = Neighbours::default();
        found.tell_engines(&owned(devices), &owned(pins), &owned(chains).into_iter().collect());
        let clues = |clues: BTreeSet<String>| clues.into_iter().collect::<Vec<_>>().join(", ");
        found.engines.into_iter().map(|(name, all)| (name, clues(all))).collect()
    }

    #[test]
    fn engines_are_known_by_what_they_make() {
        assert_eq!(told(&["lo", "eth0", "veth12", "cni0"], &["/b/portcullis"], &["filter/FORWARD"]), []);
        assert_eq!(told(&["cali12ab"], &[], &[]), [("Calico", "interface cali12ab".to_owned())]);
        assert_eq!(
            told(&["cilium_host"], &["/b/cilium", "/b/tc/globals/cilium_ct"], &["filter/CILIUM_FORWARD"]),
            [("Cilium", "chain filter/CILIUM_FORWARD, interface cilium_host, pin /b/cilium".to_owned())]
        );
        assert_eq!(
            told(
                &[],
                &["/b/globals/aws"],
                &["filter/KUBE-ROUTER-INPUT", "kube-network-policies/postrouting"]
            ),
            [
                ("kube-network-policies", "chain kube-network-policies/postrouting".to_owned()),
                ("kube-router", "chain filter/KUBE-ROUTER-INPUT".to_owned()),
                ("the AWS network policy agent", "pin /b/globals/aws".to_owned()),
            ]
        );
    }

    #[test]
    fn a_filters_label_tells_where_the_kernel_does_not() {
        let one = Foreign {
            index: 3,
            interface: "eth0".to_owned(),
            place: Place::TcIngress,
            program: Some(7),
            label: Some("cil_from_netdev-eth0".to_owned()),
        };
        let mut found = Neighbours { foreign: vec![one.clone()], ..Neighbours::default() };
        assert_eq!(found.engine_of(&one), Some("Cilium"));
        found.tell_engines(&[], &[], &BTreeSet::new());
        assert_eq!(
            found.engines.get("Cilium").and_then(BTreeSet::first).map(String::as_str),
            Some("program cil_from_netdev-eth0 on eth0")
        );
    }
}
