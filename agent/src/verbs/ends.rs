//! From the words FROM and TO to the ends of a flow.

use std::net::IpAddr;

use portcullis_policy::answer::{Family, Party, owned_addresses};
use portcullis_policy::model::{Cluster, ObjectKey, Phase, PodNetwork};
use portcullis_policy::select::Directory;

use super::ask::AskError;
use crate::world::World;

/// How many names an error suggests.
const SUGGESTIONS: usize = 5;

/// The most edits that make one name another's misspelling.
const EDITS: usize = 3;

/// One end: the party, and the word for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The party.
    pub party: Party,
    /// `ns/pod`, `node`, `node/NAME`, `world` or the address.
    pub name: String,
}

/// Both ends of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who sends.
    pub from: End,
    /// To whom.
    pub to: End,
    /// Their family.
    pub family: Family,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Who sends.
    pub from: &'a str,
    /// To whom.
    pub to: &'a str,
    /// By which family; `None`: the first of IPv4, IPv6 that both have.
    pub family: Option<Family>,
    /// Where a pod without a namespace is looked for.
    pub namespace: Option<&'a str>,
}

/// A word, understood; its addresses are still to be chosen from.
enum Word {
    Pod(ObjectKey, Vec<IpAddr>),
    Address(IpAddr),
    World,
    OwnNode(Vec<IpAddr>),
    Node(String, Vec<IpAddr>),
    /// A hostNetwork pod of the node whose host firewall is on: judged by itself.
    JudgedHostPod(ObjectKey, Vec<IpAddr>),
    /// Another hostNetwork pod: its node, for which its own name is shown.
    HostPod {
        key: ObjectKey,
        addresses: Vec<IpAddr>,
        node: Option<String>,
    },
}

impl Word {
    fn has(&self, family: Family) -> Option<IpAddr> {
        let first = |all: &[IpAddr]| all.iter().copied().find(|a| Family::of(*a) == family);
        match self {
            Self::Pod(_, all) | Self::JudgedHostPod(_, all) | Self::OwnNode(all) | Self::Node(_, all) => {
                first(all)
            }
            Self::HostPod { addresses, .. } => first(addresses),
            Self::Address(address) => first(&[*address]),
            Self::World => Some(family.world()),
        }
    }

    fn families(&self) -> String {
        let names: Vec<&str> = [Family::Ipv4, Family::Ipv6]
            .into_iter()
            .filter(|family| self.has(*family).is_some())
            .map(Family::name)
            .collect();
        if names.is_empty() { "no address".to_owned() } else { names.join(" and ") }
    }

    fn name(&self) -> String {
        match self {
            Self::Pod(key, _) | Self::JudgedHostPod(key, _) | Self::HostPod { key, .. } => key.to_string(),
            Self::Address(address) => address.to_string(),
            Self::World => "world".to_owned(),
            Self::OwnNode(_) => "node".to_owned(),
            Self::Node(name, _) => format!("node/{name}"),
        }
    }

    /// The node that the other end's own node may be: where this pod runs.
    fn runs_on<'a>(&self, cluster: &'a Cluster) -> Option<&'a str> {
        match self {
            Self::Pod(key, _) | Self::JudgedHostPod(key, _) => cluster.pods.get(key)?.node.as_deref(),
            Self::Address(_) | Self::World | Self::OwnNode(_) | Self::Node(..) | Self::HostPod { .. } => None,
        }
    }
}

/// Finds both ends.
pub fn resolve(world: &World, directory: &Directory<'_>, wanted: Wanted<'_>) -> Result<Ends, AskError> {
    let reader = Reader { world, directory, namespace: wanted.namespace };
    let mut from = reader.word(wanted.from)?;
    let mut to = reader.word(wanted.to)?;
    reader.own_node(&mut from, &to);
    reader.own_node(&mut to, &from);
    if let Word::OwnNode(addresses) = &mut from
        && addresses.is_empty()
    {
        // The own node is known by being local: for a sender any address does.
        addresses.extend([Family::Ipv4.world(), Family::Ipv6.world()]);
    }
    if let Word::OwnNode(addresses) = &to
        && addresses.is_empty()
    {
        return Err(AskError::OwnNodeAddress);
    }
    let tried = match wanted.family {
        Some(family) => vec![family],
        None => vec![Family::Ipv4, Family::Ipv6],
    };
    let both = tried.iter().find_map(|f| Some((*f, from.has(*f)?, to.has(*f)?)));
    let Some((family, source, destination)) = both else {
        return Err(AskError::Families {
            from: from.name(),
            from_has: from.families(),
            to: to.name(),
            to_has: to.families(),
            wanted: wanted.family.map_or("one family", Family::name),
        });
    };
    let is_own = |host: &Word, other: &Word| reader.is_own_node(host, other);
    let (from_own, to_own) = (is_own(&from, &to), is_own(&to, &from));
    Ok(Ends { from: end(from, source, from_own), to: end(to, destination, to_own), family })
}

/// Whose node a node is.
#[derive(Clone, Copy)]
enum Whose {
    Own,
    Another,
}

fn end(word: Word, address: IpAddr, whose: Whose) -> End {
    let name = word.name();
    let party = match (word, whose) {
        (Word::Pod(key, _), _) => Party::Pod(key, address),
        (Word::JudgedHostPod(key, _), _) => Party::HostPod(key, address),
        (Word::OwnNode(_), _) | (Word::HostPod { .. }, Whose::Own) => Party::OwnNode(address),
        (Word::Address(_) | Word::World | Word::Node(..) | Word::HostPod { .. }, _) => {
            Party::Address(address)
        }
    };
    End { party, name }
}

struct Reader<'a> {
    world: &'a World,
    directory: &'a Directory<'a>,
    namespace: Option<&'a str>,
}

