//! IPVS of the calling thread's network namespace, by the kernel's generic netlink (`linux/ip_vs.h`, `linux/genetlink.h`):
//! services that are forwarded by masquerading, round robin, as kube-proxy makes them. Minimum kernel 2.6.28.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use portcullis_policy::model::Protocol;

/// `linux/netlink.h`: a message's head, and what it may be.
const HEAD: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// An attribute's head.
const ATTRIBUTE: usize = 4;

/// `linux/genetlink.h`: the head behind a message's, and the family that knows the others.
const GENERIC: usize = 4;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Of that family's messages and of IPVS's.
const VERSION: u8 = 1;

/// `linux/ip_vs.h`.
const IPVS: &str = "IPVS";
const IPVS_CMD_NEW_SERVICE: u8 = 1;
const IPVS_CMD_NEW_DEST: u8 = 5;
const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;
const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
const IP_VS_CONN_F_MASQ: u32 = 0;
/// `union nf_inet_addr`.
const ADDRESS_BYTES: usize = 16;
/// The scheduler, with the zero that ends its name.
const ROUND_ROBIN: &[u8] = b"rr\0";

/// Larger than any answer to what is asked here.
const ANSWER_BYTES: usize = 8_192;

/// A way to the kernel's IPVS.
#[derive(Debug)]
pub struct Ipvs {
    socket: OwnedFd,
    family: u16,
}

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its address and port.
    pub address: SocketAddr,
}

impl Ipvs {
    /// None where the kernel has no IPVS.
    pub fn open() -> Result<Option<Self>> {
        let socket = generic()?;
        let family = family(&socket, IPVS)?;
        Ok(family.map(|family| Self { socket, family }))
    }

    /// Makes a virtual server without backends.
    pub fn add_server(&self, server: VirtualServer) -> Result<()> {
        let netmask = match server.address {
            SocketAddr::V4(_) => u32::MAX,
            // The length of a prefix.
            SocketAddr::V6(_) => 128,
        };
        let more = [
            attribute(IPVS_SVC_ATTR_SCHED_NAME, ROUND_ROBIN)?,
            // No flag, of all.
            attribute(IPVS_SVC_ATTR_FLAGS, &[0, u32::MAX].map(u32::to_ne_bytes).concat())?,
            attribute(IPVS_SVC_ATTR_TIMEOUT, &0u32.to_ne_bytes())?,
            attribute(IPVS_SVC_ATTR_NETMASK, &netmask.to_ne_bytes())?,
        ];
        let service = [identity(server)?, more.concat()].concat();
        let service = attribute(IPVS_CMD_ATTR_SERVICE | NLA_F_NESTED, &service)?;
        self.command(IPVS_CMD_NEW_SERVICE, &service).with_context(|| format!("making {server:?}"))
    }

    /// Gives a virtual server one backend more.
    pub fn add_backend(&self, server: VirtualServer, backend: SocketAddr) -> Result<()> {
        let number = |kind, value: u32| attribute(kind, &value.to_ne_bytes());
        let dest = [
            attribute(IPVS_DEST_ATTR_ADDR, &bytes(backend.ip()))?,
            attribute(IPVS_DEST_ATTR_PORT, &backend.port().to_be_bytes())?,
            number(IPVS_DEST_ATTR_FWD_METHOD, IP_VS_CONN_F_MASQ)?,
            number(IPVS_DEST_ATTR_WEIGHT, 1)?,
            number(IPVS_DEST_ATTR_U_THRESH, 0)?,
            number(IPVS_DEST_ATTR_L_THRESH, 0)?,
        ];
        let attributes = [
            attribute(IPVS_CMD_ATTR_SERVICE | NLA_F_NESTED, &identity(server)?)?,
            attribute(IPVS_CMD_ATTR_DEST | NLA_F_NESTED, &dest.concat())?,
        ];
        self.command(IPVS_CMD_NEW_DEST, &attributes.concat())
            .with_context(|| format!("giving {server:?} the backend {backend}"))
    }

    fn command(&self, command: u8, attributes: &[u8]) -> Result<()> {
        match ask(&self.socket, self.family, command, NLM_F_ACK, attributes)? {
            Answer::Done | Answer::Message(_) => Ok(()),
            Answer::Refused(error) => Err(error).context("the kernel refuses"),
        }
    }
}

