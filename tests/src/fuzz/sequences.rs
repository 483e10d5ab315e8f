//! Random scripts: states of a cluster that differ in policies, labels and pods, and sequences of packets of a few
//! conversations, mostly as a real connection has them, mixed with all that is not. Knows nothing of verdicts.

use std::net::IpAddr;

use portcullis_oracle::endpoint::Origin;
use portcullis_oracle::generate;
use portcullis_oracle::packet::Link;
use portcullis_oracle::rng::SplitMix64;
use portcullis_oracle::{Direction, World};
use serde_json::{Value, json};

use super::frames::{Forge, Scene, head};
use super::rig::DEVICES;
use super::script::{Packet, Script, Step};
use super::stateless::is_askable;

const PORTS: [u16; 7] = [80, 81, 443, 53, 8080, 1, 65_535];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Seconds that pass at once: around and far from every time-out.
const WAITS: [u64; 12] = [1, 5, 12, 45, 45, 75, 100, 140, 200, 3_000, 7_000, 8_100];
/// States of a script.
const STATES: usize = 5;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A script, and what to talk about in it.
#[derive(Debug)]
pub struct Plot {
    /// The script.
    pub script: Script,
    peers: Vec<IpAddr>,
}

/// The plot of a seed; none if its cluster has no pod with an address.
#[must_use]
pub fn plot(seed: u64) -> Option<Plot> {
    let mut rng = SplitMix64::new(seed);
    let case = generate::cluster(rng.next_u64());
    let objects = generate::flat(&case.manifests);
    let world = World::new(&objects);
    let mut pods: Vec<String> =
        world.subjects().into_iter().filter(|pod| !world.addresses(pod).is_empty()).collect();
    rng.shuffle(&mut pods);
    pods.truncate(DEVICES);
    if pods.is_empty() {
        return None;
    }
    let devices = pods.iter().map(|pod| world.addresses(pod)).collect();
    let mut states = vec![objects];
    while states.len() < STATES {
        let next = changed(&mut rng, states.last()?);
        states.push(next);
    }
    Some(Plot { script: Script { states, devices }, peers: case.externals })
}

/// The next state: policies come, go and change, labels change, a pod goes, or another one comes in its place.
fn changed(rng: &mut SplitMix64, objects: &[Value]) -> Vec<Value> {
    let mut objects = objects.to_vec();
    for _ in 0..rng.between(1, 3) {
        let other = generate::flat(&generate::cluster(rng.next_u64()).manifests);
        let of_kind = |objects: &[Value], kind: &str| -> Vec<usize> {
            (0..objects.len()).filter(|at| objects[*at]["kind"] == kind).collect()
        };
        let (mine, theirs) = (of_kind(&objects, "NetworkPolicy"), of_kind(&other, "NetworkPolicy"));
        let (pods, others) = (of_kind(&objects, "Pod"), of_kind(&other, "Pod"));
        match rng.below(10) {
            0..=2 if !theirs.is_empty() => objects.push(other[*rng.pick(&theirs)].clone()),
            3..=4 if !mine.is_empty() => {
                objects.remove(*rng.pick(&mine));
            }
            5 if !mine.is_empty() && !theirs.is_empty() => {
                let spec = other[*rng.pick(&theirs)]["spec"].clone();
                objects[*rng.pick(&mine)]["spec"] = spec;
            }
            6 | 7 if !pods.is_empty() && !others.is_empty() => {
                let labels = other[*rng.pick(&others)]["metadata"]["labels"].clone();
                objects[*rng.pick(&pods)]["metadata"]["labels"] = labels;
            }
            8 if pods.len() > 1 => {
                objects.remove(*rng.pick(&pods));
            }
            9 if !pods.is_empty() => {
                // The same name and address, another pod.
                let uid = format!("new-{}", rng.below(1_000));
                objects[*rng.pick(&pods)]["metadata"]["uid"] = json!(uid);
            }
            _ => {}
        }
    }
    objects
}

/// Sequences in a row that begin in the same state: to come to another takes as long as many packets.
const IN_A_ROW: u64 = 20;

/// One sequence in so many has another agent take over: the verifier takes as long as some hundred sequences.
const RESTARTS: usize = 4_000;

