//! The flows of one endpoint, as the semantics tell it: who may open one, how long it lives, and that it is judged
//! again, in the direction that opened it, by the policies in force. Written for obviousness: a map of tuples, asked
//! packet by packet. It must not know how the datapath keeps them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::endpoint::{Admission, Because, Endpoint, Ends, Hook, Origin, admit, traffic};
use crate::packet::{Datagram, Inner, Piece, Reading, Segment, Signal};
use crate::verdict::{Direction, Traffic};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Seconds for which the first fragment of a datagram is remembered.
const PIECES_SECONDS: u64 = 30;

/// A flow's two ends, as its endpoint sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The pod's address.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// The pod's port; an echo's identifier.
    pub local_port: u16,
    /// The peer's port; an echo's identifier.
    pub remote_port: u16,
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Opened, not answered.
    Opening,
    /// Answered.
    Answered,
    /// TCP and SCTP: the opener went on after the answer.
    Established,
    /// TCP and SCTP: one side is done.
    Closing,
    /// It was established, and the last packet was a reset. Any other takes it back.
    Reset,
}

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The direction that opened it.
    pub opener: Direction,
    /// Opened by the pod's own node: no policy is asked about it.
    pub of_node: bool,
    /// Opened by the pod itself, by way of a translator: the same, but what the pod answers goes to who knows whom.
    pub of_itself: bool,
    /// How far it has come.
    pub phase: Phase,
    /// When the last packet of it passed.
    pub seen: u64,
}

/// Which datagram a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Train {
    direction: Direction,
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    protocol: u8,
}

/// What is remembered of a datagram whose first fragment has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct First {
    ports: (u16, u16),
    protocol: u8,
    /// Bytes of the first fragment's payload: nothing may lie over them.
    bytes: usize,
    passed: usize,
    /// Known once the last has passed.
    whole: Option<usize>,
    seen: u64,
}

/// The flows of one endpoint.
#[derive(Clone, Debug, Default)]
pub struct Flows {
    by_tuple: BTreeMap<Tuple, Flow>,
    trains: BTreeMap<Train, First>,
    now: u64,
}

/// Seconds that a flow may be silent.
#[must_use]
pub const fn patience(protocol: u8, phase: Phase) -> u64 {
    match (protocol, phase) {
        (TCP | SCTP, Phase::Established) => 8_000,
        (TCP | SCTP, Phase::Closing | Phase::Reset) => 120,
        (TCP | SCTP, Phase::Opening | Phase::Answered) => 60,
        (ICMP | ICMPV6, _) | (_, Phase::Opening) => 30,
        (_, Phase::Answered | Phase::Established | Phase::Closing | Phase::Reset) => 180,
    }
}

/// Policies in force: of a direction, a peer and what is sent.
pub type Policies<'a> = dyn FnMut(Direction, IpAddr, Traffic) -> Because + 'a;

impl Flows {
    /// Time passes.
    pub fn wait(&mut self, seconds: u64) {
        self.now += seconds;
    }

    /// How far from the end of its patience anything is that is remembered here, at the nearest: a clock that is read a
    /// little later must not make a difference.
    #[must_use]
    pub fn margin(&self) -> u64 {
        let flows = self
            .by_tuple
            .iter()
            .map(|(tuple, flow)| (self.now - flow.seen).abs_diff(patience(tuple.protocol, flow.phase)));
        let trains = self.trains.values().map(|first| (self.now - first.seen).abs_diff(PIECES_SECONDS));
        flows.chain(trains).min().unwrap_or(u64::MAX)
    }

    /// The flows that live, in order.
    pub fn live(&self) -> impl Iterator<Item = (&Tuple, &Flow)> {
        self.by_tuple.iter().filter(|(tuple, flow)| self.is_live(tuple, flow))
    }

    fn is_live(&self, tuple: &Tuple, flow: &Flow) -> bool {
        self.now - flow.seen <= patience(tuple.protocol, flow.phase)
    }

