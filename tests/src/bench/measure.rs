//! Loads, puts packets to them and keeps the times. Knows nothing of manifests and tables.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use portcullis_common::event::Direction;
use portcullis_oracle::rng::SplitMix64;
use portcullis_tests::attached::{Attached, Place, Ran};
use portcullis_tests::device::Veth;

use crate::scenario::{self, Case, Family, Peers, Put, Sizes, Subject, World};

/// Measurements of the empty program in a round.
const EMPTY_A_ROUND: u32 = 15;
/// How many times more packets the empty program gets: the call itself takes some 30 µs, which must vanish.
const EMPTY_TIMES: u32 = 20;
/// Packets of one measurement of telling: their events fit into the ring.
const TOLD: u32 = 10_000;
/// `EVENTS_PER_SECOND` of `ebpf/src/report.rs`.
const BUDGET: u32 = 20_000;
/// More than a tick of the coarse clock, at 100 Hz.
const COARSE: Duration = Duration::from_millis(12);
/// How often a measurement of telling may miss its second.
const TRIES: u32 = 5;
/// Packets before a measurement, which are not measured: what they touch is warm then, as it is in a flow.
const WARM_UP: u32 = 200;

/// What a measurement is about; the empty program's is about nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct What {
    pub(crate) peers: Peers,
    pub(crate) rule_count: u32,
    pub(crate) peer_count: u32,
    pub(crate) case: Case,
    pub(crate) family: Family,
    pub(crate) direction: Direction,
}

/// Nanoseconds a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) empty: Times,
    pub(crate) telling: Telling,
    pub(crate) measured: Vec<(What, Times)>,
}

/// A denied packet: with its event in the ring, and with the budget of events used up. Nobody reads meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Telling {
    pub(crate) told: Times,
    pub(crate) counted: Times,
}

/// Whether a pod is measured both ways and by both families.
#[derive(Clone, Copy)]
enum Whole {
    Yes,
    No,
}

/// One thing to measure, and how long it has taken.
struct Item {
    /// Index of its load.
    load: usize,
    place: Place,
    put: Put,
    /// `None` for the empty program.
    what: Option<What>,
    samples: Vec<f64>,
}

/// Everything loaded and established, ready for rounds.
pub(crate) struct Bench {
    loads: Vec<Attached>,
    items: Vec<Item>,
}

impl Bench {
    /// A load for each number of peers, with a pod for each number of rules in it.
    pub(crate) fn prepare(sizes: &Sizes, rng: &mut SplitMix64) -> Result<Self> {
        let mut bench = Self { loads: Vec::new(), items: Vec::new() };
        let uplink = Veth::create("pcb-uplink")?;
        let mut devices: Vec<Veth> = Vec::new();
        // Loads do not see each other: they share the devices.
        for (load, peers) in sizes.peers.iter().enumerate() {
            let world = World::new(*peers, &sizes.rules, rng)?;
            while devices.len() < world.subjects.len() {
                devices.push(Veth::create(&format!("pcb{}", devices.len()))?);
            }
            let mut loaded = Attached::load()?;
            let at: Vec<_> = world
                .subjects
                .iter()
                .zip(&devices)
                .map(|(s, device)| (s.key.clone(), device.index))
                .collect();
            loaded.write(&world.cluster, &world.desired, &at)?;
            bench.loads.push(loaded);
            for (subject, device) in world.subjects.iter().zip(&devices) {
                let whole = if sizes.is_typical(subject) { Whole::Yes } else { Whole::No };
                bench.subject(load, subject, (device, &uplink), whole)?;
            }
        }
        bench.empty();
        Ok(bench)
    }

