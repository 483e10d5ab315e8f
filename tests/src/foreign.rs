//! What others leave on a node: programs made by hand, under a name of choice, attached by links that go with their
//! owner; chains of a packet filter.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};

/// `BPF_PROG_LOAD` and `BPF_LINK_CREATE` of `enum bpf_cmd`.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_SCHED_CLS` and `BPF_PROG_TYPE_XDP`.
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
/// `XDP_FLAGS_SKB_MODE`.
const GENERIC: u32 = 1 << 1;

/// What the program does before it lets a packet pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    Nothing,
    /// Calls a helper with two arguments that are 0, by its number in `enum bpf_func_id`.
    Calls(i32),
}

impl Body {
    /// `bpf_redirect`.
    pub const REDIRECT: Self = Self::Calls(23);
    /// `bpf_redirect_peer`.
    pub const REDIRECT_PEER: Self = Self::Calls(155);

    fn instructions(self) -> Vec<[u8; 8]> {
        let set = |register: u8, value: i32| instruction(0xb7, register, value);
        let exit = instruction(0x95, 0, 0);
        match self {
            Self::Nothing => vec![set(0, 0), exit],
            Self::Calls(helper) => {
                vec![set(1, 0), set(2, 0), instruction(0x85, 0, helper), set(0, 0), exit]
            }
        }
    }
}

/// Where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// TCX ingress.
    TcxIngress,
    /// XDP, in the kernel's own mode.
    Xdp,
}

/// A program on an interface; it goes with this.
#[derive(Debug)]
pub struct Attached {
    _link: OwnedFd,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the name.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 4],
}

/// Loads and attaches.
pub fn attach(name: &str, body: Body, at: At, interface: u32) -> io::Result<Attached> {
    // BPF_XDP and BPF_TCX_INGRESS of `enum bpf_attach_type`.
    let (kind, attach_type, flags) = match at {
        At::TcxIngress => (SCHED_CLS, 46, 0),
        At::Xdp => (XDP, 37, GENERIC),
    };
    let mut padded = [0; 16];
    padded.iter_mut().take(15).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    let instructions = body.instructions();
    let load = Load {
        kind,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log: [0; 4],
        version: 0,
        flags: 0,
        name: padded,
        ifindex: 0,
        attach_type: 0,
    };
    let program = bpf(PROG_LOAD, &load)?;
    let link = Link {
        program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        interface,
        attach_type,
        flags,
        rest: [0; 4],
    };
    Ok(Attached { _link: bpf(LINK_CREATE, &link)? })
}

/// `NFNL_MSG_BATCH_BEGIN` and `_END` (`linux/netfilter/nfnetlink.h`), and requests of subsystem 10, `nf_tables`
/// (`linux/netfilter/nf_tables.h`): a new table, a new chain.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 10 << 8;
const NEW_CHAIN: u16 = 10 << 8 | 3;
/// `NFPROTO_IPV4`.
const IPV4: u8 = 2;

/// Makes a table and a chain of `nf_tables` in the calling thread's network namespace, as iptables and others do.
pub fn make_chain(table: &str, chain: &str) -> io::Result<()> {
    let attribute = |kind: u16, text: &str| {
        let value = [text.as_bytes(), b"\0"].concat();
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let request = |kind: u16, family: u8, resource: u16, attributes: &[u8]| {
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        // NLM_F_REQUEST and NLM_F_CREATE; then the sequence, the port, and `struct nfgenmsg`.
        let flags = 0x401u16;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], &[family, 0]]
            .concat()
            .into_iter()
            .chain(resource.to_be_bytes())
            .chain(attributes.iter().copied())
            .collect::<Vec<u8>>()
    };
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let batch = [
        request(BATCH_BEGIN, 0, 10, &[]),
        request(NEW_TABLE, IPV4, 0, &attribute(1, table)),
        request(NEW_CHAIN, IPV4, 0, &[attribute(1, table), attribute(3, chain)].concat()),
        request(BATCH_END, 0, 10, &[]),
    ]
    .concat();
    send(socket.as_raw_fd(), &batch, MsgFlags::empty())?;
    Ok(())
}

fn instruction(code: u8, register: u8, value: i32) -> [u8; 8] {
    let [a, b, c, d] = value.to_ne_bytes();
    [code, register, 0, 0, a, b, c, d]
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is the command's, of the size given, and its pointers are to what the caller keeps.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
