//! SCTP between pods by frames alone, for there are no sockets of it: an association that is allowed, and every chunk
//! that belongs to none.

use portcullis_common::event::{Direction, Reason};
use portcullis_tests::field::{Fate, Field, OPEN, SHUT, Shot, Who};
use portcullis_tests::frames::{self, Path};

use crate::FAMILIES;

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

const CLIENT: u16 = 41_300;
const CALLER: Who = Who::Pod("caged");
const SERVER: Who = Who::Pod("server");

/// An association from one that may send nothing else, to one that may be sent nothing else: chunk, and whether the
/// server sends it.
const ASSOCIATION: [(u8, bool); 13] = [
    (INIT, false),
    (INIT_ACK, true),
    (COOKIE_ECHO, false),
    (COOKIE_ACK, true),
    (DATA, false),
    (SACK, true),
    (DATA, true),
    (SACK, false),
    (HEARTBEAT, true),
    (HEARTBEAT_ACK, false),
    (SHUTDOWN, false),
    (SHUTDOWN_ACK, true),
    (SHUTDOWN_COMPLETE, false),
];

pub(crate) fn attack(field: &mut Field) {
    for family in FAMILIES {
        let shot = |what: &str, from, to, fate| Shot {
            threat: "SCTP",
            what: what.to_owned(),
            from,
            to,
            family,
            fate,
        };
        // Before there is an association nothing of it passes, whatever it is.
        for kind in (0..=255).filter(|kind| *kind != INIT) {
            let fate = Fate::Dropped(Direction::Ingress, Reason::Isolated);
            let what = format!("chunk {kind} of nothing");
            field.shoot(&shot(&what, SERVER, "caged", fate), |path, mark| {
                packet(path, (OPEN, CLIENT), kind, mark)
            });
        }
        for (number, (kind, by_server)) in ASSOCIATION.into_iter().enumerate() {
            let what = format!("step {number}, chunk {kind}");
            let (from, to, ports) = ends(by_server);
            field.shoot(&shot(&what, from, to, Fate::Arrives), |path, mark| packet(path, ports, kind, mark));
        }
        // The server opens none the other way round, on the same ports either.
        let opened = Fate::Dropped(Direction::Ingress, Reason::Isolated);
        field.shoot(&shot("INIT on the tuple", SERVER, "caged", opened), |path, mark| {
            packet(path, (OPEN, CLIENT), INIT, mark)
        });
        for (from, port, direction) in [
            (Who::Pod("friend"), SHUT, Direction::Ingress),
            (Who::Pod("stranger"), OPEN, Direction::Ingress),
            (CALLER, SHUT, Direction::Egress),
        ] {
            let denied = Fate::Dropped(direction, Reason::Isolated);
            for kind in [INIT, INIT_ACK, COOKIE_ECHO, DATA, ABORT, SHUTDOWN_COMPLETE] {
                let what = format!("chunk {kind} to port {port}");
                field.shoot(&shot(&what, from, "server", denied), |path, mark| {
                    packet(path, (CLIENT + 1, port), kind, mark)
                });
            }
        }
        // Without an INIT nothing is made, also where the packet itself passes.
        field.shoot(&shot("COOKIE ECHO alone", CALLER, "server", Fate::Arrives), |path, mark| {
            packet(path, (CLIENT + 2, OPEN), COOKIE_ECHO, mark)
        });
        field.shoot(&shot("its answer", SERVER, "caged", opened), |path, mark| {
            packet(path, (OPEN, CLIENT + 2), COOKIE_ACK, mark)
        });
        // A common header without a chunk says nothing.
        let unread = field.unreadable(Direction::Egress, Reason::Truncated);
        field.shoot(&shot("no chunk", CALLER, "server", unread), |path, _| {
            vec![frames::frame(path, frames::SCTP, &frames::sctp((CLIENT, OPEN), 1, &[]))]
        });
    }
}

fn ends(by_server: bool) -> (Who, &'static str, (u16, u16)) {
    if by_server { (SERVER, "caged", (OPEN, CLIENT)) } else { (CALLER, "server", (CLIENT, OPEN)) }
}

/// A packet with one chunk. The verification tag is 0 for INIT, as it has to be.
fn packet(path: Path, ports: (u16, u16), kind: u8, mark: &[u8]) -> Vec<Vec<u8>> {
    let value = match kind {
        // Tag, window, streams out and in, first number; then the mark where a parameter would be.
        INIT | INIT_ACK => {
            [&[0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1][..], &[0x80, 0x08, 0, 12], mark].concat()
        }
        DATA => [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..], mark].concat(),
        _ => mark.to_vec(),
    };
    let verification = u32::from(kind != INIT);
    vec![frames::frame(
        path,
        frames::SCTP,
        &frames::sctp(ports, verification, &frames::chunk(kind, 3, &value)),
    )]
}
