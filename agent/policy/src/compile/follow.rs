//! The short way of a change that touches no rule: pods that are peers and no subjects. Only the classes of their
//! addresses are worked out again, and only what differs is written; the selectors that can match a pod are looked up
//! by its labels. Whatever else a change touches takes the whole way, and so does whatever finds no room here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::wire::{CLASS_NONE, PeerRowKey, PeerRowWord, PeerWord};

use super::built::set_bit;
use super::classes::Matcher;
use super::{CompileError, Compiler};
use crate::delta::Delta;
use crate::desired::{Desired, wire_addr};
use crate::diff::{Plan, diff};
use crate::model::{Cluster, ObjectKey, Pod, Protocol};
use crate::select::{Directory, PodFacts, is_local, seniority};
use crate::sizes::Table;

/// What the last whole compilation knew of peers, brought up to date by what followed.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) matcher: Matcher,
    /// The class of each prefix.
    pub(super) by_prefix: BTreeMap<IpNet, u32>,
    /// By selector: the rulesets that ask for it, and which of their rules.
    pub(super) asking: BTreeMap<u32, Vec<(u32, Vec<u32>)>>,
    /// Classes whose rows are in the tables.
    pub(super) used: BTreeSet<u32>,
    /// Services' addresses, whoever owns them.
    services: BTreeSet<IpAddr>,
    /// Live pods by the addresses that they show.
    claims: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// How many live pods declare a named port with a number: which numbers a name stands for decides rules.
    named: BTreeMap<(String, Protocol, u16), u32>,
}

impl Standing {
    pub(super) fn new(
        directory: &Directory<'_>,
        matcher: Matcher,
        by_prefix: BTreeMap<IpNet, u32>,
        asking: BTreeMap<u32, Vec<(u32, Vec<u32>)>>,
        used: BTreeSet<u32>,
    ) -> Self {
        let mut claims: BTreeMap<IpAddr, BTreeSet<ObjectKey>> = BTreeMap::new();
        let mut named = BTreeMap::new();
        for (key, facts) in &directory.pods {
            for address in &facts.pod.addresses {
                claims.entry(*address).or_default().insert((*key).clone());
            }
            for ((name, protocol), number) in &facts.pod.named_ports {
                *named.entry((name.clone(), *protocol, *number)).or_default() += 1;
            }
        }
        Self { matcher, by_prefix, asking, used, services: directory.services.clone(), claims, named }
    }

    /// Takes a pod's claims back, or makes them.
    fn claim(&mut self, key: &ObjectKey, pod: &Pod, is_there: bool, touched: &mut BTreeSet<IpAddr>) {
        for address in &pod.addresses {
            touched.insert(*address);
            let claims = self.claims.entry(*address).or_default();
            if is_there {
                claims.insert(key.clone());
            } else {
                claims.remove(key);
            }
            if claims.is_empty() {
                self.claims.remove(address);
            }
        }
        for ((name, protocol), number) in &pod.named_ports {
            let port = (name.clone(), *protocol, *number);
            let count = self.named.entry(port.clone()).or_default();
            if is_there {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
            }
            if *count == 0 {
                self.named.remove(&port);
            }
        }
    }

    /// The numbers that these names of ports stand for.
    fn numbers(&self, names: &BTreeSet<(String, Protocol)>) -> Vec<(String, Protocol, u16)> {
        let of = |(name, protocol): &(String, Protocol)| {
            let range = (name.clone(), *protocol, 0)..=(name.clone(), *protocol, u16::MAX);
            self.named.range(range).map(|(port, _)| port.clone()).collect::<Vec<_>>()
        };
        names.iter().flat_map(of).collect()
    }

    /// Of those who show an address the one that owns it (S50): the greatest, of equal ones the first.
    fn owner<'c>(&self, address: IpAddr, cluster: &'c Cluster) -> Option<(&'c ObjectKey, &'c Pod)> {
        let mut owner: Option<(&ObjectKey, &Pod)> = None;
        for (key, pod) in
            self.claims.get(&address).into_iter().flatten().filter_map(|key| cluster.pods.get_key_value(key))
        {
            if owner.is_none_or(|(_, held)| seniority(held) < seniority(pod)) {
                owner = Some((key, pod));
            }
        }
        owner
    }
}

fn is_peer(pod: &Pod) -> bool {
    pod.is_live() && pod.has_own_network()
}

impl Compiler {
    /// Follows a change if it touches peers only: brings `goal`, the tables as last compiled, to `after` and returns the
    /// writes. `None` where the whole cluster has to be compiled, as also for what has no room.
    pub fn follow(
        &mut self,
        before: &Cluster,
        after: &Cluster,
        subjects: &BTreeSet<ObjectKey>,
        goal: &mut Desired,
    ) -> Option<Plan> {
        let delta = Delta::between(before, after);
        let mut standing = self.standing.take()?;
        let plan = self.followed(&mut standing, &delta, [before, after], subjects, goal)?;
        // Lost where it did not succeed: then everything is compiled, and another one made.
        self.standing = Some(standing);
        for op in &plan.before {
            op.apply(goal);
        }
        Some(plan)
    }

