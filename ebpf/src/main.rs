//! The programs. Each reads a packet, asks `portcullis_common::judge`, counts, reports and returns. This file
//! is the one place where a verdict becomes a return code.
#![no_std]
#![no_main]

mod globals;
mod host;
mod mark;
mod report;
mod skb;
mod tables;

use aya_ebpf::macros::{cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use portcullis_common::event::{Action, Direction, Outcome, Reason};
use portcullis_common::judge::{At, Delivery, News, Origin, Verdict, Work, delivered, judge};
use portcullis_common::packet::{Link, Packet, parse};
use portcullis_common::wire::{CGROUP_ELSEWHERE, COUNTER_NONE, LINK_IP, NO_ENDPOINT};

use mark::Sent;
use skb::{Skb, Source};
use tables::Maps;

/// The next program and then the stack go on with the packet (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const PASS: i32 = -1;
/// The packet is dropped (`TCX_DROP`, `TC_ACT_SHOT`).
const DROP: i32 = 2;
/// What a cgroup's program returns for a packet that goes on.
const CGROUP_PASS: i32 = 1;
/// The same for one that is dropped.
const CGROUP_DROP: i32 = 0;

/// Traffic from a pod: TC ingress of its host-side interface.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    run(ctx, Direction::Egress)
}

/// Traffic to a pod: TC egress of its host-side interface.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    let packet = ctx.skb.skb;
    // Last, for the verifier's sake: it would go through the judgement once for each answer.
    if run(ctx, Direction::Ingress) == PASS && host::unheard_by_pod(packet) == PASSES { PASS } else { DROP }
}

/// What leaves by the node's other devices: TC egress of uplinks, tunnels, bridges and interfaces of nobody known. Judges
/// again what a pod sent to an address that may have been translated.
#[classifier]
pub fn deliver_out(ctx: TcContext) -> i32 {
    let packet = ctx.skb.skb;
    let Some(sent) = mark::read(packet) else {
        return leaves(ctx);
    };
    let Some(scratch) = tables::scratch() else {
        return DROP;
    };
    // SAFETY: the context is valid for the whole program.
    let link = tables::link_of(unsafe { (*packet).ifindex });
    // Beyond here it is nobody's: a tunnel's outer packet has the mark of the inner.
    mark::clear(packet);
    let skb = &Skb::new(ctx, &mut scratch.head);
    deliver(skb, &mut scratch.work, link, sent)
}

/// What ends at a socket of the node, the backend of a Service among others: `cgroup_skb` ingress of the node's root.
#[cgroup_skb]
#[allow(clippy::needless_pass_by_value)]
pub fn deliver_here(ctx: SkBuffContext) -> i32 {
    let packet = ctx.skb.skb;
    let Some(sent) = mark::read(packet) else {
        return CGROUP_PASS;
    };
    let Some(scratch) = tables::scratch() else {
        return CGROUP_DROP;
    };
    let skb = &Skb::new(TcContext::new(packet), &mut scratch.head);
    if deliver(skb, &mut scratch.work, Link::Ip, sent) == PASS { CGROUP_PASS } else { CGROUP_DROP }
}

/// The same where the host firewall is on: what the node's own sockets get is judged by the policies of the pod in whose cgroup the
/// socket was made, or of the node.
#[cgroup_skb]
#[allow(clippy::needless_pass_by_value)]
pub fn host_in(ctx: SkBuffContext) -> i32 {
    let packet = ctx.skb.skb;
    let waits = mark::read(packet);
    let state = tables::host_state().filter(|state| host::is_of_node(&ctx, state));
    let slot = state.map_or(CGROUP_ELSEWHERE, |state| host::whose(packet, state));
    if slot == CGROUP_ELSEWHERE && waits.is_none() {
        return CGROUP_PASS;
    }
    let Some(scratch) = tables::scratch() else {
        return CGROUP_DROP;
    };
    let work = &mut scratch.work;
    let skb = &Skb::new(TcContext::new(packet), &mut scratch.head);
    work.packet = Packet::OTHER;
    parse(skb, Link::Ip, &mut work.packet);
    let from = host::sender(packet);
    if let Some(waits) = waits
        && from != slot
    {
        let Packet { shape, protocol, src_port, dst_port, .. } = work.packet;
        if !passes(skb, work, waits) {
            return CGROUP_DROP;
        }
        work.packet = Packet { shape, protocol, src_port, dst_port, ..work.packet };
    }
    let Some(state) = state else {
        return CGROUP_PASS;
    };
    if slot == CGROUP_ELSEWHERE {
        return CGROUP_PASS;
    }
    let origin = scratch.origin.forget(host::origin(from, slot, state));
    let at = At { slot, direction: Direction::Ingress, origin };
    if host::got(skb, work, at) { CGROUP_PASS } else { CGROUP_DROP }
}

/// What the node's own sockets send, as it leaves: `cgroup_skb` egress of the node's root.
#[cgroup_skb]
#[allow(clippy::needless_pass_by_value)]
pub fn host_out(ctx: SkBuffContext) -> i32 {
    let Some(state) = tables::host_state() else {
        return CGROUP_PASS;
    };
    if !host::is_of_node(&ctx, state) || host::sent(&ctx, state) { CGROUP_PASS } else { CGROUP_DROP }
}

