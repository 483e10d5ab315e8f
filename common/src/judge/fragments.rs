//! Fragments: only the first has ports, so what has passed of a datagram is remembered in the endpoint's own table of
//! flows, and the rest is judged by the ports of its first. A datagram needs as much room as a flow, and gives it back
//! with its last byte or after [`FRAGMENT_SECONDS`].

use super::tuple::ByTuple;
use super::{Environment, NOT_OWN, Work};
use crate::event::{Direction, Reason};
use crate::flow::{FRAGMENT_SECONDS, is_over};
use crate::packet::{Part, Shape};
use crate::wire::{
    FLOW_KIND_FRAGMENTS_EGRESS, FLOW_KIND_FRAGMENTS_INGRESS, FLOW_OPENED_INGRESS, FLOW_TAG_FLAGS, FlowEntry,
    FlowKey,
};

/// What is remembered of a later fragment's datagram. A number: what functions return that are their own in eBPF.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Recalled(u32);

impl Recalled {
    /// The ports are known and in the packet.
    const KNOWN: Self = Self(0);
    /// Its first fragment has not passed.
    const NOTHING: Self = Self(1);
    /// It writes over its first fragment.
    const OVERLAPS: Self = Self(2);

    /// Why the fragment cannot be read; `None` if it can.
    #[inline(always)]
    pub(super) const fn reason(self) -> Option<Reason> {
        match self {
            Self::KNOWN => None,
            Self::OVERLAPS => Some(Reason::Fragment),
            _ => Some(Reason::FragmentAhead),
        }
    }
}

impl<E: Environment> ByTuple<'_, E> {
    /// The key under which the packet's datagram is remembered.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)]
    fn datagram(&self, work: &mut Work) {
        let packet = &work.packet;
        let (remote, kind) = match self.direction {
            Direction::Ingress => (packet.src, FLOW_KIND_FRAGMENTS_INGRESS),
            Direction::Egress => (packet.dst, FLOW_KIND_FRAGMENTS_EGRESS),
        };
        work.key = FlowKey {
            remote,
            local_port: packet.datagram as u16,
            remote_port: (packet.datagram >> 16) as u16,
            protocol: packet.carries,
            local: work.own,
            kind,
        };
    }

    /// Remembers the datagram of a first fragment that has passed.
    #[inline(never)]
    pub(super) fn remember(&self, work: &mut Work) {
        // Nobody's datagram: a later fragment to another group could take its place.
        if work.own == NOT_OWN {
            return;
        }
        self.datagram(work);
        let packet = &work.packet;
        let (local_port, remote_port, opened) = match self.direction {
            Direction::Ingress => (packet.dst_port, packet.src_port, FLOW_OPENED_INGRESS),
            Direction::Egress => (packet.src_port, packet.dst_port, 0),
        };
        work.entry = FlowEntry {
            stamp: u32::from(local_port) | (u32::from(remote_port) << 16),
            tag: work.key.tag() | opened,
            seen: self.env.now(),
            state: (packet.payload & 0xffff) | (u32::from(packet.protocol) << 16),
            counter: packet.payload,
            opened: 0,
        };
        self.env.insert(self.slot, &work.key, &work.entry);
    }

    /// Gives a later fragment the protocol and ports of its datagram's first.
    #[inline(never)]
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn recalled(&self, work: &mut Work) -> Recalled {
        if work.own == NOT_OWN {
            return Recalled::NOTHING;
        }
        self.datagram(work);
        let key = &work.key;
        let Some(held) = self.env.find(self.slot, key) else {
            return Recalled::NOTHING;
        };
        let (ports, tag) = self.env.deciding(held);
        let (seen, state) = self.env.age(held);
        let (passed, total) = self.env.passed(held);
        // Read twice: an element that is being recycled belongs to another key by now.
        if tag & !FLOW_TAG_FLAGS != key.tag()
            || self.env.deciding(held) != (ports, tag)
            || is_over(seen, self.env.now(), FRAGMENT_SECONDS)
        {
            return Recalled::NOTHING;
        }
        let packet = &mut work.packet;
        let start = u32::from(packet.offset) * 8;
        if start < state & 0xffff {
            return Recalled::OVERLAPS;
        }
        let passed = passed.wrapping_add(packet.payload);
        let total = if let Part::Last = packet.part { start + packet.payload } else { total };
        if total != 0 && passed >= total {
            self.env.remove(self.slot, key);
        } else {
            self.env.pass(held, passed, total);
        }
        packet.protocol = (state >> 16) as u8;
        let (local_port, remote_port) = (ports as u16, (ports >> 16) as u16);
        (packet.src_port, packet.dst_port) = match self.direction {
            Direction::Ingress => (remote_port, local_port),
            Direction::Egress => (local_port, remote_port),
        };
        packet.shape = Shape::Ongoing;
        Recalled::KNOWN
    }
}

#[cfg(test)]
mod tests;
