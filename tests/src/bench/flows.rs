//! What a packet costs among many flows: real packets, each of another flow, to pods whose flow tables hold from one
//! entry to a million. Which flow comes next is drawn beforehand, so that the caches hold what they would hold.
//!
//! Established flows are written into the table, as copies of one that the programs made. New ones are made by the
//! programs and taken away again.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use portcullis_common::addr::Addr;
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::packet::{TCP_ACK, TCP_SYN};
use portcullis_common::wire::{DEFAULT_FLOWS, FIRST_FLOWS, FLOW_TAG_FLAGS, FLOWS_GROWTH, FlowEntry, FlowKey};
use portcullis_oracle::rng::SplitMix64;
use portcullis_tests::attached::{Attached, FlowTable, Place, Seat};
use portcullis_tests::device::{self, Veth};
use serde_json::{Value, json};
use zerocopy::FromBytes as _;

use crate::live::{self, BATCH, Counting, Sender, Took, took};
use crate::measure::{Times, times};
use crate::scenario::{self, Case, Family, Peers, Subject, World};
use crate::target;

/// Addresses that flows lead to.
const PEERS: u32 = 1_000;
/// The pod's first port.
const FIRST_PORT: u32 = 1_024;
/// The number of the first flow that is not in a table.
const FIRST_NEW: u32 = 4_000_000;
/// The exponent of Zipf's law: the flow of rank k comes k^-s times as often as the first.
const ZIPF: f64 = 1.0;
/// Packets before a measurement, at most: what a table of that size leaves in the caches is there then.
const WARM_UP: u32 = 200_000;
/// A table that is full has this many entries.
const FULL: u32 = 65_536;
/// Room for new flows where a table larger than an agent's default is asked for.
const MARGIN: u32 = 10_000;
/// New flows of one measurement, at most: their events fit into the ring and a second's budget.
const NEW: u32 = 2_000;

/// Which flow a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Choice {
    /// Any in the table, all as often.
    Uniform,
    /// Any in the table, few often and many seldom.
    Zipf,
    /// One that is not there: it is made.
    New,
    /// One that is not there, nor has room there.
    Full,
}

impl Choice {
    const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::New => "new",
            Self::Full => "table full",
        }
    }

    const fn target(self) -> target::Packet {
        match self {
            Self::Uniform | Self::Zipf => target::Packet::Established,
            Self::New | Self::Full => target::Packet::New,
        }
    }
}

/// How much to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Flows in a table.
    pub(crate) sizes: Vec<u32>,
    pub(crate) rounds: u32,
    /// Packets of one measurement.
    pub(crate) packets: u32,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Flows in the table.
    size: u32,
    /// Entries that it has room for.
    room: u32,
    choice: Choice,
    ours: Times,
    empty: Times,
    /// Of the two, measurement by measurement.
    ratio: Times,
}

impl Row {
    fn judged(&self) -> target::Judged {
        self.choice.target().judge(self.ours.lowest, self.empty.lowest)
    }
}

/// A pod with a table of its own.
struct Pod {
    size: u32,
    room: u32,
    sender: Sender,
    table: FlowTable,
    /// The flow that the others are copies of.
    key: FlowKey,
    entry: FlowEntry,
}

struct Item {
    pod: usize,
    choice: Choice,
    samples: Vec<Took>,
}

/// The ends of flows: the pod's address, peers, and the port that the policy allows.
struct Ends {
    own: IpAddr,
    port: u16,
}

impl Ends {
    fn peer(number: u32) -> IpAddr {
        IpAddr::V4(scenario::peer(number % PEERS))
    }

    fn own_port(number: u32) -> Result<u16> {
        u16::try_from(FIRST_PORT + number / PEERS).context("more flows than ports")
    }

    fn frame(&self, number: u32, flags: u8) -> Result<Vec<u8>> {
        scenario::tcp(self.own, Self::peer(number), Self::own_port(number)?, self.port, flags)
    }
}

impl Pod {
    fn key(&self, number: u32) -> Result<FlowKey> {
        let remote = match Ends::peer(number) {
            IpAddr::V4(v4) => Addr::v4(v4.octets()),
            IpAddr::V6(v6) => Addr::v6(v6.octets()),
        };
        Ok(FlowKey { remote, local_port: Ends::own_port(number)?, ..self.key })
    }

    fn put(&mut self, number: u32) -> Result<()> {
        let key = self.key(number)?;
        let entry = FlowEntry { tag: key.tag() | self.entry.tag & FLOW_TAG_FLAGS, ..self.entry };
        self.table.insert(bytes_of(&key)?, bytes_of(&entry)?, 0).context("writing a flow")
    }

