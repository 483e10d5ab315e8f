//! States and time-outs, over every combination there is.

use super::*;
use crate::packet::{TCP_ACK, UDP};
use crate::testing::Rng;

const STATES: [u32; 5] = [STATE_OPENING, STATE_ANSWERED, STATE_ESTABLISHED, STATE_CLOSING, STATE_RESET];
const SIDES: [Side; 2] = [Side::Opener, Side::Responder];
const OPENER: Side = Side::Opener;
const RESPONDER: Side = Side::Responder;

fn after(protocol: u8, packets: &[(Side, u8)]) -> u32 {
    packets.iter().fold(STATE_OPENING, |state, (side, flags)| next_state(protocol, state, *side, *flags))
}

#[test]
fn a_handshake_establishes() {
    let handshake = [(RESPONDER, TCP_SYN | TCP_ACK), (OPENER, TCP_ACK)];
    assert_eq!(after(TCP, &handshake[..1]), STATE_ANSWERED);
    assert_eq!(after(TCP, &handshake), STATE_ESTABLISHED);
    assert_eq!(after(SCTP, &[(RESPONDER, 0), (OPENER, 0)]), STATE_ESTABLISHED);
}

#[test]
fn the_opener_alone_establishes_nothing() {
    for flags in 0..=u8::MAX {
        for protocol in [TCP, UDP, SCTP, ICMP, ICMPV6, 47] {
            let state = after(protocol, &[(OPENER, flags), (OPENER, TCP_ACK), (OPENER, TCP_ACK)]);
            assert_ne!(state, STATE_ESTABLISHED, "{protocol}, flags {flags:#x}");
            assert_ne!(state, STATE_ANSWERED, "{protocol}, flags {flags:#x}");
        }
    }
}

#[test]
fn a_refused_connection_never_lives_as_long_as_an_established_one() {
    let refused = [(RESPONDER, TCP_RST | TCP_ACK), (OPENER, TCP_ACK), (OPENER, TCP_ACK)];
    for len in 1..=refused.len() {
        assert!(timeout(TCP, after(TCP, &refused[..len])) <= CLOSING_SECONDS, "after {len} packets");
    }
    let abandoned = [(RESPONDER, TCP_SYN | TCP_ACK), (OPENER, TCP_RST), (RESPONDER, TCP_SYN | TCP_ACK)];
    assert!(timeout(TCP, after(TCP, &abandoned)) <= CLOSING_SECONDS);
    let closed =
        [(RESPONDER, TCP_ACK), (OPENER, TCP_ACK), (OPENER, TCP_FIN), (RESPONDER, TCP_RST), (OPENER, TCP_ACK)];
    assert_eq!(after(TCP, &closed), STATE_CLOSING);
}

#[test]
fn a_retransmitted_syn_does_not_establish() {
    assert_eq!(after(TCP, &[(RESPONDER, TCP_SYN | TCP_ACK), (OPENER, TCP_SYN)]), STATE_ANSWERED);
}

#[test]
fn a_blind_reset_is_taken_back() {
    for side in SIDES {
        let reset = next_state(TCP, STATE_ESTABLISHED, side, TCP_RST);
        assert_eq!(reset, STATE_RESET);
        assert_eq!(timeout(TCP, reset), CLOSING_SECONDS);
        for side in SIDES {
            assert_eq!(next_state(TCP, reset, side, TCP_ACK), STATE_ESTABLISHED);
        }
    }
}

#[test]
fn nothing_opens_again_what_is_closing() {
    for side in SIDES {
        assert_eq!(next_state(TCP, STATE_ESTABLISHED, side, TCP_FIN | TCP_ACK), STATE_CLOSING);
        for flags in 0..=u8::MAX {
            assert_eq!(next_state(TCP, STATE_CLOSING, side, flags), STATE_CLOSING, "flags {flags:#x}");
        }
    }
}

#[test]
fn flags_mean_nothing_outside_tcp_and_sctp() {
    for protocol in [UDP, ICMP, ICMPV6, 47] {
        for (state, side) in STATES.iter().flat_map(|state| SIDES.map(|side| (*state, side))) {
            let plain = next_state(protocol, state, side, 0);
            assert!((0..=u8::MAX).all(|flags| next_state(protocol, state, side, flags) == plain));
        }
    }
}

#[test]
fn udp_lives_longer_once_answered() {
    assert_eq!(timeout(UDP, STATE_OPENING), UDP_OPENING_SECONDS);
    assert_eq!(timeout(UDP, after(UDP, &[(OPENER, 0)])), UDP_OPENING_SECONDS);
    assert_eq!(timeout(UDP, after(UDP, &[(RESPONDER, 0)])), UDP_ANSWERED_SECONDS);
    assert_eq!(timeout(UDP, after(UDP, &[(RESPONDER, 0), (OPENER, 0)])), UDP_ANSWERED_SECONDS);
}

#[test]
fn only_established_connections_outlive_the_keepalive() {
    for protocol in 0..=u8::MAX {
        for state in STATES {
            let seconds = timeout(protocol, state);
            let established = matches!(protocol, TCP | SCTP) && state == STATE_ESTABLISHED;
            assert_eq!(seconds > 7_200, established, "{protocol}, state {state}");
            assert!(seconds >= ICMP_SECONDS);
        }
    }
}

#[test]
fn a_state_that_no_version_wrote_is_as_short_as_opening() {
    for state in [0, 6, u32::MAX] {
        assert_eq!(timeout(TCP, state), OPENING_SECONDS);
    }
}

#[test]
fn flows_expire_after_their_time_and_not_before() {
    let mut rng = Rng::new(7);
    for protocol in [TCP, UDP, ICMP] {
        for state in STATES {
            let time = timeout(protocol, state);
            for seen in [0, 1, 1_000_000, u32::MAX - 5, u32::MAX, rng.below(u32::MAX)] {
                assert!(!expired(protocol, state, seen, seen));
                assert!(!expired(protocol, state, seen, seen.wrapping_add(time)));
                assert!(expired(protocol, state, seen, seen.wrapping_add(time + 1)));
                // The clock of another CPU.
                assert!(!expired(protocol, state, seen, seen.wrapping_sub(1 + rng.below(10))));
            }
        }
    }
}