/// A sequence: the state that it begins in, and its steps.
#[must_use]
pub fn sequence(plot: &Plot, number: u64, seed: u64) -> (usize, Vec<Step>) {
    let mut author = Author { rng: SplitMix64::new(seed), forge: Forge::new(!seed), plot };
    let first = usize::try_from(number / IN_A_ROW).unwrap_or(0) % plot.script.states.len().max(1);
    let mut talks: Vec<Talk> = Vec::new();
    for _ in 0..author.rng.between(1, 5) {
        let talk = author.talk(&talks);
        talks.push(talk);
    }
    let mut steps = Vec::new();
    // Most sequences see no change: what they are about are flows, and a change takes as long as many packets.
    let changes = author.rng.chance(200);
    let length = author.rng.between(5, 60);
    while steps.len() < length {
        match author.rng.below(200) {
            0..=9 if changes => {
                steps.push(Step::State(author.rng.below(plot.script.states.len())));
                if author.rng.chance(100) {
                    steps.push(Step::Settle);
                }
            }
            10..=19 => steps.push(Step::Wait(*author.rng.pick(&WAITS))),
            20 => steps.push(Step::Expire),
            21..=24 => author.stray(&mut steps),
            _ => {
                let at = author.rng.below(talks.len());
                if let Some(talk) = talks.get_mut(at) {
                    author.say(talk, &mut steps);
                }
            }
        }
    }
    if author.rng.below(RESTARTS) == 0 {
        let at = author.rng.below(steps.len() + 1);
        steps.insert(at, Step::Restart);
    }
    (first, steps)
}

/// A conversation of a pod.
#[derive(Clone, Copy, Debug)]
struct Talk {
    device: usize,
    local: IpAddr,
    remote: IpAddr,
    protocol: u8,
    local_port: u16,
    remote_port: u16,
    /// True if the pod began it.
    is_ours: bool,
    /// How far the usual course has come.
    at: usize,
}

struct Author<'a> {
    rng: SplitMix64,
    forge: Forge,
    plot: &'a Plot,
}