    fn take(&mut self, number: u32) -> Result<()> {
        let key = bytes_of(&self.key(number)?)?;
        self.table.remove(&key).context("taking a flow away: the programs did not make it")
    }
}

fn bytes_of<const N: usize>(value: &(impl zerocopy::IntoBytes + zerocopy::Immutable)) -> Result<[u8; N]> {
    value.as_bytes().try_into().context("the size of a key or value")
}

/// In a namespace of its own, on a thread of its own.
pub(crate) fn measure(plan: &Plan, rng: &mut SplitMix64) -> Result<Vec<Row>> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| -> Result<Vec<Row>> {
            device::own_namespace()?;
            live::silence()?;
            live::stay()?;
            run(plan, rng)
        });
        work.join().map_err(|_| anyhow::anyhow!("measuring flows panicked"))?
    })
}

/// As many entries as the table of so many flows has room for, after all its growing.
fn room(size: u32) -> u32 {
    let mut room = FIRST_FLOWS;
    while size > room / 2 && room < DEFAULT_FLOWS {
        room = room.saturating_mul(FLOWS_GROWTH);
    }
    if size > room / 2 && room < size + MARGIN { size * 2 } else { room }
}

fn run(plan: &Plan, rng: &mut SplitMix64) -> Result<Vec<Row>> {
    let world = World::new(PEERS, &[1], rng)?;
    let subject = world.subjects.iter().find(|s| s.peers == Peers::Pods).context("a pod with a policy")?;
    let mut load = Attached::load()?;
    let full = plan.sizes.iter().copied().max().unwrap_or(1).min(FULL);
    let sizes = plan.sizes.iter().map(|size| (*size, room(*size))).chain([(full, full)]);
    let mut devices = Vec::new();
    for (number, size) in sizes.enumerate() {
        devices.push((Veth::create(&format!("pcf{number}"))?, size));
    }
    let seat = |(device, (_, room)): &(Veth, (u32, u32))| Seat {
        pod: subject.key.clone(),
        ifindex: device.index,
        flows: *room,
    };
    load.write_at(&world.cluster, &world.desired, &devices.iter().map(seat).collect::<Vec<_>>())?;
    let ends = Ends { own: subject.ends[0].0, port: scenario::last_port(subject)? };
    let (mut pods, mut items) = (Vec::new(), Vec::new());
    for (slot, (device, (size, room))) in (0u32..).zip(devices) {
        eprintln!("{size} flows in a table of {room}");
        let index = pods.len();
        let pod = pod(&mut load, subject, slot, &device, (size, room))?;
        let choices: &[Choice] = match () {
            () if room == size => &[Choice::Full],
            () if size == 1 => &[Choice::Uniform, Choice::New],
            () => &[Choice::Uniform, Choice::Zipf, Choice::New],
        };
        items.extend(choices.iter().map(|choice| Item { pod: index, choice: *choice, samples: Vec::new() }));
        pods.push(pod);
    }
    let _counting = Counting::begin()?;
    let mut next = FIRST_NEW;
    for round in 0..plan.rounds {
        if round % crate::REPORTED == 0 {
            eprintln!("flows: round {} of {}", round + 1, plan.rounds);
        }
        rng.shuffle(&mut items);
        for item in &mut items {
            let pod = pods.get_mut(item.pod).context("a pod")?;
            let took = match item.choice {
                Choice::Uniform | Choice::Zipf => {
                    established(&mut load, pod, &ends, item.choice, plan.packets, rng)
                }
                Choice::New | Choice::Full => {
                    new(&mut load, pod, &ends, item.choice, plan.packets, &mut next)
                }
            };
            let what = || format!("{} of {} flows", item.choice.name(), pod.size);
            item.samples.push(took.with_context(what)?);
        }
    }
    let mut rows: Vec<Row> =
        items.iter().filter_map(|item| pods.get(item.pod).map(|pod| row(item, pod))).collect();
    rows.sort_by_key(|row| (row.choice, row.size));
    Ok(rows)
}

fn row(item: &Item, pod: &Pod) -> Row {
    let of = |each: fn(&Took) -> f64| times(item.samples.iter().map(each).collect());
    Row {
        size: pod.size,
        room: pod.room,
        choice: item.choice,
        ours: of(|took| took.ours),
        empty: of(|took| took.empty),
        ratio: of(|took| took.ours / took.empty),
    }
}

