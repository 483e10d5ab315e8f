//! Numbers and words of what userspace is told.

use core::mem::size_of;
use std::collections::BTreeSet;

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::*;

#[test]
fn reasons_come_back_from_their_numbers() {
    for (index, reason) in (0u8..).zip(Reason::ALL) {
        assert_eq!(*reason as u8, index, "{reason:?}: numbers have no gaps");
        assert_eq!(Reason::from_number(index), Some(*reason));
    }
    for number in u8::try_from(REASONS).unwrap()..=u8::MAX {
        assert_eq!(Reason::from_number(number), None, "{number}");
    }
}

#[test]
fn words_are_kebab_case_and_told_apart() {
    let names: BTreeSet<&str> = Reason::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        let name = reason.name();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        let text = reason.describe();
        assert!(text.ends_with('.') && text == text.trim(), "{text:?}");
    }
}

#[test]
fn verdicts_have_cells_of_their_own() {
    let mut cells = BTreeSet::new();
    for reason in Reason::ALL {
        for direction in [Direction::Ingress, Direction::Egress] {
            for outcome in Outcome::ALL {
                assert!(cells.insert(verdict_cell(direction, outcome, *reason)));
            }
        }
    }
    assert_eq!(cells.len(), VERDICT_CELLS as usize);
    assert_eq!(cells.last(), Some(&(VERDICT_CELLS - 1)));
}

#[test]
fn an_event_is_the_bytes_that_the_kernel_wrote() {
    let event = Event {
        time: 0x0102_0304_0506_0708,
        slot: 9,
        counter: 10,
        local: Addr::v4([10, 0, 0, 1]),
        remote: Addr::v4([10, 0, 0, 2]),
        local_port: 80,
        remote_port: 4000,
        protocol: 6,
        direction: Direction::Egress.index(),
        outcome: Outcome::Deny.index(),
        reason: Reason::Isolated as u8,
        bytes: 60,
        tcp_flags: 2,
        reserved: 0,
        via_port: 80,
        via: Addr::v4([10, 96, 0, 1]),
    };
    assert_eq!(size_of::<Event>(), 80);
    assert_eq!(Event::read_from_bytes(event.as_bytes()), Ok(event));
    assert!(Event::read_from_bytes(&event.as_bytes()[1..]).is_err());
}