    fn followed(
        &mut self,
        standing: &mut Standing,
        delta: &Delta,
        [before, after]: [&Cluster; 2],
        subjects: &BTreeSet<ObjectKey>,
        goal: &Desired,
    ) -> Option<Plan> {
        if delta.services
            || delta.own_node
            || delta.host
            || !delta.policies.is_empty()
            || !delta.pods.is_disjoint(subjects)
        {
            return None;
        }
        if let Some(host) = &after.host {
            // What the node may always reach (H8) are addresses in a rule, and labels of namespaces choose its pods.
            let local = |pod: &Pod| is_local(pod, &host.node);
            let is_local =
                |key: &ObjectKey| [before, after].iter().any(|of| of.pods.get(key).is_some_and(local));
            let is_chosen = |(key, pod): (&ObjectKey, &Pod)| {
                delta.namespaces.contains(&key.namespace) && !pod.has_own_network() && local(pod)
            };
            let chosen = || after.pods.iter().any(is_chosen);
            if delta.pods.iter().any(is_local) || (!delta.namespaces.is_empty() && chosen()) {
                return None;
            }
        }
        let mut pods = delta.pods.clone();
        for name in &delta.namespaces {
            let (old, new) = (before.namespaces.get(name)?, after.namespaces.get(name)?);
            if old.mode != new.mode {
                return None;
            }
            let first = ObjectKey::new(name.clone(), "");
            let own = after.pods.range(first..).take_while(|(key, _)| key.namespace == *name);
            pods.extend(own.map(|(key, _)| key.clone()));
        }
        let mut names = BTreeSet::new();
        for key in &pods {
            let both = [before.pods.get(key), after.pods.get(key)];
            names.extend(both.into_iter().flatten().flat_map(|pod| pod.named_ports.keys().cloned()));
        }
        let numbers = standing.numbers(&names);
        let mut touched = BTreeSet::new();
        for key in &pods {
            if let Some(pod) = before.pods.get(key).filter(|pod| is_peer(pod)) {
                standing.claim(key, pod, false, &mut touched);
            }
            if let Some(pod) = after.pods.get(key).filter(|pod| is_peer(pod)) {
                standing.claim(key, pod, true, &mut touched);
            }
        }
        if standing.numbers(&names) != numbers || !touched.is_disjoint(&standing.services) {
            return None;
        }
        let bank = goal.bank;
        let mut old = Desired { bank, ..Desired::default() };
        let mut new = old.clone();
        for address in touched {
            let addr = wire_addr(address);
            if let Some(word) = goal.peers.get(&addr) {
                old.peers.insert(addr, *word);
            }
            let owner = standing.owner(address, after);
            let facts = owner.map(|(key, pod)| PodFacts {
                namespace: &key.namespace,
                namespace_labels: after.namespaces.get(&key.namespace).map(|namespace| &namespace.labels),
                pod,
            });
            let Some(facts) = facts else { continue };
            let selectors = standing.matcher.of_address(address, &facts);
            let class = self.class_followed(standing, &selectors, goal, &mut new).ok()?;
            let prefix = standing.matcher.blocks.longest(address).map(|(prefix, _)| prefix);
            let covered =
                prefix.and_then(|prefix| standing.by_prefix.get(&prefix)).copied().unwrap_or(CLASS_NONE);
            if class != covered {
                new.peers.insert(addr, PeerWord { class, tag: addr.hash() });
            }
        }
        self.within(Table::Peers, goal.peers.len() + new.peers.len()).ok()?;
        // What is written already under a number stays; so do the rows of classes that nobody has any more, until
        // the whole is compiled again.
        new.rows.retain(|id, _| !goal.rows.contains_key(id));
        Some(diff(&old, &new))
    }

    /// The number of a class, and rows for each ruleset that asks for one of its selectors, if it is new.
    fn class_followed(
        &mut self,
        standing: &mut Standing,
        selectors: &[u32],
        goal: &Desired,
        new: &mut Desired,
    ) -> Result<u32, CompileError> {
        if selectors.is_empty() {
            return Ok(CLASS_NONE);
        }
        let class = self.full(Table::PeerRows, |c| c.classes.intern(&selectors.to_vec(), 1))?;
        if !standing.used.insert(class) {
            return Ok(class);
        }
        let mut vectors: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for (ruleset, rules) in selectors.iter().filter_map(|number| standing.asking.get(number)).flatten() {
            let any = || self.built.get(ruleset).map(|built| built.any.clone()).unwrap_or_default();
            let vector = vectors.entry(*ruleset).or_insert_with(any);
            for rule in rules {
                set_bit(vector, *rule);
            }
        }
        self.within(Table::PeerRows, goal.peer_rows.len() + new.peer_rows.len() + vectors.len())?;
        for (ruleset, vector) in vectors {
            let row = self.row(&vector, new)?;
            let key = PeerRowKey { ruleset, class };
            new.peer_rows.insert(key, PeerRowWord { row, tag: key.tag() });
        }
        Ok(class)
    }
}
