//! Tables on a kernel: grown past every threshold, left half-way, expired.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use portcullis_common::addr::Addr;
use portcullis_common::flow::{ESTABLISHED_SECONDS, STATE_ESTABLISHED};
use portcullis_common::packet::TCP;

use super::super::Kernel;
use super::super::load::Purpose;
use super::*;

const SLOT: u32 = 3;
const NOW: u32 = 100_000;

/// In CI these tests have to run.
fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "tables of a kernel need root");
    println!("skipped: tables of a kernel need root");
    false
}

fn kernel() -> Kernel {
    Kernel::private(Purpose::Ask, 0).unwrap().0
}

/// The flow of this number; every third was opened towards the pod.
fn flow(number: u32) -> (FlowKey, FlowEntry) {
    let [a, b, c, d] = number.to_be_bytes();
    let key = FlowKey {
        remote: Addr::v4([10, b, c, d]),
        local_port: u16::from(a) + 1,
        protocol: TCP,
        ..FlowKey::default()
    };
    let flags = if number.is_multiple_of(3) { FLOW_OPENED_INGRESS } else { 0 };
    let entry = FlowEntry {
        stamp: number,
        tag: key.tag() | flags,
        seen: NOW,
        state: STATE_ESTABLISHED,
        counter: number,
        opened: NOW,
    };
    (key, entry)
}

fn write(tables: &mut FlowTables, numbers: std::ops::Range<u32>) -> Written {
    let (keys, entries): (Vec<_>, Vec<_>) = numbers.clone().map(flow).unzip();
    let written = tables.table(SLOT).unwrap().write_new(&keys, &entries).unwrap();
    let made = u64::from(numbers.end - numbers.start);
    if written.made == made {
        let ingress = numbers.filter(|number| number.is_multiple_of(3)).count() as u64;
        tables.count(SLOT, ingress, made - ingress).unwrap();
    }
    written
}

fn holds(tables: &FlowTables, numbers: std::ops::Range<u32>) {
    let found: BTreeMap<_, _> = tables.table(SLOT).unwrap().all().unwrap().into_iter().collect();
    let expected: BTreeMap<_, _> = numbers.map(flow).collect();
    assert!(found == expected, "{} flows instead of {}", found.len(), expected.len());
}

#[test]
fn a_table_grows_past_every_threshold_and_keeps_all() {
    const LARGEST: u32 = 200_000;
    if !is_root() {
        return;
    }
    let mut kernel = kernel();
    let tables = &mut kernel.flow_tables;
    tables.make(SLOT, LARGEST).unwrap();
    let mut held = 0;
    for capacity in [FIRST_FLOWS, FIRST_FLOWS * 4, LARGEST] {
        assert_eq!(tables.fill(SLOT).unwrap().1.capacity, capacity);
        let half = capacity / 2;
        write(tables, held..half - 1);
        assert_eq!(tables.tend(SLOT, LARGEST).unwrap(), None, "less than half of {capacity}");
        write(tables, half - 1..half);
        held = half;
        assert_eq!(tables.fill(SLOT).unwrap().0, u64::from(held));
        let growth = (capacity < LARGEST).then_some(Growth::Done);
        assert_eq!(tables.tend(SLOT, LARGEST).unwrap(), growth, "half of {capacity}");
        holds(tables, 0..held);
    }
    let room = tables.fill(SLOT).unwrap().1;
    assert_eq!((room.capacity, room.told, room.most_ingress), (LARGEST, 0, LARGEST - LARGEST / 4));
    assert!(sys::inner_id(fd(&tables.before), SLOT).unwrap().is_none());
    // What there is no room for is told, and nothing is written over.
    let written = write(tables, held - 5..LARGEST + 7);
    assert_eq!(written, Written { made: (LARGEST - held).into(), were_there: 5, no_room: 7 });
    assert_eq!(tables.grow(SLOT, LARGEST).unwrap(), Growth::Largest);
}

#[test]
fn an_agent_that_was_killed_while_a_table_grew_is_followed_by_one_that_ends_it() {
    const LARGEST: u32 = 100_000;
    if !is_root() {
        return;
    }
    let mut kernel = kernel();
    let tables = &mut kernel.flow_tables;
    // Killed before each call that grows a table, in order.
    for steps in 0..4 {
        tables.free(SLOT).unwrap();
        tables.make(SLOT, LARGEST).unwrap();
        write(tables, 0..9_000);
        let small = tables.inner(SLOT).unwrap().unwrap();
        let large = tables.table_of(FIRST_FLOWS * 4).unwrap();
        if steps > 0 {
            sys::set_inner(fd(&tables.before), SLOT, small.as_fd()).unwrap();
        }
        if steps > 1 {
            sys::set_inner(fd(&tables.flows), SLOT, large.as_fd()).unwrap();
        }
        if steps > 2 {
            // Half of it is copied, and a program has made one of these flows anew meanwhile.
            let (key, mut entry) = flow(1);
            entry.opened = NOW + 1;
            tables.table(SLOT).unwrap().write_new(&[key], &[entry]).unwrap();
            let (keys, entries): (Vec<_>, Vec<_>) = (2..4_500).map(flow).unzip();
            tables.table(SLOT).unwrap().write_new(&keys, &entries).unwrap();
        }
        tables.take_over(SLOT).unwrap();
        let capacity = if steps > 1 { FIRST_FLOWS * 4 } else { FIRST_FLOWS };
        assert_eq!(tables.fill(SLOT).unwrap().1.capacity, capacity, "after {steps} steps");
        assert!(sys::inner_id(fd(&tables.before), SLOT).unwrap().is_none());
        let found: BTreeMap<_, _> = tables.table(SLOT).unwrap().all().unwrap().into_iter().collect();
        assert_eq!(found.len(), 9_000, "after {steps} steps");
        let opened = if steps > 2 { NOW + 1 } else { NOW };
        assert_eq!(found[&flow(1).0].opened, opened, "what a program made is younger");
    }
}

