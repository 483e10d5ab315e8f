//! The programs. Each reads a packet, asks `portcullis_common::judge`, counts, reports and returns. This file
//! is the one place where a verdict becomes a return code.
#![no_std]
#![no_main]

mod report;
mod skb;
mod tables;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use portcullis_common::event::{Action, Direction};
use portcullis_common::judge::{At, Verdict, judge};
use portcullis_common::packet::{Link, Packet, parse};
use portcullis_common::wire::LINK_IP;

use skb::{Skb, Source};
use tables::Maps;

/// The next program and then the stack go on with the packet (`TCX_NEXT`, `TC_ACT_UNSPEC`).
const PASS: i32 = -1;
/// The packet is dropped (`TCX_DROP`, `TC_ACT_SHOT`).
const DROP: i32 = 2;

/// Traffic from a pod: TC ingress of its host-side interface.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    run(&Skb::new(ctx), Direction::Egress)
}

/// Traffic to a pod: TC egress of its host-side interface.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    run(&Skb::new(ctx), Direction::Ingress)
}

/// Lets everything pass. Never attached: what a packet through any program costs, for the benchmark.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    PASS
}

#[inline(always)]
fn run(skb: &Skb, direction: Direction) -> i32 {
    let Some(Source { slot, origin }) = skb.source(direction) else {
        return report::unknown_endpoint(skb, direction, DROP);
    };
    let Some(work) = tables::scratch() else {
        return DROP;
    };
    work.packet = Packet::OTHER;
    // A tag that was taken out of the bytes is still a tag.
    if !skb.is_tagged() {
        let link = if tables::link_of(slot) == LINK_IP { Link::Ip } else { Link::Ethernet };
        parse(skb, link, &mut work.packet);
    }
    let verdict = judge(&Maps, skb, work, At { slot, direction, origin });
    report::report(skb, slot, direction, &work.packet, &verdict);
    code(&verdict)
}

#[inline(always)]
fn code(verdict: &Verdict) -> i32 {
    match verdict.action {
        Action::Allow => PASS,
        Action::Deny => DROP,
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
