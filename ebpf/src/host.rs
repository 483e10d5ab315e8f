//! The node's own network: whose a socket is, and what its ends are. A packet of a socket is judged at the root of the
//! cgroups; what has no socket (answers of the kernel, what processes write to devices past it) where it leaves.

use core::mem::offset_of;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id,
};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use portcullis_common::addr::Addr;
use portcullis_common::event::{Action, Direction, Outcome, Reason, verdict_cell};
use portcullis_common::judge::{At, Delivery, Origin, Packed, SocketEnds, Work, answering, judge, leaving};
use portcullis_common::packet::{ICMP, ICMPV6, Link, Packet, SCTP, Shape, TCP, TCP_ACK, TCP_SYN, UDP, parse};
use portcullis_common::wire::{CGROUP_DEPTH, CGROUP_ELSEWHERE, CGROUP_LEVELS, HostState, NO_ENDPOINT};

use crate::mark;
use crate::report;
use crate::skb::Skb;
use crate::tables::{self, Maps};

/// Set where programs of cgroups can ask for a socket's network namespace: Linux 6.15.
#[unsafe(no_mangle)]
static NETWORKS: u32 = 0;

/// The loopback device, the first of every network namespace (`LOOPBACK_IFINDEX` of include/net/flow.h).
const LOOPBACK: u32 = 1;
/// `AF_INET` and `AF_INET6` of include/linux/socket.h.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// `SOCK_RAW` of include/linux/net.h.
const SOCK_RAW: u32 = 3;
/// What [`ends`] says of a raw socket.
const RAW: u32 = 1;
/// The group management of IPv4 (RFC 3376).
const IGMP: u8 = 2;
/// TCP's flag that ends a connection at once (RFC 9293 section 3.1).
const RST: u8 = 4;

/// True if the packet's socket is in the node's network namespace. Where that cannot be asked it may be another's: of a pod,
/// whose cgroup tells, or of what else has a network of its own.
#[inline(always)]
pub fn is_of_node(ctx: &SkBuffContext, state: &HostState) -> bool {
    // SAFETY: a static of this object; volatile because the loader sets it before the kernel freezes it.
    let can_ask = unsafe { core::ptr::read_volatile(&raw const NETWORKS) != 0 };
    // SAFETY: the context is valid for the whole program.
    !can_ask || unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } == state.network
}

/// The endpoint of the packet's socket, or [`CGROUP_ELSEWHERE`].
#[inline(always)]
pub fn whose(skb: *mut __sk_buff, state: &HostState) -> u32 {
    // SAFETY: the context is valid for the whole program.
    let above = |level: u32| unsafe { bpf_skb_ancestor_cgroup_id(skb, level.cast_signed()) };
    let Some(pods_level) = (1..CGROUP_DEPTH).find(|level| above(*level) == state.pods) else {
        return state.node;
    };
    if state.pods == 0 {
        return state.node;
    }
    for level in 0..CGROUP_LEVELS {
        let cgroup = above(pods_level.wrapping_add(CGROUP_LEVELS - level));
        if cgroup != 0
            && let Some(slot) = tables::slot_of_cgroup(cgroup)
        {
            return slot;
        }
    }
    state.unknown
}

/// A word of a whole socket, by its offset, in a load of its own: the verifier refuses wider ones.
#[inline(always)]
fn word(socket: *const bpf_sock, offset: usize) -> u32 {
    let place = socket.cast::<u32>().wrapping_add(offset / 4);
    // SAFETY: callers name a field of the socket.
    unsafe { place.read_volatile() }
}