    /// The verdict on a packet, and what it leaves.
    pub fn judge(
        &mut self,
        endpoint: &Endpoint,
        reading: &Reading<'_>,
        hook: Hook,
        policies: &mut Policies<'_>,
    ) -> Because {
        let Reading::Ip(datagram) = reading else {
            return match admit(endpoint, reading, hook) {
                Admission::Decided(because) => because,
                Admission::Segment(..) | Admission::LaterPiece(_) | Admission::Error(..) => Because::NotIp,
            };
        };
        match admit(endpoint, reading, hook) {
            Admission::Decided(because) => because,
            Admission::Segment(segment, ends) => {
                let because = self.segment(segment, ends, datagram.protocol, hook, policies);
                if because.passes() && ends.is_own {
                    self.remember(datagram, segment, hook.direction);
                }
                because
            }
            Admission::LaterPiece(ends) => self.later(datagram, ends, hook, policies),
            Admission::Error(inner, ends) => self.error(inner, ends, endpoint, hook, policies),
        }
    }

    fn segment(
        &mut self,
        segment: Segment,
        ends: Ends,
        protocol: u8,
        hook: Hook,
        policies: &mut Policies<'_>,
    ) -> Because {
        let from_node = hook.direction == Direction::Ingress && hook.origin == Origin::Node;
        let from_itself = hook.is_from_itself(protocol);
        let by_policy = |policies: &mut Policies<'_>| {
            if from_node {
                Because::OwnNode
            } else if from_itself && ends.is_own {
                Because::SelfTraffic
            } else {
                policies(hook.direction, ends.remote, traffic(protocol, segment.ports.1))
            }
        };
        if !ends.is_own || segment.signal == Signal::Alone {
            return by_policy(policies);
        }
        let (local_port, remote_port) = match hook.direction {
            Direction::Ingress => (segment.ports.1, segment.ports.0),
            Direction::Egress => segment.ports,
        };
        let tuple = Tuple { local: ends.local, remote: ends.remote, protocol, local_port, remote_port };
        let may_open = match segment.signal {
            Signal::Connect | Signal::Datagram | Signal::Request => true,
            Signal::Accept | Signal::Data | Signal::Finish | Signal::Reset | Signal::Alone => false,
        };
        // S29: a connection that begins is a new one, whatever was there.
        let held = self
            .by_tuple
            .get(&tuple)
            .copied()
            .filter(|flow| segment.signal != Signal::Connect && self.is_live(&tuple, flow));
        // What comes back to the pod passes whatever it is, and its answers need a flow.
        let mut makes_one = may_open || from_itself;
        if let Some(flow) = held {
            let is_opener = flow.opener == hook.direction;
            // A request is no answer to a request: it is a question of its own.
            let asks_back = may_open && !is_opener && matches!(protocol, ICMP | ICMPV6);
            // Only the node itself goes on with what it opened.
            let is_forged = flow.of_node && is_opener && !from_node && !from_itself;
            // Where it goes nobody sees: the policies decide.
            let is_unseen = flow.of_itself && !is_opener;
            if asks_back || is_forged || is_unseen {
                makes_one = false;
            } else if from_itself && !flow.of_node {
                // An older flow of the same tuple was another's.
                makes_one = true;
            } else {
                let again = judged_again(&tuple, &flow, policies);
                if again.passes() {
                    let flow = Flow {
                        phase: next(protocol, flow.phase, is_opener, segment.signal),
                        seen: self.now,
                        ..flow
                    };
                    self.by_tuple.insert(tuple, flow);
                    return Because::Flow;
                }
                // It is over. What can open one opens its own.
                if !may_open {
                    return if from_node { Because::OwnNode } else { again };
                }
            }
        }
        let because = by_policy(policies);
        if because.passes() && makes_one {
            let flow = Flow {
                opener: hook.direction,
                of_node: from_node || from_itself,
                of_itself: from_itself,
                phase: Phase::Opening,
                seen: self.now,
            };
            self.by_tuple.insert(tuple, flow);
        }
        because
    }

    /// S47, and the statement about ICMP: an error passes an isolated direction only about a live flow that is allowed.
    fn error(
        &self,
        inner: Option<Inner>,
        ends: Ends,
        endpoint: &Endpoint,
        hook: Hook,
        policies: &mut Policies<'_>,
    ) -> Because {
        if hook.direction == Direction::Ingress && hook.origin == Origin::Node {
            return Because::OwnNode;
        }
        if !hook.is_isolated {
            return Because::NotIsolated;
        }
        let related = |inner: Inner| {
            let ports = inner.ports?;
            // Towards the pod it is about a packet that the pod sent, from it about one that it got.
            let tuple = match hook.direction {
                Direction::Ingress => Tuple {
                    local: inner.src,
                    remote: inner.dst,
                    protocol: inner.protocol,
                    local_port: ports.0,
                    remote_port: ports.1,
                },
                Direction::Egress => Tuple {
                    local: inner.dst,
                    remote: inner.src,
                    protocol: inner.protocol,
                    local_port: ports.1,
                    remote_port: ports.0,
                },
            };
            let is_own = endpoint.addresses.contains(&tuple.local) && tuple.local == ends.local;
            // What the pod tells is for who sent what it is about.
            let is_for_peer = hook.direction == Direction::Ingress || tuple.remote == ends.remote;
            let is_related = is_own && is_for_peer;
            let flow = self.by_tuple.get(&tuple).filter(|flow| is_related && self.is_live(&tuple, flow))?;
            judged_again(&tuple, flow, policies).passes().then_some(Because::RelatedError)
        };
        inner.and_then(related).unwrap_or(Because::UnrelatedError)
    }

    /// T2: what a first fragment was about.
    fn remember(&mut self, datagram: &Datagram<'_>, segment: Segment, direction: Direction) {
        let Some(piece) = datagram.piece else { return };
        let first = First {
            ports: segment.ports,
            protocol: datagram.protocol,
            bytes: piece.bytes,
            passed: piece.bytes,
            whole: None,
            seen: self.now,
        };
        self.trains.insert(train(datagram, piece, direction), first);
    }

    /// T2: a later fragment belongs to a datagram whose first has passed.
    fn later(
        &mut self,
        datagram: &Datagram<'_>,
        ends: Ends,
        hook: Hook,
        policies: &mut Policies<'_>,
    ) -> Because {
        let refused = |because| if hook.is_isolated { because } else { Because::UnreadableOpen };
        // Nobody's datagram: to a group, or from an address that is not the pod's.
        let Some(piece) = datagram.piece.filter(|_| ends.is_own) else {
            return refused(Because::FragmentAhead);
        };
        let key = train(datagram, piece, hook.direction);
        let held = self.trains.get(&key).copied();
        let Some(first) = held.filter(|first| self.now - first.seen <= PIECES_SECONDS) else {
            return refused(Because::FragmentAhead);
        };
        if piece.offset < first.bytes {
            return refused(Because::Fragment);
        }
        // Counted whether or not it passes: of a datagram one fragment of which is denied, nothing comes of the others.
        let whole = if piece.last { Some(piece.offset + piece.bytes) } else { first.whole };
        let passed = first.passed + piece.bytes;
        if whole.is_some_and(|whole| passed >= whole) {
            self.trains.remove(&key);
        } else {
            self.trains.insert(key, First { passed, whole, ..first });
        }
        let segment = Segment { ports: first.ports, signal: Signal::Data };
        self.segment(segment, ends, first.protocol, hook, policies)
    }
}

