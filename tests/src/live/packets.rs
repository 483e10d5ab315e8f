//! Single packets, sent as they are: what moves a counter by exactly one.

use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};
use portcullis_lab::netns::Netns;
use portcullis_policy::frame::{Traffic, opening};

/// Source ports are of this range, each used once before any is used again, and none is one that a kernel
/// chooses: no packet meets a flow that another opened.
pub(super) const FIRST_PORT: u16 = 10_000;
/// The last one.
pub(super) const LAST_PORT: u16 = 31_999;

const ETHERNET: usize = 14;

/// Sends the opening packet of a flow out of a namespace. Its TCP checksum is not good: the receiver's host
/// judges it and the receiver itself ignores it.
pub(super) fn send(netns: &Netns, from: IpAddr, to: IpAddr, traffic: Traffic, port: u16) {
    let frame = opening(from, to, traffic).expect("both are of one family");
    let mut packet = frame[ETHERNET..].to_vec();
    let header = if to.is_ipv4() { 20 } else { 40 };
    let place = match traffic {
        Traffic::To(..) => header,
        // The identifier.
        Traffic::Echo => header + 4,
    };
    packet[place..place + 2].copy_from_slice(&port.to_be_bytes());
    let sent = netns.run(|| match to {
        IpAddr::V4(to) => {
            let fd = raw(AddressFamily::Inet)?;
            sendto(fd.as_raw_fd(), &packet, &SockaddrIn::from(SocketAddrV4::new(to, 0)), MsgFlags::empty())
        }
        IpAddr::V6(to) => {
            let fd = raw(AddressFamily::Inet6)?;
            let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
            sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty())
        }
    });
    sent.expect("the namespace is there")
        .unwrap_or_else(|e| panic!("{from} -> {to} {traffic}: sending: {e}"));
}

/// A socket whose packets bring their own IP header.
fn raw(family: AddressFamily) -> nix::Result<std::os::fd::OwnedFd> {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
}
