//! The programs. Each reads a packet, asks `portcullis_common::judge`, counts, reports and returns. This file
//! is the one place where a verdict becomes a return code.
#![no_std]
#![no_main]

mod globals;
mod report;
mod skb;
mod tables;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use portcullis_common::event::{Action, Direction, Outcome, Reason};
use portcullis_common::judge::{At, News, Verdict, judge};
use portcullis_common::packet::{Link, Packet, parse};
use portcullis_common::wire::{COUNTER_NONE, LINK_IP, NO_ENDPOINT};

use skb::{Skb, Source};
use tables::Maps;

/// The next program and then the stack go on with the packet (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const PASS: i32 = -1;
/// The packet is dropped (`TCX_DROP`, `TC_ACT_SHOT`).
const DROP: i32 = 2;

/// Traffic from a pod: TC ingress of its host-side interface.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    run(ctx, Direction::Egress)
}

/// Traffic to a pod: TC egress of its host-side interface.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    run(ctx, Direction::Ingress)
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
    let skb = &Skb::new(ctx, &mut scratch.head);
    let Some(Source { slot, origin }) = skb.source(direction) else {
        let verdict = Verdict {
            action: Action::Deny,
            audited: tables::is_audit(),
            reason: Reason::UnknownEndpoint,
            counter: COUNTER_NONE,
            news: News::Event,
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
    let origin = scratch.origin.forget(origin);
    let verdict = judge(&Maps, skb, work, At { slot, direction, origin });
    report::report(skb, slot, direction, &work.packet, &verdict);
    code(&verdict)
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
