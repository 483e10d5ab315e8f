//! Who owned a slot, an address or a counter at a moment: verdicts are named when they are shown, by what was true
//! when they fell. Bounded: what is older than the bound has no name, never a wrong one.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use portcullis_policy::desired::CounterName;
use portcullis_policy::model::{Labels, ObjectKey};

/// Owners that are no more and still known, of each kind.
const PAST: usize = 16_384;

/// A pod as verdicts name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub key: ObjectKey,
    /// Its labels.
    pub labels: Labels,
}

/// Everything that has an owner, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Endpoints.
    pub slots: BTreeMap<u32, Arc<Named>>,
    /// Addresses of pods.
    pub addresses: BTreeMap<IpAddr, Arc<Named>>,
    /// Rules and isolations.
    pub counters: BTreeMap<u32, Arc<CounterName>>,
    /// Services by where they are asked; `None` if nothing has changed there.
    pub services: Option<BTreeMap<Asked, Arc<ObjectKey>>>,
}

/// Where a Service is asked: an address, the protocol's number and the port.
pub type Asked = (IpAddr, u8, u16);

/// A change of owners: nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// From here on the new ones own: before anything was written.
    pub began: u64,
    /// Until here what has no new owner was its old one's: all was written.
    pub ended: u64,
}

/// Owners over time.
#[derive(Debug, Default)]
pub struct Names {
    kinds: RwLock<Kinds>,
}

#[derive(Debug, Default)]
struct Kinds {
    slots: Timeline<u32, Named>,
    addresses: Timeline<IpAddr, Named>,
    counters: Timeline<u32, CounterName>,
    services: Timeline<Asked, ObjectKey>,
}

impl Names {
    /// These own from now on. The first ones did so before, too: a starting agent takes over what it finds.
    pub fn publish(&self, owners: Owners, moment: Moment) {
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        kinds.slots.update(owners.slots, moment);
        kinds.addresses.update(owners.addresses, moment);
        kinds.counters.update(owners.counters, moment);
        if let Some(services) = owners.services {
            kinds.services.update(services, moment);
        }
    }

    /// Whose endpoint it was.
    pub fn slot(&self, slot: u32, time: u64) -> Option<Arc<Named>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).slots.at(slot, time)
    }

    /// The pod that owned an address.
    pub fn address(&self, address: IpAddr, time: u64) -> Option<Arc<Named>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).addresses.at(address, time)
    }

    /// The Service that was asked there.
    pub fn service(&self, asked: Asked, time: u64) -> Option<Arc<ObjectKey>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).services.at(asked, time)
    }

    /// What a counter counted.
    pub fn counter(&self, counter: u32, time: u64) -> Option<Arc<CounterName>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner).counters.at(counter, time)
    }
}

/// Owners of one kind of thing.
#[derive(Debug)]
struct Timeline<K, V> {
    /// With the time from which on.
    current: BTreeMap<K, (u64, Arc<V>)>,
    /// By the time until which, exclusive; with the time from which on.
    past: BTreeMap<(K, u64), (u64, Arc<V>)>,
    /// Keys of `past` in the order in which they came.
    order: VecDeque<(K, u64)>,
    started: bool,
}

impl<K, V> Default for Timeline<K, V> {
    fn default() -> Self {
        Self { current: BTreeMap::new(), past: BTreeMap::new(), order: VecDeque::new(), started: false }
    }
}

impl<K: Ord + Copy, V: PartialEq> Timeline<K, V> {
    fn update(&mut self, owners: BTreeMap<K, Arc<V>>, moment: Moment) {
        let since = if self.started { moment.began } else { 0 };
        self.started = true;
        let gone: Vec<(K, u64)> = self
            .current
            .iter()
            .filter_map(|(key, (_, old))| match owners.get(key) {
                None => Some((*key, moment.ended)),
                Some(new) if new != old => Some((*key, moment.began)),
                Some(_) => None,
            })
            .collect();
        for (key, until) in gone {
            if let Some(old) = self.current.remove(&key) {
                self.past.insert((key, until), old);
                self.order.push_back((key, until));
            }
        }
        for (key, owner) in owners {
            self.current.entry(key).or_insert((since, owner));
        }
        while self.order.len() > PAST {
            if let Some(oldest) = self.order.pop_front() {
                self.past.remove(&oldest);
            }
        }
    }

    fn at(&self, key: K, time: u64) -> Option<Arc<V>> {
        if let Some((since, owner)) = self.current.get(&key)
            && *since <= time
        {
            return Some(Arc::clone(owner));
        }
        let later = self.past.range((key, time.saturating_add(1))..=(key, u64::MAX)).next();
        later.filter(|(_, (since, _))| *since <= time).map(|(_, (_, owner))| Arc::clone(owner))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn owned(name: &str) -> Owners {
        let named = Arc::new(Named { key: ObjectKey::new("a", name), labels: Labels::new() });
        Owners {
            slots: BTreeMap::from([(1, Arc::clone(&named))]),
            addresses: BTreeMap::from([(IpAddr::from([10, 0, 0, 1]), named)]),
            counters: BTreeMap::new(),
            services: None,
        }
    }

    fn at(names: &Names, time: u64) -> Option<String> {
        names.address([10, 0, 0, 1].into(), time).map(|named| named.key.name.clone())
    }

    const fn moment(began: u64) -> Moment {
        Moment { began, ended: began + 5 }
    }

    #[test]
    fn an_address_that_moved_is_its_owner_s_of_that_time() {
        let names = Names::default();
        names.publish(owned("first"), moment(100));
        names.publish(owned("second"), moment(200));
        names.publish(Owners::default(), moment(300));
        names.publish(owned("third"), moment(400));
        let told = [50, 150, 199, 200, 304, 305, 399, 400].map(|time| at(&names, time));
        let expected = [
            Some("first"),
            Some("first"),
            Some("first"),
            Some("second"),
            Some("second"),
            None,
            None,
            Some("third"),
        ];
        assert_eq!(told.each_ref().map(Option::as_deref), expected);
        assert_eq!(names.slot(1, 250).unwrap().key.name, "second");
    }

    #[test]
    fn what_does_not_change_keeps_its_beginning() {
        let names = Names::default();
        names.publish(owned("first"), moment(100));
        names.publish(owned("first"), moment(200));
        assert_eq!(at(&names, 10).as_deref(), Some("first"));
    }

    #[test]
    fn what_is_too_long_ago_has_no_name() {
        let names = Names::default();
        for round in 0..=(PAST as u64 + 1) {
            names.publish(owned(&round.to_string()), moment(round * 10));
        }
        assert_eq!(at(&names, 5), None, "not another pod's");
        assert_eq!(at(&names, PAST as u64 * 10).unwrap(), PAST.to_string());
    }
}