/// Leaves in the work what the packet's socket says of its ends. [`RAW`]: its process writes headers, ports and all.
#[inline(never)]
fn ends(skb: *mut __sk_buff, work: &mut Work) -> u32 {
    let protocol = work.packet.protocol;
    let ends = &mut work.ends;
    *ends = SocketEnds::NONE;
    if !matches!(protocol, TCP | UDP | SCTP) {
        return 0;
    }
    // One read to the verifier, two operations to Rust, which takes the union for one of its own.
    #[allow(clippy::multiple_unsafe_ops_per_block)]
    // SAFETY: the context is valid for the whole program.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: a socket that is not null.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return 0;
    }
    if word(socket, offset_of!(bpf_sock, type_)) == SOCK_RAW {
        return RAW;
    }
    if protocol == SCTP {
        return 0;
    }
    ends.local_port = word(socket, offset_of!(bpf_sock, src_port)) as u16;
    // As a word: before Linux 5.18 the field is one, and since then such a load means the port still.
    ends.remote_port = u16::from_be(word(socket, offset_of!(bpf_sock, dst_port)) as u16);
    match word(socket, offset_of!(bpf_sock, family)) {
        AF_INET => ends.remote = Addr::v4(word(socket, offset_of!(bpf_sock, dst_ip4)).to_ne_bytes()),
        AF_INET6 => {
            let half = |first: usize| {
                let at = offset_of!(bpf_sock, dst_ip6) + 4 * first;
                u64::from(word(socket, at)) | (u64::from(word(socket, at + 4)) << 32)
            };
            ends.remote = Addr::from_halves(half(0), half(2));
        }
        _ => ends.remote_port = 0,
    }
    if protocol == UDP && ends.remote_port == 0 {
        // SAFETY: the context is valid for the whole program.
        ends.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    }
    0
}

/// Judges what a socket of the node's network sends, and says in its mark who that was.
#[inline(always)]
pub fn sent(ctx: &SkBuffContext, state: &HostState) -> bool {
    let packet = ctx.skb.skb;
    let slot = whose(packet, state);
    if slot == CGROUP_ELSEWHERE {
        // Whoever is not judged has no name that others believe.
        mark::clear(packet);
        return true;
    }
    let Some(place) = tables::enter() else {
        return crowded(packet);
    };
    let Some(scratch) = tables::scratch_at(place) else {
        tables::leave(place);
        return crowded(packet);
    };
    let work = &mut scratch.work;
    work.place = place;
    let skb = &Skb::new(TcContext::new(packet), &mut scratch.head);
    work.packet = Packet::OTHER;
    parse(skb, Link::Ip, &mut work.packet);
    let is_forged = ends(packet, work) == RAW;
    // SAFETY: the context is valid for the whole program.
    let loops = unsafe { (*packet).ifindex } == LOOPBACK;
    let origin = match loops {
        true if slot == state.node => Origin::OwnNode,
        true => Origin::Hairpin,
        false => Origin::Forwarded,
    };
    let origin = scratch.origin.forget(origin);
    let mut verdict = judge(&Maps, skb, work, At { slot, direction: Direction::Egress, origin });
    if loops && is_forged {
        // A header that the process wrote itself comes back as from whoever it names.
        verdict.action = Action::Deny;
        verdict.audited = tables::is_audit();
        verdict.reason = Reason::SpoofedSource;
    }
    let goes_on = report::tell(skb, &work.packet, slot, Direction::Egress, &verdict);
    tables::leave(place);
    match verdict.delivery {
        Delivery::Again | Delivery::Waits if loops => mark::write(packet, slot, verdict.delivery),
        Delivery::Done | Delivery::Again | Delivery::Waits => mark::say(packet, slot, loops),
    }
    goes_on != 0
}

/// No place is left: dropped and counted, unless the node drops nothing.
#[inline(always)]
fn crowded(packet: *mut __sk_buff) -> bool {
    let is_audit = tables::is_audit();
    let outcome = if is_audit { Outcome::Audit } else { Outcome::Deny };
    let cell = verdict_cell(Direction::Egress, outcome, Reason::TablesUnreadable);
    // SAFETY: the context is valid for the whole program.
    tables::count_verdict(cell, unsafe { (*packet).len });
    is_audit
}

/// Judges what a socket of the node's network gets.
#[inline(always)]
pub fn got(skb: &Skb<'_>, work: &mut Work, at: At) -> bool {
    ends(skb.ctx.skb.skb, work);
    let verdict = judge(&Maps, skb, work, at);
    report::tell(skb, &work.packet, at.slot, Direction::Ingress, &verdict) != 0
}

/// Where a packet that a socket gets came from.
#[inline(always)]
pub fn origin(from: u32, slot: u32, state: &HostState) -> Origin {
    if from == NO_ENDPOINT {
        Origin::Forwarded
    } else if from == slot {
        Origin::OwnInterface
    } else if from == state.node {
        Origin::OwnNode
    } else {
        Origin::Forwarded
    }
}