    /// Everything about a pod: towards it by IPv4, and where it is of the typical size also the other ways.
    fn subject(&mut self, load: usize, s: &Subject, devices: (&Veth, &Veth), whole: Whole) -> Result<()> {
        let ways = [
            (Direction::Ingress, Family::V4),
            (Direction::Ingress, Family::V6),
            (Direction::Egress, Family::V4),
            (Direction::Egress, Family::V6),
        ];
        let count = match (whole, s.peers) {
            (Whole::Yes, Peers::Open | Peers::Pods) => ways.len(),
            (Whole::Yes, Peers::Blocks) | (Whole::No, _) => 1,
        };
        for (direction, family) in ways.into_iter().take(count) {
            for case in Case::ALL {
                // Without a policy nothing is denied, and an established flow does not ask who its peers are.
                let is_pointless = match s.peers {
                    Peers::Open => case == Case::Denied,
                    Peers::Pods => false,
                    Peers::Blocks => case == Case::Established,
                };
                if !is_pointless {
                    let what = What {
                        peers: s.peers,
                        rule_count: s.rules,
                        peer_count: s.peer_count,
                        case,
                        family,
                        direction,
                    };
                    self.item(load, s, devices, what).with_context(|| format!("{what:?}"))?;
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, load: usize, s: &Subject, devices: (&Veth, &Veth), what: What) -> Result<()> {
        let (before, put) = scenario::packets(s, what.case, what.family, what.direction)?;
        for earlier in before {
            self.checked(load, place(&earlier, devices), &earlier, 1)?;
        }
        let place = place(&put, devices);
        self.items.push(Item { load, place, put, what: Some(what), samples: Vec::new() });
        Ok(())
    }

    /// The empty program, on the same packet as the first measurement.
    fn empty(&mut self) {
        let Some(first) = self.items.first() else { return };
        let (place, put) = (first.place, first.put.clone());
        self.items.extend((0..EMPTY_A_ROUND).map(|_| Item {
            load: 0,
            place,
            put: put.clone(),
            what: None,
            samples: Vec::new(),
        }));
    }

    /// Measures everything once, in an order of its own.
    pub(crate) fn round(&mut self, packets: u32, rng: &mut SplitMix64) -> Result<()> {
        let mut items = std::mem::take(&mut self.items);
        rng.shuffle(&mut items);
        for item in &mut items {
            let (ran, packets) = match item.what {
                None => {
                    let packets = packets.saturating_mul(EMPTY_TIMES);
                    (self.load(item.load)?.run_empty(item.place, &item.put.frame, packets)?, packets)
                }
                Some(what) => {
                    let mut checked = |count| self.checked(item.load, item.place, &item.put, count);
                    let ran = checked(WARM_UP).and_then(|_| checked(packets));
                    (ran.with_context(|| format!("{what:?}"))?, packets)
                }
            };
            item.samples.push(ran.time.as_secs_f64() * 1e9 / f64::from(packets));
        }
        self.items = items;
        Ok(())
    }

    /// Runs, and looks whether the programs counted what is meant to happen.
    fn checked(&mut self, load: usize, place: Place, put: &Put, packets: u32) -> Result<Ran> {
        let load = self.load(load)?;
        let before = load.packets(put.direction, put.action, put.reason)?;
        let ran = load.run(place, &put.frame, packets)?;
        let counted = load.packets(put.direction, put.action, put.reason)? - before;
        ensure!(
            counted == u64::from(packets) && ran.action == put.action,
            "{counted} of {packets} packets counted as {:?} {:?}, the last was {:?}",
            put.action,
            put.reason,
            ran.action
        );
        Ok(ran)
    }

    /// What telling a denial costs: a SYN to the pod of the typical size, by IPv4. Once a second, for that is what
    /// budgets are of: first within it, then, when it is used up, once more.
    pub(crate) fn telling(&mut self, sizes: &Sizes, rounds: u32) -> Result<Telling> {
        let (rule_count, peer_count) = sizes.typical();
        let typical = What {
            peers: Peers::Pods,
            rule_count,
            peer_count,
            case: Case::Denied,
            family: Family::V4,
            direction: Direction::Ingress,
        };
        let item = self.items.iter().find(|item| item.what == Some(typical)).context("no typical pod")?;
        let (index, place, put) = (item.load, item.place, item.put.clone());
        let (mut told, mut counted) = (Vec::new(), Vec::new());
        let mut tries = 0;
        while u32::try_from(told.len())? < rounds {
            tries += 1;
            ensure!(tries <= rounds * TRIES, "no whole measurement within a second, {tries} times");
            next_second()?;
            self.load(index)?.drain();
            let sent = self.checked(index, place, &put, TOLD)?;
            let in_ring = self.load(index)?.drain();
            self.checked(index, place, &put, BUDGET)?;
            self.load(index)?.drain();
            let only_counted = self.checked(index, place, &put, TOLD)?;
            let late = self.load(index)?.drain();
            // Where the second ended meanwhile, or the thread went to another CPU, it is not what it says.
            if (in_ring, late) == (u64::from(TOLD), 0) {
                told.push(sent.time.as_secs_f64() * 1e9 / f64::from(TOLD));
                counted.push(only_counted.time.as_secs_f64() * 1e9 / f64::from(TOLD));
            }
        }
        Ok(Telling { told: times(told), counted: times(counted) })
    }

    fn load(&mut self, index: usize) -> Result<&mut Attached> {
        self.loads.get_mut(index).context("no such load")
    }

    /// What the rounds gave, in the order of preparation's sizes.
    pub(crate) fn results(self, telling: Telling) -> Results {
        let (empty, measured): (Vec<Item>, Vec<Item>) =
            self.items.into_iter().partition(|i| i.what.is_none());
        let empty = times(empty.into_iter().flat_map(|item| item.samples).collect());
        let mut measured: Vec<(What, Times)> =
            measured.into_iter().filter_map(|item| Some((item.what?, times(item.samples)))).collect();
        measured.sort_by_key(|(what, _)| {
            let What { peers, rule_count, peer_count, case, family, direction } = *what;
            (direction, family, peers, rule_count, peer_count, case)
        });
        Results { empty, telling, measured }
    }
}

/// A packet to a pod comes from another device: one without is the node's own, and exempt.
fn place(put: &Put, (device, uplink): (&Veth, &Veth)) -> Place {
    let came_from = match put.direction {
        Direction::Ingress => uplink.index,
        Direction::Egress => device.index,
    };
    Place { direction: put.direction, ifindex: device.index, came_from }
}

/// Waits for a second of the clock that budgets are counted by, and a little more: the programs' clock is coarse.
fn next_second() -> Result<()> {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?.into();
    thread::sleep(Duration::from_nanos(1_000_000_000 - u64::from(now.subsec_nanos())) + COARSE);
    Ok(())
}

/// Lowest, middle and highest.
pub(crate) fn times(mut samples: Vec<f64>) -> Times {
    samples.sort_by(f64::total_cmp);
    let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
    Times {
        lowest: at(0),
        median: f64::midpoint(at(samples.len().saturating_sub(1) / 2), at(samples.len() / 2)),
        highest: at(samples.len().saturating_sub(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of = |samples: &[f64]| times(samples.to_vec()).median;
        assert!((of(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((of(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(of(&[]).is_nan());
    }
}