/// Attaches, makes one flow by its packets, and copies it until the table holds as many as it should.
fn pod(
    load: &mut Attached,
    subject: &Subject,
    slot: u32,
    device: &Veth,
    (size, room): (u32, u32),
) -> Result<Pod> {
    load.attach_beside_empty(device.name())?;
    device.up()?;
    let sender = Sender::new(device.peer_index()?)?;
    let (before, _) = scenario::packets(subject, Case::Established, Family::V4, Direction::Egress)?;
    for put in before {
        let came_from = match put.direction {
            // Any that is not the pod's own.
            Direction::Ingress => LOOPBACK,
            Direction::Egress => device.index,
        };
        let place = Place { direction: put.direction, ifindex: device.index, came_from };
        let ran = load.run(place, &put.frame, 1)?;
        ensure!(ran.action == Action::Allow, "the first flow is not allowed");
    }
    let mut table = load.flow_table(slot)?;
    let (key, entry) = table.iter().next().context("the programs made no flow")?.context("reading a flow")?;
    table.remove(&key).context("taking the first flow away")?;
    let key = FlowKey::read_from_bytes(&key).ok().context("reading a flow's key")?;
    let entry = FlowEntry::read_from_bytes(&entry).ok().context("reading a flow")?;
    let mut pod = Pod { size, room, sender, table, key, entry };
    for number in 0..size {
        pod.put(number)?;
    }
    Ok(pod)
}

/// The loopback device's index in every namespace.
const LOOPBACK: u32 = 1;

/// Packets of flows in the table: each finds its own.
fn established(
    load: &mut Attached,
    pod: &Pod,
    ends: &Ends,
    choice: Choice,
    packets: u32,
    rng: &mut SplitMix64,
) -> Result<Took> {
    let draw = Draw::new(choice, pod.size, rng);
    let order = |count: u32, rng: &mut SplitMix64| (0..count).map(|_| draw.next(rng)).collect::<Vec<u32>>();
    let warm_up = order(packets.max(pod.size).min(WARM_UP), rng);
    let measured = order(packets, rng);
    took(load, u64::try_from(warm_up.len())?, || send(pod, ends, &warm_up, TCP_ACK))?;
    checked(load, Reason::Flow, packets, |load| {
        took(load, packets.into(), || send(pod, ends, &measured, TCP_ACK))
    })
}

/// Packets that open flows; those that found room are taken away again.
fn new(
    load: &mut Attached,
    pod: &mut Pod,
    ends: &Ends,
    choice: Choice,
    packets: u32,
    next: &mut u32,
) -> Result<Took> {
    let packets = packets.min(NEW);
    load.drain();
    let refused = load.flows_refused()?;
    let (mut last, mut opened) = (None, Vec::new());
    // The first time warms up.
    for _ in 0..2 {
        let numbers: Vec<u32> = (*next..*next + packets).collect();
        // Ports are used again: these flows are long gone.
        *next = if *next + packets * 2 > FIRST_NEW * 10 { FIRST_NEW } else { *next + packets };
        let took = checked(load, Reason::Rule, packets, |load| {
            took(load, packets.into(), || send(pod, ends, &numbers, TCP_SYN))
        })?;
        last = Some(took);
        opened.extend(numbers);
    }
    let refused = load.flows_refused()? - refused;
    if choice == Choice::Full {
        ensure!(refused == u64::from(packets) * 2, "{refused} of {packets} twice found the table full");
    } else {
        ensure!(refused == 0, "{refused} flows found no room");
        opened.into_iter().try_for_each(|number| pod.take(number))?;
    }
    last.context("nothing was measured")
}

/// Looks whether all packets were counted as what they are meant to be.
fn checked(
    load: &mut Attached,
    reason: Reason,
    packets: u32,
    measure: impl FnOnce(&mut Attached) -> Result<Took>,
) -> Result<Took> {
    let before = load.packets(Direction::Egress, Action::Allow, reason)?;
    let took = measure(load)?;
    let counted = load.packets(Direction::Egress, Action::Allow, reason)? - before;
    ensure!(
        counted == u64::from(packets) && took.packets == counted,
        "{counted} of {} packets counted as {reason:?}",
        took.packets
    );
    Ok(took)
}

fn send(pod: &Pod, ends: &Ends, numbers: &[u32], flags: u8) -> Result<()> {
    for batch in numbers.chunks(BATCH) {
        let frames: Vec<Vec<u8>> =
            batch.iter().map(|number| ends.frame(*number, flags)).collect::<Result<_>>()?;
        pod.sender.send(&frames)?;
    }
    Ok(())
}

