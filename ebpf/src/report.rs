//! Counting, events and the programs' own diagnostics. Knows verdicts; changes none.

use aya_log_ebpf::warn;
use portcullis_common::addr::Addr;
use portcullis_common::event::{Direction, Event, NOTICE_FLOWS_HALF, Reason, verdict_cell};
use portcullis_common::judge::{News, Verdict};
use portcullis_common::packet::{Packet, PacketView, TCP};
use portcullis_common::wire::{ANSWER_AUDITED, COUNTER_NONE, FlowKey};

use crate::skb::{Skb, is_probe};
use crate::tables;

/// Events that one CPU sends in a second; what is over is counted in `cpu_state` and in the counters.
const EVENTS_PER_SECOND: u32 = 20_000;
/// Of the first events that one CPU sends in a second, those that may come with a warning.
const WARNINGS_PER_SECOND: u32 = 8;
const NANOSECONDS: u64 = 1_000_000_000;

/// Counts a verdict, and sends it if it is news.
#[inline(always)]
pub fn report(skb: &Skb<'_>, slot: u32, direction: Direction, packet: &Packet, verdict: &Verdict) {
    report_via(skb, slot, direction, packet, verdict, None);
}

/// The same as a function of its own, for its stack; returns 1 if the packet goes on.
#[inline(never)]
pub fn tell(skb: &Skb<'_>, packet: &Packet, slot: u32, direction: Direction, verdict: &Verdict) -> u32 {
    report(skb, slot, direction, packet, verdict);
    u32::from(crate::goes_on(verdict))
}

/// The same of a packet that was sent to another address, by the key of its sender's flow.
#[inline(always)]
pub fn report_via(
    skb: &Skb<'_>,
    slot: u32,
    direction: Direction,
    packet: &Packet,
    verdict: &Verdict,
    via: Option<&FlowKey>,
) {
    if is_probe() {
        let audited = if verdict.audited { ANSWER_AUDITED } else { 0 };
        skb.answer(u32::from(verdict.reason as u8) | audited, verdict.counter);
        return;
    }
    let bytes = if packet.bytes == 0 { skb.len() } else { packet.bytes };
    tables::count_verdict(verdict_cell(direction, verdict.outcome(), verdict.reason), bytes);
    if verdict.counter != COUNTER_NONE {
        tables::count_rule(verdict.counter, bytes);
    }
    if let News::Event = verdict.news {
        let sent = event(slot, direction, packet, verdict, via);
        if let Reason::TablesUnreadable = verdict.reason
            && sent <= WARNINGS_PER_SECOND
        {
            unreadable_tables(skb, slot);
        }
    }
}

/// Tells the agent that an endpoint's table of flows is half full. Outside the budget: it is told once for a table.
#[inline(always)]
pub fn half_full(slot: u32) {
    let time = tables::clock();
    // The agent looks at every table from time to time, should the ring be full.
    let _ = tables::send(true, || Event { time, slot, reason: NOTICE_FLOWS_HALF, ..Event::default() });
}

#[inline(never)]
fn unreadable_tables(skb: &Skb<'_>, slot: u32) {
    warn!(&skb.ctx, "endpoint {}: policy tables unreadable twice in a row, packet dropped", slot);
}

/// Sends an event within the CPU's budget, and returns its number in this second; the largest if it was not
/// sent.
#[inline(never)]
fn event(slot: u32, direction: Direction, packet: &Packet, verdict: &Verdict, via: Option<&FlowKey>) -> u32 {
    let now = tables::clock();
    let Some(budget) = tables::cpu_state() else {
        return u32::MAX;
    };
    let second = (now / NANOSECONDS) as u32;
    // SAFETY: a per-CPU value that a lookup returned; programs do not preempt each other on a CPU.
    let budget = unsafe { &mut *budget };
    if budget.second != second {
        budget.second = second;
        budget.sent = 0;
    }
    if budget.sent >= EVENTS_PER_SECOND {
        budget.lost += 1;
        return u32::MAX;
    }
    budget.sent += 1;
    let number = budget.sent;
    let told = || {
        let ((local, local_port), (remote, remote_port)) = match direction {
            Direction::Ingress => ((packet.dst, packet.dst_port), (packet.src, packet.src_port)),
            Direction::Egress => ((packet.src, packet.src_port), (packet.dst, packet.dst_port)),
        };
        let (via, via_port) = via.map_or((Addr::UNSPECIFIED, 0), |via| (via.remote, via.remote_port));
        Event {
            time: now,
            slot,
            counter: verdict.counter,
            local,
            remote,
            local_port,
            remote_port,
            protocol: packet.protocol,
            direction: direction.index(),
            outcome: verdict.outcome().index(),
            reason: verdict.reason as u8,
            bytes: packet.bytes,
            tcp_flags: if packet.protocol == TCP { packet.tcp_flags } else { 0 },
            reserved: 0,
            via_port,
            via,
        }
    };
    if !tables::send(false, told) {
        budget.lost += 1;
        return u32::MAX;
    }
    number
}
