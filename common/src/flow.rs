//! The life of a flow: states, time-outs, and how packets move them. What a flow is allowed to do is for
//! [`crate::judge`].

use crate::packet::{ICMP, ICMPV6, SCTP, TCP, TCP_FIN, TCP_RST, TCP_SYN};
use crate::wire::{FLOW_KIND_FLOW, FlowEntry, FlowKey};

/// Opened, not answered.
pub const STATE_OPENING: u32 = 1;
/// Answered once.
pub const STATE_ANSWERED: u32 = 2;
/// TCP and SCTP: the opener went on after the answer.
pub const STATE_ESTABLISHED: u32 = 3;
/// TCP and SCTP: one side has ended it (FIN; SHUTDOWN and what answers it).
pub const STATE_CLOSING: u32 = 4;
/// TCP and SCTP: established, and the last packet was RST, or ABORT. Any other packet takes it back, so that a blind RST kills
/// nothing. In other states RST changes nothing: their time-outs are as short.
pub const STATE_RESET: u32 = 5;

/// Seconds that an established TCP or SCTP flow may be silent: above the keepalive of 7,200 s.
pub const ESTABLISHED_SECONDS: u32 = 8_000;
/// Seconds after FIN or RST.
pub const CLOSING_SECONDS: u32 = 120;
/// Seconds for a TCP or SCTP flow to be established.
pub const OPENING_SECONDS: u32 = 60;
/// Seconds for UDP, and protocols without ports, before an answer.
pub const UDP_OPENING_SECONDS: u32 = 30;
/// Seconds for UDP, and protocols without ports, once answered.
pub const UDP_ANSWERED_SECONDS: u32 = 180;
/// Seconds for an ICMP echo.
pub const ICMP_SECONDS: u32 = 30;

/// Seconds for which answers through a Service still pass once anything has changed and the pod that opened the flow has
/// been silent: whether its backend is still allowed is judged with what it sends (SEMANTICS, policy changes).
pub const SERVICE_REPLY_SECONDS: u32 = 180;

/// Seconds for the rest of a datagram to follow its first fragment: what Linux waits for IPv4 (`ipfrag_time`).
pub const FRAGMENT_SECONDS: u32 = 30;

/// Which side of a flow sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that opened it.
    Opener,
    /// The other.
    Responder,
}

/// Seconds that a flow in this state may be silent.
#[inline(always)]
#[must_use]
pub const fn timeout(protocol: u8, state: u32) -> u32 {
    match protocol {
        TCP | SCTP => match state {
            STATE_ESTABLISHED => ESTABLISHED_SECONDS,
            STATE_CLOSING | STATE_RESET => CLOSING_SECONDS,
            _ => OPENING_SECONDS,
        },
        ICMP | ICMPV6 => ICMP_SECONDS,
        _ => match state {
            STATE_OPENING => UDP_OPENING_SECONDS,
            _ => UDP_ANSWERED_SECONDS,
        },
    }
}

/// True once a flow has been silent for too long.
#[inline(always)]
#[must_use]
pub const fn expired(protocol: u8, state: u32, seen: u32, now: u32) -> bool {
    is_over(seen, now, timeout(protocol, state))
}

/// True once more than so many seconds have gone by. The clock may have been read on another CPU: a `seen` that lies
/// ahead is now.
#[inline(always)]
#[must_use]
pub const fn is_over(seen: u32, now: u32, seconds: u32) -> bool {
    now.wrapping_sub(seen) < u32::MAX / 2 && now.wrapping_sub(seen) > seconds
}

/// The second half of an entry's second word: the state, and behind it since when answers through a Service are in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// A `STATE_`.
    pub state: u32,
    /// The lower 24 bits of the second since when; 0 if they are not.
    pub doubt: u32,
}

/// Bits of the state.
const STATE_BITS: u32 = 8;
/// The seconds that fit behind it: 194 days.
const DOUBT_MASK: u32 = u32::MAX >> STATE_BITS;

impl Stage {
    /// Reads a word.
    #[inline(always)]
    #[must_use]
    pub const fn of(word: u32) -> Self {
        Self { state: word & ((1 << STATE_BITS) - 1), doubt: word >> STATE_BITS }
    }

    /// The word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u32 {
        self.state | (self.doubt << STATE_BITS)
    }

    /// In doubt since then, or since now.
    #[inline(always)]
    #[must_use]
    pub const fn doubted(self, now: u32) -> Self {
        // Odd, so that it is never 0.
        let doubt = if self.doubt == 0 { (now & DOUBT_MASK) | 1 } else { self.doubt };
        Self { doubt, ..self }
    }

    /// True once answers have been in doubt for too long. A second that lies ahead is now.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self, now: u32) -> bool {
        let gone = now.wrapping_sub(self.doubt) & DOUBT_MASK;
        gone < DOUBT_MASK / 2 && gone > SERVICE_REPLY_SECONDS
    }
}

/// True once an entry of a table of flows is of no more use, whatever its [`FlowKey::kind`].
#[must_use]
pub const fn is_spent(key: &FlowKey, entry: &FlowEntry, now: u32) -> bool {
    match key.kind {
        FLOW_KIND_FLOW => expired(key.protocol, Stage::of(entry.state).state, entry.seen, now),
        _ => is_over(entry.seen, now, FRAGMENT_SECONDS),
    }
}

/// The state after a packet; an SCTP chunk stands for the flags that [`crate::packet::Packet::tcp_flags`] says.
#[inline(always)]
#[must_use]
pub const fn next_state(protocol: u8, state: u32, side: Side, tcp_flags: u8) -> u32 {
    if protocol == TCP || protocol == SCTP {
        // Whatever is not established has no more time than a reset leaves; it must not come back as established.
        if tcp_flags & TCP_RST != 0 {
            return if state == STATE_ESTABLISHED { STATE_RESET } else { state };
        }
        if tcp_flags & TCP_FIN != 0 || state == STATE_CLOSING {
            return STATE_CLOSING;
        }
    }
    match (state, side) {
        (STATE_OPENING, Side::Responder) => STATE_ANSWERED,
        (STATE_ANSWERED, Side::Opener)
            if (protocol == TCP || protocol == SCTP) && tcp_flags & TCP_SYN == 0 =>
        {
            STATE_ESTABLISHED
        }
        (STATE_RESET, _) => STATE_ESTABLISHED,
        _ => state,
    }
}

#[cfg(test)]
mod tests;
