//! Owns the kernel's table of tracked connections (`ctnetlink`), of the network namespace of the calling thread: reads
//! it, and what each entry says. It must not know pods or flow tables.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::libc;
use portcullis_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use thiserror::Error;

use super::netlink::{Attributes, Netlink, Request, bytes_at};

/// `struct nfgenmsg`, and the request for the table: `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`
/// (`linux/netfilter/nfnetlink.h`, `nfnetlink_conntrack.h`).
const NFGENMSG: usize = 4;
const GET: u16 = 1 << 8 | 1;
/// `CTA_*` of `linux/netfilter/nfnetlink_conntrack.h`: what an entry holds,
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_STATE: u16 = 4;
/// what a tuple holds (`CTA_TUPLE_*`), its addresses (`CTA_IP_*`) and its ports (`CTA_PROTO_*`),
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const V4: [u16; 2] = [1, 2];
const V6: [u16; 2] = [3, 4];
const NUMBER: u16 = 1;
const PORTS: [u16; 2] = [2, 3];
const ICMP_ID_AND_TYPE: [u16; 2] = [4, 5];
const ICMPV6_ID_AND_TYPE: [u16; 2] = [7, 8];
/// and what a protocol's state holds (`CTA_PROTOINFO_*`).
const TCP_INFO: u16 = 1;
const SCTP_INFO: u16 = 3;
const INFO_STATE: u16 = 1;
/// `IPS_SEEN_REPLY` of `linux/netfilter/nf_conntrack_common.h`.
const SEEN_REPLY: u32 = 1 << 1;
/// Echo requests: RFC 792, RFC 4443.
const ECHO: u8 = 8;
const ECHO_V6: u8 = 128;
/// There while connections can be tracked. To ask without it would load the module.
const SETTINGS: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// One way of a connection, as packets of that way show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Its port; an echo's identifier; else 0.
    pub source_port: u16,
    /// Its port; an echo's identifier; else 0.
    pub destination_port: u16,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Opened.
    Opening,
    /// Answered.
    Answered,
    /// TCP and SCTP: agreed upon by both.
    Established,
    /// TCP and SCTP: one side has ended it.
    Closing,
}

/// A connection that the kernel tracks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// IP protocol number.
    pub protocol: u8,
    /// As its opener sends.
    pub original: Tuple,
    /// As it is answered, after whatever translation.
    pub reply: Tuple,
    /// How far it has come.
    pub stage: Stage,
}

/// Why connections cannot be listed.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The kernel tracks nothing.
    #[error("no connection tracking in this network namespace")]
    Absent,
    /// It does not say.
    #[error("list tracked connections by netlink: {0}")]
    List(#[source] io::Error),
}

/// What a list of connections came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Entries, those of no use to us included.
    pub entries: u64,
    /// Entries that could not be read.
    pub unreadable: u64,
}

/// Hands over every connection that is alive. [`ConntrackError::Absent`] where nothing at all is tracked: on a namespace
/// whose rules ask for no tracking the table is there, and empty.
pub fn tracked(mut each: impl FnMut(&Tracked)) -> Result<Listed, ConntrackError> {
    if !Path::new(SETTINGS).exists() {
        return Err(ConntrackError::Absent);
    }
    let mut listed = Listed::default();
    let request = Request::new(GET, 0, &[0; NFGENMSG]);
    let asked = Netlink::open_netfilter().and_then(|mut netlink| {
        netlink.stream(&request, |body| {
            listed.entries += 1;
            match parse(body) {
                Some(Entry::Alive(connection)) => each(&connection),
                Some(Entry::NoFlow) => {}
                None => listed.unreadable += 1,
            }
        })
    });
    match asked {
        // No subsystem of this number.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT)
            ) =>
        {
            Err(ConntrackError::Absent)
        }
        Err(error) => Err(ConntrackError::List(error)),
        Ok(()) if listed.entries == 0 => Err(ConntrackError::Absent),
        Ok(()) => Ok(listed),
    }
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// A connection that goes on.
    Alive(Tracked),
    /// One that is over, or nothing that is a flow.
    NoFlow,
}