/// By what a virtual server is known.
fn identity(server: VirtualServer) -> Result<Vec<u8>> {
    let family = match server.address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let family = u16::try_from(family as i32).context("a family's number")?;
    let all = [
        attribute(IPVS_SVC_ATTR_AF, &family.to_ne_bytes())?,
        attribute(IPVS_SVC_ATTR_PROTOCOL, &u16::from(server.protocol.number()).to_ne_bytes())?,
        attribute(IPVS_SVC_ATTR_ADDR, &bytes(server.address.ip()))?,
        attribute(IPVS_SVC_ATTR_PORT, &server.address.port().to_be_bytes())?,
    ];
    Ok(all.concat())
}

fn bytes(address: IpAddr) -> [u8; ADDRESS_BYTES] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// A socket of generic netlink, of the calling thread's network namespace.
fn generic() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)
        .context("opening generic netlink")
}

/// The number of a family of generic netlink, if this kernel has it.
fn family(socket: &OwnedFd, name: &str) -> Result<Option<u16>> {
    let asked = attribute(CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), &[0]].concat())?;
    match ask(socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 0, &asked)? {
        Answer::Message(attributes) => {
            let id = find(&attributes, CTRL_ATTR_FAMILY_ID).context("a family without a number")?;
            Ok(Some(u16::from_ne_bytes(id.try_into().context("a family's number")?)))
        }
        Answer::Refused(Errno::ENOENT) => Ok(None),
        Answer::Refused(error) => Err(error).with_context(|| format!("asking for the family {name}")),
        Answer::Done => bail!("no answer about the family {name}"),
    }
}

/// What the kernel says.
enum Answer {
    /// The attributes of a message.
    Message(Vec<u8>),
    Done,
    Refused(Errno),
}

fn ask(socket: &OwnedFd, family: u16, command: u8, flags: u16, attributes: &[u8]) -> Result<Answer> {
    let length = u32::try_from(HEAD + GENERIC + attributes.len()).context("a message's length")?;
    let message = [
        &length.to_ne_bytes()[..],
        &family.to_ne_bytes(),
        &(NLM_F_REQUEST | flags).to_ne_bytes(),
        // Its number, and the sender's, which the kernel knows.
        &[0; 8],
        &[command, VERSION, 0, 0],
        attributes,
    ];
    send(socket.as_raw_fd(), &message.concat(), MsgFlags::empty()).context("asking the kernel")?;
    let mut answer = vec![0; ANSWER_BYTES];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).context("hearing the kernel")?;
    answer.truncate(length);
    let kind = answer.get(4..6).context("a message's head")?;
    if u16::from_ne_bytes(kind.try_into()?) == NLMSG_ERROR {
        let code = answer.get(HEAD..HEAD + 4).context("an error's number")?;
        return Ok(match i32::from_ne_bytes(code.try_into()?) {
            0 => Answer::Done,
            code => Answer::Refused(Errno::from_raw(-code)),
        });
    }
    Ok(Answer::Message(answer.get(HEAD + GENERIC..).context("a message's attributes")?.to_vec()))
}

/// An attribute, filled up to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(ATTRIBUTE + value.len()).context("an attribute's length")?;
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

/// The value of an attribute.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let (Some(length), Some(kind)) = (attributes.get(..2), attributes.get(2..4)) {
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        let value = attributes.get(ATTRIBUTE..length)?;
        if u16::from_ne_bytes(kind.try_into().ok()?) & !NLA_F_NESTED == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_understands_and_is_understood() {
        let socket = generic().unwrap();
        assert_eq!(family(&socket, "nlctrl").unwrap(), Some(GENL_ID_CTRL));
        assert_eq!(family(&socket, "no-such-family").unwrap(), None);
    }

    #[test]
    fn attributes_are_found_behind_others_of_any_length() {
        let all = [attribute(7, b"abc").unwrap(), attribute(9 | NLA_F_NESTED, b"de").unwrap()].concat();
        assert_eq!(all.len(), 16);
        assert_eq!(find(&all, 9), Some(&b"de"[..]));
        assert_eq!(find(&all, 8), None);
        assert_eq!(find(&all[..10], 9), None, "cut short");
    }
}
