//! Which rule a counter counts, in a pinned map of its own: a restarted agent goes on with the same counters.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use portcullis_common::event::Direction;
use portcullis_common::wire::{
    CounterKey, NAME_BYTES, NAMESPACE_BYTES, POLICY_CLOSED, POLICY_FAILSAFE, POLICY_HOST, POLICY_NETWORK,
    POLICY_NO_NAMESPACE, POLICY_OWN_NODE, RULE_ISOLATION, Stats,
};
use portcullis_policy::desired::{CounterName, RuleSource};
use portcullis_policy::model::ObjectKey;

use super::kernel::take;
use super::load::{BpfError, Pins};
use super::wire::Wire;

/// The names of the counters.
pub struct CounterNames {
    map: HashMap<MapData, Wire<CounterKey>, u32>,
    names: BTreeMap<u32, CounterName>,
}

impl std::fmt::Debug for CounterNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CounterNames").field("names", &self.names.len()).finish_non_exhaustive()
    }
}

impl CounterNames {
    /// Reads what earlier agents left.
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let map: HashMap<_, Wire<CounterKey>, u32> = take(ebpf, "counter_names")?;
        let names =
            map.iter().filter_map(Result::ok).filter_map(|(key, n)| Some((n, decode(&key.0)?))).collect();
        Ok(Self { map, names })
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<u32, CounterName> {
        &self.names
    }

    /// What a counter counts.
    #[must_use]
    pub fn name(&self, counter: u32) -> Option<&CounterName> {
        self.names.get(&counter)
    }

    /// A counter counts something else from here on.
    pub fn set(&mut self, counter: u32, name: &CounterName) -> Result<(), BpfError> {
        let fail = |e| BpfError::map("write", "counter_names", e);
        if let Some(old) = self.names.insert(counter, name.clone())
            && let Some(key) = encode(&old)
        {
            // The name may have moved to another counter already.
            if self.map.get(&Wire(key), 0).is_ok_and(|held| held == counter) {
                self.map.remove(&Wire(key)).map_err(fail)?;
            }
        }
        // A name that is longer than Kubernetes allows is not remembered over a restart.
        match encode(name) {
            Some(key) => self.map.insert(Wire(key), counter, 0).map_err(fail),
            None => Ok(()),
        }
    }
}

/// The counters, read beside the agent that keeps them.
pub struct Hits {
    names: HashMap<MapData, Wire<CounterKey>, u32>,
    stats: PerCpuArray<MapData, Wire<Stats>>,
}

impl std::fmt::Debug for Hits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hits").finish_non_exhaustive()
    }
}

impl Hits {
    /// Opens the pins that an agent made.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self { names: pinned(pins, "counter_names")?, stats: pinned(pins, "rule_stats")? })
    }

    /// Packets and bytes under each name, since it got its counter; all CPUs.
    pub fn all(&self) -> Result<BTreeMap<CounterName, Stats>, BpfError> {
        let mut all = BTreeMap::new();
        for (key, counter) in self.names.iter().filter_map(Result::ok) {
            if let Some(name) = decode(&key.0) {
                let values =
                    self.stats.get(&counter, 0).map_err(|e| BpfError::map("read", "rule_stats", e))?;
                all.insert(name, sum(values.iter().map(|one| one.0)));
            }
        }
        Ok(all)
    }
}

/// Of all CPUs.
pub(super) fn sum(each: impl Iterator<Item = Stats>) -> Stats {
    each.fold(Stats::default(), |sum, one| Stats {
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
    })
}

pub(super) fn pinned<T: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    name: &'static str,
) -> Result<T, BpfError> {
    let open = || T::try_from(Map::from_map_data(MapData::from_pin(pins.maps().join(name))?)?);
    open().map_err(|e| BpfError::map("open", name, e))
}

fn encode(name: &CounterName) -> Option<CounterKey> {
    let empty = String::new();
    let (policy_kind, namespace, object, rule) = match &name.source {
        RuleSource::NetworkPolicy(key, rule) => (POLICY_NETWORK, &key.namespace, &key.name, *rule),
        RuleSource::Isolation(key) => (POLICY_NETWORK, &key.namespace, &key.name, RULE_ISOLATION),
        RuleSource::UndeclaredNamespace(namespace) => {
            (POLICY_NO_NAMESPACE, namespace, &empty, RULE_ISOLATION)
        }
        RuleSource::OwnNode => (POLICY_OWN_NODE, &empty, &empty, 0),
        RuleSource::HostPolicy(name, rule) => (POLICY_HOST, &empty, name, *rule),
        RuleSource::HostIsolation(name) => (POLICY_HOST, &empty, name, RULE_ISOLATION),
        RuleSource::Failsafe => (POLICY_FAILSAFE, &empty, &empty, 0),
        RuleSource::Closed => (POLICY_CLOSED, &empty, &empty, RULE_ISOLATION),
    };
    Some(CounterKey {
        namespace: padded::<NAMESPACE_BYTES>(namespace)?,
        name: padded::<NAME_BYTES>(object)?,
        policy_kind,
        direction: u16::from(name.direction.index()),
        rule,
    })
}

fn decode(key: &CounterKey) -> Option<CounterName> {
    let (namespace, name) = (text(&key.namespace)?, text(&key.name)?);
    let source = match (key.policy_kind, key.rule) {
        (POLICY_NETWORK, RULE_ISOLATION) => RuleSource::Isolation(ObjectKey::new(namespace, name)),
        (POLICY_NETWORK, rule) => RuleSource::NetworkPolicy(ObjectKey::new(namespace, name), rule),
        (POLICY_NO_NAMESPACE, _) => RuleSource::UndeclaredNamespace(namespace),
        (POLICY_OWN_NODE, _) => RuleSource::OwnNode,
        (POLICY_HOST, RULE_ISOLATION) => RuleSource::HostIsolation(name),
        (POLICY_HOST, rule) => RuleSource::HostPolicy(name, rule),
        (POLICY_FAILSAFE, _) => RuleSource::Failsafe,
        (POLICY_CLOSED, _) => RuleSource::Closed,
        _ => return None,
    };
    let direction = match key.direction {
        0 => Direction::Ingress,
        1 => Direction::Egress,
        _ => return None,
    };
    Some(CounterName { source, direction })
}

fn padded<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(bytes)
}

fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8(bytes.get(..end)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_went() {
        let key = || ObjectKey::new("ns", "policy");
        let mut keys = std::collections::BTreeSet::new();
        for source in [
            RuleSource::NetworkPolicy(key(), 0),
            RuleSource::NetworkPolicy(key(), 7),
            RuleSource::Isolation(key()),
            RuleSource::UndeclaredNamespace("ns".to_owned()),
            RuleSource::OwnNode,
            RuleSource::HostPolicy("policy".to_owned(), 0),
            RuleSource::HostPolicy("policy".to_owned(), 7),
            RuleSource::HostIsolation("policy".to_owned()),
            RuleSource::Failsafe,
            RuleSource::Closed,
        ] {
            for direction in [Direction::Ingress, Direction::Egress] {
                let name = CounterName { source: source.clone(), direction };
                let key = encode(&name).unwrap();
                assert!(keys.insert(key), "{name:?}");
                assert_eq!(decode(&key), Some(name));
            }
        }
        let long = RuleSource::Isolation(ObjectKey::new("n".repeat(65), "p"));
        assert_eq!(encode(&CounterName { source: long, direction: Direction::Ingress }), None);
    }
}