/// `None` if it cannot be read.
fn parse(body: &[u8]) -> Option<Entry> {
    let find = |kind| Attributes::find(body, NFGENMSG, kind);
    let (protocol, original) = parse_tuple(find(ORIGINAL)?)?;
    let (answered_by, reply) = parse_tuple(find(REPLY)?)?;
    if protocol != answered_by || original.source.is_ipv4() != reply.source.is_ipv4() {
        return None;
    }
    let replied = u32::from_be_bytes(find(STATUS)?.try_into().ok()?) & SEEN_REPLY != 0;
    let stage = match protocol {
        TCP => tcp_stage(state_of(find(PROTOCOL_STATE)?, TCP_INFO)?),
        SCTP => sctp_stage(state_of(find(PROTOCOL_STATE)?, SCTP_INFO)?),
        ICMP if !is_echo(find(ORIGINAL)?, ICMP_ID_AND_TYPE, ECHO) => None,
        ICMPV6 if !is_echo(find(ORIGINAL)?, ICMPV6_ID_AND_TYPE, ECHO_V6) => None,
        _ if replied => Some(Stage::Answered),
        _ => Some(Stage::Opening),
    };
    let alive = |stage| Entry::Alive(Tracked { protocol, original, reply, stage });
    Some(stage.map_or(Entry::NoFlow, alive))
}

fn parse_tuple(tuple: &[u8]) -> Option<(u8, Tuple)> {
    let addresses = Attributes::find(tuple, 0, TUPLE_ADDRESSES)?;
    let layer4 = Attributes::find(tuple, 0, TUPLE_PROTOCOL)?;
    let protocol = *Attributes::find(layer4, 0, NUMBER)?.first()?;
    let [source, destination] = match parse_addresses::<4>(addresses, V4) {
        Some(both) => both.map(IpAddr::from),
        None => parse_addresses::<16>(addresses, V6)?.map(IpAddr::from),
    };
    let port =
        |kind| Attributes::find(layer4, 0, kind).and_then(|value| bytes_at(value, 0)).map(u16::from_be_bytes);
    let [source_port, destination_port] = match protocol {
        TCP | UDP | SCTP => {
            let [source, destination] = PORTS.map(port);
            [source?, destination?]
        }
        ICMP => [port(ICMP_ID_AND_TYPE[0])?; 2],
        ICMPV6 => [port(ICMPV6_ID_AND_TYPE[0])?; 2],
        _ => [0; 2],
    };
    Some((protocol, Tuple { source, destination, source_port, destination_port }))
}

fn parse_addresses<const N: usize>(addresses: &[u8], kinds: [u16; 2]) -> Option<[[u8; N]; 2]> {
    let one = |kind| Attributes::find(addresses, 0, kind).and_then(|value| value.try_into().ok());
    let [source, destination] = kinds.map(one);
    Some([source?, destination?])
}

fn is_echo(tuple: &[u8], [_, kind]: [u16; 2], request: u8) -> bool {
    let layer4 = Attributes::find(tuple, 0, TUPLE_PROTOCOL).unwrap_or_default();
    Attributes::find(layer4, 0, kind).is_some_and(|value| value.first() == Some(&request))
}

fn state_of(info: &[u8], protocol: u16) -> Option<u8> {
    let info = Attributes::find(info, 0, protocol)?;
    Attributes::find(info, 0, INFO_STATE)?.first().copied()
}

/// `enum tcp_conntrack` of `linux/netfilter/nf_conntrack_tcp.h`. What was reset is over: the kernel has compared
/// sequence numbers.
const fn tcp_stage(state: u8) -> Option<Stage> {
    match state {
        // SYN_SENT, SYN_SENT2.
        1 | 9 => Some(Stage::Opening),
        // SYN_RECV.
        2 => Some(Stage::Answered),
        3 => Some(Stage::Established),
        // FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT.
        4..=7 => Some(Stage::Closing),
        _ => None,
    }
}

/// `enum sctp_conntrack` of `linux/netfilter/nf_conntrack_sctp.h`. A path that only a heartbeat opened is none of ours:
/// nothing but an INIT opens a flow.
const fn sctp_stage(state: u8) -> Option<Stage> {
    match state {
        // COOKIE_WAIT.
        2 => Some(Stage::Opening),
        // COOKIE_ECHOED.
        3 => Some(Stage::Answered),
        4 => Some(Stage::Established),
        // SHUTDOWN_SENT, SHUTDOWN_RECD, SHUTDOWN_ACK_SENT.
        5..=7 => Some(Stage::Closing),
        _ => None,
    }
}

#[cfg(test)]
#[path = "conntrack_tests.rs"]
pub(crate) mod tests;