#[test]
fn spent_entries_go_and_the_counts_are_set_right() {
    if !is_root() {
        return;
    }
    let mut kernel = kernel();
    let tables = &mut kernel.flow_tables;
    tables.make(SLOT, FIRST_FLOWS).unwrap();
    write(tables, 0..9_000);
    let (key, mut fragments) = flow(9_000);
    let key = FlowKey { kind: FLOW_KIND_FRAGMENTS_INGRESS, ..key };
    fragments.seen = NOW + ESTABLISHED_SECONDS;
    tables.table(SLOT).unwrap().write_new(&[key], &[fragments]).unwrap();
    // Of one more CPUs have lost the count, and of some that never were it is too high.
    tables.count(SLOT, 70, 0).unwrap();
    assert_eq!(tables.expire(SLOT, NOW + ESTABLISHED_SECONDS).unwrap(), 0);
    assert_eq!(tables.fill(SLOT).unwrap().0, 9_001);
    assert_eq!(tables.expire(SLOT, NOW + ESTABLISHED_SECONDS + 1).unwrap(), 9_000);
    assert_eq!(tables.fill(SLOT).unwrap().0, 1, "a datagram whose fragments may still follow");
    assert_eq!(tables.expire(SLOT, NOW + ESTABLISHED_SECONDS + 31).unwrap(), 1);
    assert_eq!((tables.fill(SLOT).unwrap().0, tables.table(SLOT).unwrap().all().unwrap().len()), (0, 0));
}

#[test]
fn a_count_below_none_is_set_right_too() {
    if !is_root() {
        return;
    }
    let mut kernel = kernel();
    let tables = &mut kernel.flow_tables;
    tables.make(SLOT, FIRST_FLOWS).unwrap();
    write(tables, 0..3);
    // CPUs lost counts of datagrams that were made, and none of those that were done.
    tables.count(SLOT, 10u64.wrapping_neg(), 10u64.wrapping_neg()).unwrap();
    assert_eq!(tables.fill(SLOT).unwrap().0, 0);
    assert_eq!(tables.expire(SLOT, NOW).unwrap(), 0);
    assert_eq!(tables.fill(SLOT).unwrap().0, 3);
    assert_eq!(tables.expire(SLOT, NOW + ESTABLISHED_SECONDS + 1).unwrap(), 3);
}

#[test]
fn a_larger_table_that_is_full_before_all_is_copied_gets_room() {
    const LARGEST: u32 = 20_000;
    const LATER: u32 = NOW + ESTABLISHED_SECONDS + 1;
    if !is_root() {
        return;
    }
    let mut kernel = kernel();
    let tables = &mut kernel.flow_tables;
    tables.make(SLOT, LARGEST).unwrap();
    write(tables, 0..9_000);
    let small = tables.inner(SLOT).unwrap().unwrap();
    let large = tables.table_of(LARGEST).unwrap();
    sys::set_inner(fd(&tables.before), SLOT, small.as_fd()).unwrap();
    sys::set_inner(fd(&tables.flows), SLOT, large.as_fd()).unwrap();
    write(tables, 9_000..9_000 + LARGEST);
    assert_eq!(tables.tend(SLOT, LARGEST).unwrap(), Some(Growth::NoRoom));
    assert_eq!(tables.expire(SLOT, LATER).unwrap(), u64::from(LARGEST));
    assert_eq!(tables.tend(SLOT, LARGEST).unwrap(), Some(Growth::Done));
    holds(tables, 0..9_000);
}

#[test]
fn an_endpoint_that_takes_a_slot_anew_has_nothing_of_the_last_one() {
    if !is_root() {
        return;
    }
    let mut kernel = kernel();
    let tables = &mut kernel.flow_tables;
    tables.make(SLOT, FIRST_FLOWS).unwrap();
    write(tables, 0..100);
    tables.free(SLOT).unwrap();
    assert!(matches!(tables.table(SLOT), Err(BpfError::Missing(_))));
    tables.make(SLOT, FIRST_FLOWS).unwrap();
    assert_eq!(tables.fill(SLOT).unwrap().0, 0);
    holds(tables, 0..0);
}

#[test]
fn flows_that_are_made_while_the_table_is_walked_are_counted_once() {
    // The walk saw none, some or all of ten.
    for seen in [0, 4, 10] {
        assert_eq!(settled(100 + seen, 10, 110), 110, "{seen} of ten were seen");
    }
    assert_eq!(settled(98, 5u64.wrapping_neg(), 95), 95, "datagrams that ended meanwhile");
    // Lost counts.
    assert_eq!(settled(100, 0, 97), 100);
    assert_eq!(settled(100, 0, 103), 100);
    assert_eq!(settled(100, 10, 90), 100);
    assert_eq!(settled(100, 10, 120), 110);
    assert_eq!(settled(0, 3u64.wrapping_neg(), 0), 0);
}