impl Reader<'_> {
    fn word(&self, text: &str) -> Result<Word, AskError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            return Ok(match self.directory.owners.get(&address) {
                Some(key) => Word::Pod((*key).clone(), vec![address]),
                None => Word::Address(address),
            });
        }
        match (text, text.split_once('/'), self.namespace) {
            ("world", _, _) => Ok(Word::World),
            ("node", _, _) => Ok(Word::OwnNode(Vec::new())),
            (_, Some(("node", name)), _) => self.node(name),
            (_, Some((namespace, name)), _) if is_name(namespace) && is_name(name) => {
                self.pod(ObjectKey::new(namespace, name))
            }
            (_, None, Some(namespace)) if is_name(text) => self.pod(ObjectKey::new(namespace, text)),
            (_, None | Some(_), _) => {
                let same = self.world.cluster.pods.keys().filter(|key| key.name == text);
                Err(AskError::BadEnd {
                    text: text.to_owned(),
                    known: same.take(SUGGESTIONS).map(ToString::to_string).collect(),
                })
            }
        }
    }

    fn node(&self, name: &str) -> Result<Word, AskError> {
        let cluster = &self.world.cluster;
        match cluster.nodes.get(name) {
            Some(node) if self.world.node.as_deref() == Some(name) => {
                Ok(Word::OwnNode(node.addresses.clone()))
            }
            Some(node) if node.addresses.is_empty() => Err(AskError::NodeAddress(name.to_owned())),
            Some(node) => Ok(Word::Node(name.to_owned(), node.addresses.clone())),
            None if self.world.node.as_deref() == Some(name) => Ok(Word::OwnNode(Vec::new())),
            // A namespace may be called `node` too.
            None if cluster.pods.contains_key(&ObjectKey::new("node", name)) => {
                self.pod(ObjectKey::new("node", name))
            }
            None => Err(AskError::UnknownNode {
                name: name.to_owned(),
                known: cluster.nodes.keys().take(SUGGESTIONS).cloned().collect(),
            }),
        }
    }

    fn pod(&self, key: ObjectKey) -> Result<Word, AskError> {
        let cluster = &self.world.cluster;
        let Some(pod) = cluster.pods.get(&key) else {
            return Err(AskError::UnknownPod { known: close_names(cluster, &key), pod: key });
        };
        match (pod.phase, pod.network) {
            (Phase::Finished, _) => Err(AskError::Finished(key)),
            (Phase::Live, PodNetwork::Own) => {
                let addresses = owned_addresses(self.directory, &key);
                if addresses.is_empty() {
                    Err(AskError::NoAddress(key))
                } else {
                    Ok(Word::Pod(key, addresses))
                }
            }
            (Phase::Live, PodNetwork::Host) => {
                let is_judged = self.directory.hosts.contains_key(&key);
                let name = self.directory.node.filter(|_| is_judged).or(pod.node.as_deref());
                let node = name.and_then(|name| cluster.nodes.get(name));
                let addresses = match node {
                    Some(node) if !node.addresses.is_empty() => node.addresses.clone(),
                    Some(_) | None => pod.addresses.clone(),
                };
                if addresses.is_empty() {
                    return Err(AskError::HostNetwork(key));
                }
                Ok(if is_judged {
                    Word::JudgedHostPod(key, addresses)
                } else {
                    Word::HostPod { key, addresses, node: pod.node.clone() }
                })
            }
        }
    }

    /// Gives the word `node` its addresses: of the agent's node, else of the one where the other end runs,
    /// else of the only one.
    fn own_node(&self, word: &mut Word, other: &Word) {
        let Word::OwnNode(addresses) = word else { return };
        let cluster = &self.world.cluster;
        let only = || match cluster.nodes.len() {
            1 => cluster.nodes.keys().next().map(String::as_str),
            _ => None,
        };
        let own = self.directory.node.or(self.world.node.as_deref());
        let name = own.or_else(|| other.runs_on(cluster)).or_else(only);
        if let Some(node) = name.and_then(|name| cluster.nodes.get(name))
            && addresses.is_empty()
        {
            addresses.clone_from(&node.addresses);
        }
    }

    fn is_own_node(&self, host: &Word, other: &Word) -> Whose {
        let Word::HostPod { node: Some(node), .. } = host else { return Whose::Another };
        let own = self.world.node.as_deref().or_else(|| other.runs_on(&self.world.cluster));
        if own == Some(node.as_str()) { Whose::Own } else { Whose::Another }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/')
}

fn close_names(cluster: &Cluster, wanted: &ObjectKey) -> Vec<String> {
    let live = cluster.pods.iter().filter(|(_, pod)| pod.is_live()).map(|(key, _)| key);
    nearest(&live.collect::<Vec<_>>(), wanted)
}

/// Objects of this name elsewhere, then names that differ little, then the first of its namespace, then any.
pub(super) fn nearest(known: &[&ObjectKey], wanted: &ObjectKey) -> Vec<String> {
    let text = wanted.to_string();
    let close: Vec<String> = known
        .iter()
        .filter(|key| {
            key.name == wanted.name
                || (key.namespace == wanted.namespace && key.name.starts_with(&wanted.name))
                || distance(&key.to_string(), &text) <= EDITS
        })
        .take(SUGGESTIONS)
        .map(ToString::to_string)
        .collect();
    if !close.is_empty() {
        return close;
    }
    let here = known.iter().filter(|key| key.namespace == wanted.namespace);
    let elsewhere = known.iter().filter(|key| key.namespace != wanted.namespace);
    here.chain(elsewhere).take(SUGGESTIONS).map(ToString::to_string).collect()
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((cb, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(ca != *cb)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