/// Who sent this by the loopback device.
#[inline(always)]
pub fn sender(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context is valid for the whole program.
    if unsafe { (*skb).ingress_ifindex } != LOOPBACK {
        return NO_ENDPOINT;
    }
    mark::sender(skb).unwrap_or(NO_ENDPOINT)
}

/// True if no program has judged this and one should: it comes from the node, and from no socket of its own.
#[inline(always)]
fn is_unheard(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid for the whole program.
    let came_from = unsafe { (*skb).ingress_ifindex };
    came_from == 0 && mark::sender(skb).is_none()
}

/// Judges what leaves the node by a device and comes from none of its sockets; whether it goes on. What the kernel answers is judged as
/// what it answers. The outer packets of tunnels between nodes, which the kernel sends by itself, pass.
#[inline(never)]
pub fn unheard(skb: &Skb<'_>, work: &mut Work, node: u32) -> u32 {
    if is_echo(&work.packet) {
        return answered(skb, work, node);
    }
    let Packet { src, dst, protocol, .. } = &work.packet;
    if !matches!(*protocol, TCP | ICMP | ICMPV6) && tables::is_node(dst) {
        return 1;
    }
    // Of nobody's socket and under another's name: what it forwards has lost its device on the way (fragments of IPv6), or it
    // answers for somebody else, as a firewall. To a group of routers it tells what it listens to.
    if (!skb.has_socket() && !tables::is_node(src)) || (*protocol == IGMP && dst.is_multicast()) {
        return 1;
    }
    let verdict = Packed(of_flow(work, node));
    // Word that nobody listens; and what says in the place of a socket that somebody does, when too many ask (SYN cookies).
    let is_answer = is_refusal(&work.packet) || (is_cookie(&work.packet) && !skb.has_socket());
    if is_answer && !verdict.is_of_flow() {
        return answered(skb, work, node);
    }
    told(skb, work, node, verdict)
}

/// [`unheard`] of what goes to a pod, behind its own judgement.
#[inline(always)]
pub fn unheard_by_pod(skb: *mut __sk_buff) -> u32 {
    let node = unheard_sender(skb);
    if node == NO_ENDPOINT || crate::skb::is_probe() {
        return 1;
    }
    match tables::scratch() {
        Some(scratch) => unheard(&Skb::new(TcContext::new(skb), &mut scratch.head), &mut scratch.work, node),
        None => 0,
    }
}

/// Who sent what no program has judged and one should: a process past its sockets, else the node; [`NO_ENDPOINT`] where that is
/// nobody. A function of its own, for its stack.
#[inline(never)]
pub fn unheard_sender(skb: *mut __sk_buff) -> u32 {
    match tables::host_state() {
        Some(state) if is_unheard(skb) => match whose(skb, state) {
            CGROUP_ELSEWHERE => state.node,
            slot => slot,
        },
        Some(_) | None => NO_ENDPOINT,
    }
}

/// True for an answer to a SYN.
#[inline(always)]
fn is_cookie(packet: &Packet) -> bool {
    packet.protocol == TCP && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK
}

/// Reports a verdict on what leaves without a socket; whether it goes on.
#[inline(never)]
fn told(skb: &Skb<'_>, work: &Work, node: u32, verdict: Packed) -> u32 {
    report::tell(skb, &work.packet, node, Direction::Egress, &verdict.verdict())
}

/// True for an echo that the kernel answers by itself.
#[inline(always)]
fn is_echo(packet: &Packet) -> bool {
    matches!((packet.shape, packet.protocol), (Shape::Ongoing, ICMP | ICMPV6))
}

/// True for word of the kernel that nobody listens.
#[inline(always)]
fn is_refusal(packet: &Packet) -> bool {
    matches!((packet.shape, packet.protocol), (Shape::Ongoing | Shape::Stray, TCP))
        && packet.tcp_flags & RST != 0
}

/// Judges an answer of the kernel as what it answers.
#[inline(never)]
fn answered(skb: &Skb<'_>, work: &Work, node: u32) -> u32 {
    let port = if work.packet.protocol == TCP { work.packet.src_port } else { 0 };
    let verdict = answering(&Maps, work, node, port);
    if verdict.drops() { told(skb, work, node, verdict) } else { 1 }
}

/// [`leaving`] as a function of its own, for its stack.
#[inline(never)]
fn of_flow(work: &mut Work, node: u32) -> u64 {
    leaving(&Maps, work, node).0
}