impl Author<'_> {
    fn talk(&mut self, others: &[Talk]) -> Talk {
        let devices = &self.plot.script.devices;
        let device = self.rng.below(devices.len());
        let local = *self.rng.pick(&devices[device]);
        let v4 = local.is_ipv4();
        let everybody: Vec<IpAddr> = self
            .plot
            .peers
            .iter()
            .chain(devices.iter().flatten())
            .copied()
            .filter(|peer| peer.is_ipv4() == v4)
            .collect();
        let icmp = if v4 { 1 } else { 58 };
        let protocol = *self.rng.pick(&[6, 6, 6, 6, 17, 17, 17, 132, 132, icmp, icmp, 47, 1]);
        let mut talk = Talk {
            device,
            local,
            remote: if everybody.is_empty() { local } else { *self.rng.pick(&everybody) },
            protocol,
            local_port: *self.rng.pick(&PORTS),
            remote_port: *self.rng.pick(&PORTS),
            is_ours: self.rng.chance(500),
            at: 0,
        };
        // Now and then one that shares its tuple, or most of it, with another.
        if let Some(other) = others.last().filter(|_| self.rng.chance(300)) {
            (talk.protocol, talk.remote_port) = (other.protocol, other.remote_port);
            talk.local_port = other.local_port;
            if other.remote.is_ipv4() == v4 {
                talk.remote = other.remote;
            }
        }
        talk
    }

    /// A packet of nobody's conversation, or of none.
    fn stray(&mut self, steps: &mut Vec<Step>) {
        let devices = &self.plot.script.devices;
        let device = self.rng.below(devices.len());
        let (direction, origin) = self.place(self.plot.script.devices.len() > 1);
        let scene =
            Scene { own: &devices[device], peers: &self.plot.peers, station: STATION, link: Link::Ethernet };
        let frame = self.forge.next(&scene, direction).to_vec();
        if is_askable(&frame) {
            steps.push(Step::Packet(Packet { device, direction, origin, frame }));
        }
    }

    fn place(&mut self, often_out: bool) -> (Direction, Origin) {
        match self.rng.below(10) {
            0..=4 if often_out => (Direction::Egress, Origin::Pod),
            5 => (Direction::Ingress, Origin::Node),
            _ => (Direction::Ingress, Origin::Elsewhere),
        }
    }

    /// The next packet of a conversation: mostly what comes next, else anything.
    fn say(&mut self, talk: &mut Talk, steps: &mut Vec<Step>) {
        let usual = self.rng.chance(650);
        let from_us;
        let payload;
        if usual {
            let (opener, part) = self.usual(talk);
            from_us = opener == talk.is_ours;
            payload = self.segment(talk, from_us, part);
            talk.at += 1;
        } else if self.rng.chance(120) {
            from_us = self.rng.chance(500);
            payload = self.error(talk, from_us);
        } else {
            from_us = self.rng.chance(500);
            let part = self.rng.next_u64().to_be_bytes()[0];
            payload = self.segment(talk, from_us, part);
        }
        let protocol = protocol_of(talk, &payload);
        let (src, dst) = if from_us { (talk.local, talk.remote) } else { (talk.remote, talk.local) };
        let (direction, origin) = match (from_us, self.rng.below(20)) {
            (true, _) => (Direction::Egress, Origin::Pod),
            (false, 0..=2) => (Direction::Ingress, Origin::Node),
            (false, 3) => (Direction::Ingress, Origin::Pod),
            (false, _) => (Direction::Ingress, Origin::Elsewhere),
        };
        let frames = if self.rng.chance(120) {
            self.pieces(src, dst, protocol, payload)
        } else {
            vec![whole(src, dst, protocol, &payload)]
        };
        // A pod's packet to another pod here comes by its hook too.
        let there = (0..self.plot.script.devices.len())
            .find(|there| self.plot.script.devices[*there].contains(&dst) && *there != talk.device);
        for frame in frames {
            if let Some(device) = there.filter(|_| from_us && self.rng.chance(700)) {
                let packet = Packet {
                    device,
                    direction: Direction::Ingress,
                    origin: Origin::Elsewhere,
                    frame: frame.clone(),
                };
                steps.push(Step::Packet(packet));
            }
            steps.push(Step::Packet(Packet { device: talk.device, direction, origin, frame }));
        }
    }

    /// What a conversation of this kind says next: whether its opener speaks, and what.
    fn usual(&mut self, talk: &Talk) -> (bool, u8) {
        let tcp =
            [(true, SYN), (false, SYN | ACK), (true, ACK), (true, ACK | 8), (false, ACK | 8), (true, ACK)];
        let sctp = [(true, 1), (false, 2), (true, 10), (false, 11), (true, 0), (false, 3)];
        let ends = [(true, FIN | ACK), (false, FIN | ACK), (true, RST), (false, ACK)];
        match talk.protocol {
            6 if talk.at < tcp.len() => tcp[talk.at],
            6 if self.rng.chance(150) => *self.rng.pick(&ends),
            6 => *self.rng.pick(&tcp[3..]),
            132 if talk.at < sctp.len() => sctp[talk.at],
            132 if self.rng.chance(150) => *self.rng.pick(&[(true, 7), (false, 8), (true, 14), (false, 6)]),
            132 => *self.rng.pick(&sctp[4..]),
            1 | 58 => (talk.at.is_multiple_of(2), if talk.at.is_multiple_of(2) { 8 } else { 0 }),
            _ => (talk.at.is_multiple_of(2) || self.rng.chance(300), 0),
        }
    }

    /// The conversation's packet: flags of TCP, a chunk of SCTP, a request (8) or anything else of ICMP.
    fn segment(&mut self, talk: &Talk, from_us: bool, part: u8) -> Vec<u8> {
        let (source, destination) =
            if from_us { (talk.local_port, talk.remote_port) } else { (talk.remote_port, talk.local_port) };
        let mut payload = Vec::new();
        match talk.protocol {
            6 => {
                ports(&mut payload, source, destination);
                payload.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, part, 0xff, 0xff, 0, 0, 0, 0]);
            }
            17 => {
                ports(&mut payload, source, destination);
                payload.extend_from_slice(&[0, 8, 0, 0]);
            }
            132 => {
                ports(&mut payload, source, destination);
                payload.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, part & 15, 0, 0, 20]);
            }
            1 | 58 => {
                let (request, reply) = if talk.protocol == 1 { (8, 0) } else { (128, 129) };
                let kind = if part == 8 { request } else { reply };
                let [high, low] = talk.local_port.to_be_bytes();
                payload.extend_from_slice(&[kind, 0, 0, 0, high, low, 0, 1]);
            }
            _ => payload.extend([0x45; 8]),
        }
        let more = self.rng.below(60);
        payload.resize(payload.len() + more, 0x5a);
        payload
    }

    /// An ICMP error about the conversation's packet of the other side.
    fn error(&mut self, talk: &Talk, from_us: bool) -> Vec<u8> {
        let about = self.segment(talk, !from_us, ACK);
        let (src, dst) = if from_us { (talk.remote, talk.local) } else { (talk.local, talk.remote) };
        let kind = if src.is_ipv4() { *self.rng.pick(&[3, 11, 12]) } else { *self.rng.pick(&[1, 2, 3, 4]) };
        let mut payload = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        head(&mut payload, src, dst, talk.protocol, 60, about.len());
        payload.extend_from_slice(about.get(..8).unwrap_or(&about));
        // So that who reads this knows it for an error, whatever the conversation is.
        payload.push(ERROR);
        payload
    }

    /// A datagram in pieces, mostly in order; some twice, some never, some where they should not be.
    fn pieces(&mut self, src: IpAddr, dst: IpAddr, protocol: u8, mut payload: Vec<u8>) -> Vec<Vec<u8>> {
        payload.resize(payload.len() + self.rng.below(80), 0x77);
        let id = u32::try_from(self.rng.between(1, 3)).unwrap_or(1);
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < payload.len() {
            let units = if start == 0 { self.rng.between(1, 5) } else { self.rng.between(1, 4) };
            let end = (start + units * 8).min(payload.len());
            pieces.push((start, &payload[start..end], end < payload.len()));
            start = end;
        }
        match self.rng.below(10) {
            0 => self.rng.shuffle(&mut pieces),
            1 => {
                let at = self.rng.below(pieces.len());
                pieces.remove(at);
            }
            2 => {
                let again = *self.rng.pick(&pieces);
                pieces.push(again);
            }
            3 => {
                let at = self.rng.below(pieces.len());
                pieces[at].0 = self.rng.below(12) * 8;
            }
            _ => {}
        }
        pieces
            .into_iter()
            .map(|(offset, bytes, more)| piece(src, dst, protocol, id, offset, bytes, more))
            .collect()
    }
}

