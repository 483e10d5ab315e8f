//! The connections of this network namespace's own sockets, as `/proc/net` lists them: what a host endpoint had open before it
//! was one. Unlike tracked connections they are there without connection tracking. Reads only.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use portcullis_common::packet::{TCP, UDP};

use super::conntrack::Stage;

/// The lists: file, protocol.
const LISTS: [(&str, u8); 4] = [("tcp", TCP), ("tcp6", TCP), ("udp", UDP), ("udp6", UDP)];
/// States of `include/net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const NEW_SYN_RECV: u8 = 12;

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Protocol number.
    pub protocol: u8,
    /// Its own end.
    pub local: SocketAddr,
    /// The other.
    pub remote: SocketAddr,
    /// How far it is.
    pub stage: Stage,
    /// True if somebody else opened it: a socket listens at its port.
    pub is_accepted: bool,
}

/// All of them; a list that the kernel does not have is empty.
///
/// A socket of IPv6 that listens takes connections of IPv4 too, which are in its list.
pub fn connected() -> io::Result<Vec<Connected>> {
    let mut found = Vec::new();
    for (list, protocol) in LISTS {
        match fs::read_to_string(format!("/proc/thread-self/net/{list}")) {
            Ok(text) => found.extend(parse(&text, protocol)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The connected sockets of a list. A line that cannot be read is left out.
fn parse(text: &str, protocol: u8) -> Vec<Connected> {
    let lines: Vec<(SocketAddr, SocketAddr, u8)> = text.lines().filter_map(line).collect();
    let listened: BTreeSet<u16> =
        lines.iter().filter(|(.., state)| *state == LISTEN).map(|(local, ..)| local.port()).collect();
    let of = |(local, remote, state): &(SocketAddr, SocketAddr, u8)| {
        if remote.port() == 0 {
            return None;
        }
        let stage = match (*state, protocol) {
            (ESTABLISHED, UDP) => Stage::Answered,
            (ESTABLISHED, _) => Stage::Established,
            (SYN_SENT | SYN_RECV | NEW_SYN_RECV, _) => Stage::Opening,
            (LISTEN | TIME_WAIT | CLOSE, _) => return None,
            _ => Stage::Closing,
        };
        let is_accepted = protocol == TCP && listened.contains(&local.port());
        Some(Connected { protocol, local: *local, remote: *remote, stage, is_accepted })
    };
    lines.iter().filter_map(of).collect()
}

/// The ends and the state: the second, third and fourth word of a line.
fn line(text: &str) -> Option<(SocketAddr, SocketAddr, u8)> {
    let mut words = text.split_ascii_whitespace().skip(1);
    let (local, remote) = (end(words.next()?)?, end(words.next()?)?);
    Some((local, remote, u8::from_str_radix(words.next()?, 16).ok()?))
}

/// `ADDRESS:PORT` in hexadecimal; addresses as words of the machine's byte order.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|number| {
            let word = u32::from_str_radix(address.get(number * 8..number * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect::<Option<_>>()?;
    let address = match words.as_slice() {
        [v4] => IpAddr::from(*v4),
        [a, b, c, d] => {
            let bytes: [u8; 16] = [*a, *b, *c, *d].concat().try_into().ok()?;
            IpAddr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_both_families_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:1F90 0100007F:C350 01 00000000:00000000\n\
             2: 0100007F:C350 0100007F:1F90 01 00000000:00000000\n\
             3: 0100007F:C351 0100007F:1F90 06 00000000:00000000\n\
             4: nonsense\n";
        let found = parse(text, TCP);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].local, found[0].remote), (at("127.0.0.1:8080"), at("127.0.0.1:50000")));
        assert!(found[0].is_accepted && !found[1].is_accepted);
        let text = " 0: 000080FE00000000FF0000FE01000000:0016 0000000000000000FFFF00000100007F:9999 08 0\n";
        let found = parse(text, TCP);
        assert_eq!(found[0].remote, at("127.0.0.1:39321"));
        assert_eq!((found[0].local.port(), found[0].stage), (22, Stage::Closing));
        assert!(found[0].local.is_ipv6());
    }

    #[test]
    fn the_own_namespace_lists_a_connection_of_this_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mine, at) = (stream.local_addr().unwrap(), listener.local_addr().unwrap());
        let all = connected().unwrap();
        let found = all.iter().find(|one| one.local == mine && one.remote == at).unwrap();
        assert!(!found.is_accepted && found.stage == Stage::Established);
        assert!(all.iter().any(|one| one.local == at && one.remote == mine && one.is_accepted));
    }
}