/// Lets everything pass. Never attached: what a packet through any program costs, for the benchmark.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    PASS
}

#[inline(always)]
fn run(ctx: TcContext, direction: Direction) -> i32 {
    let Some(scratch) = tables::scratch() else {
        return DROP;
    };
    let work = &mut scratch.work;
    let packet = ctx.skb.skb;
    let skb = &Skb::new(ctx, &mut scratch.head);
    let Some(Source { slot, origin }) = skb.source(direction) else {
        let verdict = Verdict {
            action: Action::Deny,
            audited: tables::is_audit(),
            reason: Reason::UnknownEndpoint,
            counter: COUNTER_NONE,
            news: News::Event,
            delivery: Delivery::Done,
        };
        report::report(skb, NO_ENDPOINT, direction, &Packet::OTHER, &verdict);
        return code(&verdict);
    };
    work.packet = Packet::OTHER;
    // A tag that was taken out of the bytes is still a tag.
    if !skb.is_tagged() {
        let link = match tables::config_of(slot) {
            Some(config) if config.link == LINK_IP => Link::Ip,
            _ => Link::Ethernet,
        };
        parse(skb, link, &mut work.packet);
    }
    let mut origin = scratch.origin.forget(origin);
    if let (Direction::Ingress, false) = (direction, skb::is_probe())
        && let Some(sent) = mark::read(packet)
    {
        if sent.slot == slot {
            origin = Origin::Hairpin;
        } else {
            // A later fragment got its ports there; here it is one again.
            let Packet { shape, protocol, src_port, dst_port, .. } = work.packet;
            if !passes(skb, work, sent) {
                return DROP;
            }
            work.packet = Packet { shape, protocol, src_port, dst_port, ..work.packet };
        }
    }
    let verdict = judge(&Maps, skb, work, At { slot, direction, origin });
    let goes_on = report::tell(skb, &work.packet, slot, direction, &verdict);
    if let (Direction::Egress, false) = (direction, skb::is_probe()) {
        mark::write(packet, slot, verdict.delivery);
    }
    if goes_on == PASSES { PASS } else { DROP }
}

/// Judges what leaves by another device than a pod's and waits for nothing, where the host firewall is on.
#[inline(always)]
fn leaves(ctx: TcContext) -> i32 {
    let packet = ctx.skb.skb;
    let sender = host::unheard_sender(packet);
    let Some(state) = tables::host_state() else {
        return PASS;
    };
    // What is forwarded is not the node's. A tunnel's outer packet looks as if it were, and has the mark of the inner.
    mark::say(packet, if sender == NO_ENDPOINT { state.node } else { sender }, false);
    if sender == NO_ENDPOINT {
        return PASS;
    }
    let Some(scratch) = tables::scratch() else {
        return DROP;
    };
    // SAFETY: the context is valid for the whole program.
    let link = tables::link_of(unsafe { (*packet).ifindex });
    let skb = &Skb::new(ctx, &mut scratch.head);
    let work = &mut scratch.work;
    work.packet = Packet::OTHER;
    parse(skb, link, &mut work.packet);
    if host::unheard(skb, work, sender) == PASSES { PASS } else { DROP }
}

/// Parses what is delivered, and judges it.
#[inline(always)]
fn deliver(skb: &Skb<'_>, work: &mut Work, link: Link, sent: Sent) -> i32 {
    work.packet = Packet::OTHER;
    // A tag that a bridge has put beside the bytes is for whoever gets the frame.
    parse(skb, link, &mut work.packet);
    if passes(skb, work, sent) { PASS } else { DROP }
}

/// Judges what its sender's program left to be judged here.
#[inline(always)]
fn passes(skb: &Skb<'_>, work: &mut Work, sent: Sent) -> bool {
    left(skb, work, sent.slot, u32::from(sent.opens)) == PASSES
}

const PASSES: u32 = 1;

/// [`passes`] as a function of its own, for its stack: numbers in, a number out.
#[inline(never)]
fn left(skb: &Skb<'_>, work: &mut Work, slot: u32, opens: u32) -> u32 {
    let verdict = delivered(&Maps, skb, work, slot);
    let via = work.via(slot);
    // What goes on in a flow is counted where it came from.
    if let (Action::Allow, 0) = (verdict.action, opens) {
        return PASSES;
    }
    let verdict = Verdict { news: News::Event, ..verdict };
    report::report_via(skb, slot, Direction::Egress, &work.packet, &verdict, via);
    u32::from(goes_on(&verdict))
}

/// True if the packet passes.
#[inline(always)]
fn goes_on(verdict: &Verdict) -> bool {
    code(verdict) == PASS
}

#[inline(always)]
fn code(verdict: &Verdict) -> i32 {
    match verdict.outcome() {
        Outcome::Allow => PASS,
        Outcome::Deny => DROP,
        // Who asks wants to know the verdict, and is told beside it that it is not enforced.
        Outcome::Audit => {
            if skb::is_probe() {
                DROP
            } else {
                PASS
            }
        }
    }
}

/// The object runs inside the kernel beside GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