/// What the policies in force say of a flow: in the direction that opened it.
fn judged_again(tuple: &Tuple, flow: &Flow, policies: &mut Policies<'_>) -> Because {
    if flow.of_node {
        return Because::OwnNode;
    }
    let port = match flow.opener {
        Direction::Ingress => tuple.local_port,
        Direction::Egress => tuple.remote_port,
    };
    policies(flow.opener, tuple.remote, traffic(tuple.protocol, port))
}

fn train(datagram: &Datagram<'_>, piece: Piece, direction: Direction) -> Train {
    let Datagram { src, dst, .. } = *datagram;
    Train { direction, src, dst, id: piece.id, protocol: piece.protocol }
}

/// FIN and RST shorten, and never end.
fn next(protocol: u8, phase: Phase, is_opener: bool, signal: Signal) -> Phase {
    let connects = matches!(protocol, TCP | SCTP);
    match (signal, phase) {
        // Whatever is not established has no more time than a reset leaves.
        (Signal::Reset, Phase::Established) => Phase::Reset,
        // TCP's SYN-ACK goes on with nothing, nor does a reset.
        (Signal::Reset, _) | (Signal::Accept, Phase::Answered) => phase,
        (Signal::Finish, _) | (_, Phase::Closing) => Phase::Closing,
        (_, Phase::Reset) => Phase::Established,
        (_, Phase::Opening) if !is_opener => Phase::Answered,
        (_, Phase::Answered) if is_opener && connects => Phase::Established,
        (_, Phase::Opening | Phase::Answered | Phase::Established) => phase,
    }
}