/// What an error's payload ends with.
const ERROR: u8 = 0xee;

fn protocol_of(talk: &Talk, payload: &[u8]) -> u8 {
    let is_error = payload.last() == Some(&ERROR);
    match (is_error, talk.local) {
        (false, _) => talk.protocol,
        (true, IpAddr::V4(_)) => 1,
        (true, IpAddr::V6(_)) => 58,
    }
}

fn ports(payload: &mut Vec<u8>, source: u16, destination: u16) {
    payload.extend(source.to_be_bytes());
    payload.extend(destination.to_be_bytes());
}

fn ethernet(src: IpAddr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend_from_slice(if src.is_ipv4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    frame
}

fn whole(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(src);
    head(&mut frame, src, dst, protocol, 64, payload.len());
    frame.extend_from_slice(payload);
    frame
}

fn piece(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
    offset: usize,
    bytes: &[u8],
    more: bool,
) -> Vec<u8> {
    let mut frame = ethernet(src);
    let offset = u16::try_from(offset).unwrap_or(0);
    if src.is_ipv4() {
        head(&mut frame, src, dst, protocol, 64, bytes.len());
        frame[18..20].copy_from_slice(&u16::try_from(id).unwrap_or(1).to_be_bytes());
        let word = (offset / 8) | if more { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&word.to_be_bytes());
    } else {
        head(&mut frame, src, dst, 44, 64, bytes.len() + 8);
        frame.extend_from_slice(&[protocol, 0]);
        frame.extend((offset | u16::from(more)).to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend_from_slice(bytes);
    frame
}