/// Draws flows.
enum Draw {
    Uniform(usize),
    /// How much of the packets the ranks up to each have; and the flow of each rank. Flows of neighbouring ranks must
    /// not lie side by side in memory.
    Zipf(Vec<f64>, Vec<u32>),
}

impl Draw {
    fn new(choice: Choice, size: u32, rng: &mut SplitMix64) -> Self {
        if choice != Choice::Zipf {
            return Self::Uniform(size as usize);
        }
        let mut sum = 0.0;
        let shares: Vec<f64> = (1..=size)
            .map(|rank| {
                sum += f64::from(rank).powf(-ZIPF);
                sum
            })
            .collect();
        let mut flows: Vec<u32> = (0..size).collect();
        rng.shuffle(&mut flows);
        Self::Zipf(shares.into_iter().map(|share| share / sum).collect(), flows)
    }

    fn next(&self, rng: &mut SplitMix64) -> u32 {
        match self {
            Self::Uniform(size) => u32::try_from(rng.below(*size)).unwrap_or(0),
            Self::Zipf(shares, flows) => {
                #[allow(clippy::cast_precision_loss, reason = "53 bits are a float's")]
                let at = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
                let rank = shares.partition_point(|share| *share <= at).min(flows.len().saturating_sub(1));
                flows.get(rank).copied().unwrap_or(0)
            }
        }
    }
}

/// For people.
pub(crate) fn text(plan: &Plan, rows: &[Row]) -> String {
    use std::fmt::Write as _;

    let mut out = format!(
        "\nReal packets of many flows, {} rounds of {} packets: ns a packet by the kernel's own count \
         (BPF_ENABLE_STATS,\nwhich adds its clock to both): lowest and median of the empty program and of ours; median \
         of ours by empty;\ntargets by the lowest\n",
        plan.rounds, plan.packets
    );
    let _ = writeln!(
        out,
        "\n{:>10} {:>8} {:>8}  {:>9} {:>11} {:>6}",
        "packets", "flows", "room", "empty", "ours", "ratio"
    );
    for row in rows {
        let _ = writeln!(
            out,
            "{:>10} {:>8} {:>8}  {:>4.0} {:>4.0} {:>6.0} {:>4.0} {:>5.1}x  {}",
            row.choice.name(),
            row.size,
            row.room,
            row.empty.lowest,
            row.empty.median,
            row.ours.lowest,
            row.ours.median,
            row.ratio.median,
            row.judged().words()
        );
    }
    out
}

/// For programs.
pub(crate) fn json(plan: &Plan, rows: &[Row]) -> Value {
    let all = |times: &Times| json!({"min": times.lowest, "median": times.median, "max": times.highest});
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let judged = row.judged();
            json!({
                "packets": row.choice.name(), "flows": row.size, "room": row.room,
                "ns": all(&row.ours), "emptyNs": all(&row.empty), "timesEmpty": all(&row.ratio),
                "targetMetScaled": judged.is_met_scaled(), "targetMetAboveEmpty": judged.is_met_above(),
            })
        })
        .collect();
    json!({"rounds": plan.rounds, "packets": plan.packets, "measured": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_prefers_few_and_reaches_many() {
        let mut rng = SplitMix64::new(1);
        let draw = Draw::new(Choice::Zipf, 1_000, &mut rng);
        let mut seen = vec![0u32; 1_000];
        for _ in 0..100_000 {
            *seen.get_mut(draw.next(&mut rng) as usize).unwrap() += 1;
        }
        seen.sort_unstable();
        // 1 / (1 + 1/2 + ... + 1/1000) is 13.4 %.
        assert!((12_500..14_500).contains(seen.last().unwrap()), "{:?}", seen.last());
        assert!(seen.iter().filter(|times| **times > 0).count() > 900);
    }

    #[test]
    fn tables_have_room_as_an_agent_gives_it() {
        assert_eq!([1, 8_192, 8_193, 100_000].map(room), [16_384, 16_384, 65_536, 262_144]);
        assert_eq!([1_000_000, 2_000_000].map(room), [DEFAULT_FLOWS, 4_000_000]);
    }

    #[test]
    fn every_flow_has_ports_of_its_own() {
        let at = |number| (Ends::peer(number), Ends::own_port(number).unwrap());
        assert_ne!(at(0), at(1));
        assert_ne!(at(0), at(PEERS));
        assert_ne!(at(999_999), at(FIRST_NEW));
        assert!(Ends::own_port(FIRST_NEW * 10).is_ok());
    }
}
