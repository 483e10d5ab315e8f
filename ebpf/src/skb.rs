//! A packet in the kernel: reads its bytes and says where it came from. Knows nothing of policies.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_skb_load_bytes;
use aya_ebpf::programs::TcContext;
use portcullis_common::event::Direction;
use portcullis_common::judge::Origin;
use portcullis_common::packet::{Bytes, PacketView};

use crate::tables;

/// Set in the load that `explain`, `matrix --kernel` and tests ask: the packet is a question. No flow is
/// looked up or made, nothing is counted or reported, and endpoint and origin come from `cb`, never from
/// the device or the socket (those of a test run look like the own node's).
#[unsafe(no_mangle)]
static PROBE: u32 = 0;

/// Where in a frame the receiver's and the sender's MAC address stand.
const ETHERNET_DESTINATION: u32 = 0;
const ETHERNET_SOURCE: u32 = 6;
/// The bit of a MAC address's first byte that says it is a group's (IEEE 802).
const ETHERNET_GROUP: u8 = 1;

/// Values of `cb[1]` of a question.
const ASK_OWN_NODE: u32 = 1;
const ASK_OWN_INTERFACE: u32 = 2;

/// True in the asking load.
#[inline(always)]
pub fn is_probe() -> bool {
    // SAFETY: a static of this object; volatile because the loader sets it before the kernel freezes it.
    unsafe { core::ptr::read_volatile(&raw const PROBE) != 0 }
}

/// Whose packet this is.
pub struct Source {
    /// The endpoint.
    pub slot: u32,
    /// Where it came to the hook from.
    pub origin: Origin,
}

/// Bytes of a packet that are read at once: Ethernet, IPv6 and TCP without options.
const HEAD_BYTES: u32 = 74;
/// The same for IPv4: more could lie behind what the kernel keeps in one piece.
const HEAD_BYTES_V4: u32 = 54;
/// The same for what is shorter than these: Ethernet, IPv4 and UDP.
const HEAD_BYTES_SHORT: u32 = 42;
/// `ETH_P_IP`, in network byte order.
const PROTOCOL_IPV4: u32 = 0x0800u16.to_be() as u32;
/// Room for every offset into the first bytes, and a power of two.
const HEAD_ROOM: usize = 128;
/// The most bytes that are read with one load.
const LOAD_BYTES: usize = 40;

/// A packet's first bytes.
#[repr(C, align(8))]
pub struct Head {
    /// How many of `bytes` are the packet's.
    have: u64,
    /// Where the last load began. An offset that goes through memory is any number to the verifier, which then does not
    /// tell the packet's ways apart by it, and to the compiler, which then keeps the mask.
    at: UnsafeCell<u64>,
    bytes: [u8; HEAD_ROOM + LOAD_BYTES],
}

/// A packet at one of our hooks.
pub struct Skb<'a> {
    /// Aya's context.
    pub ctx: TcContext,
    /// Its bytes, read once: a load through the context must not be merged with one from the stack.
    len: u32,
    head: &'a Head,
}

impl<'a> Skb<'a> {
    /// Wraps the context, and reads the first bytes into `head`: one call for what is nearly always all.
    #[inline(always)]
    pub fn new(ctx: TcContext, head: &'a mut Head) -> Self {
        let len = ctx.len();
        // What the sender said, who may lie: it is about speed only.
        // SAFETY: the context is valid for the whole program.
        let protocol = unsafe { (*ctx.skb.skb).protocol };
        let want = if protocol == PROTOCOL_IPV4 { HEAD_BYTES_V4 } else { HEAD_BYTES };
        // Constants: kernels before 6.4 do not learn from a comparison that a length is not 0.
        let mut have = if len >= want {
            want
        } else if len >= HEAD_BYTES_SHORT {
            HEAD_BYTES_SHORT
        } else {
            0
        };
        if have != 0 {
            let place = head.bytes.as_mut_ptr().cast();
            // SAFETY: the context is valid for the whole program, and `bytes` has room for `have` bytes.
            let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, place, have) };
            if failed != 0 {
                have = 0;
            }
        }
        head.have = have.into();
        Self { ctx, len, head }
    }

    /// The endpoint by interface, and where the packet came from; `None` for an interface without one.
    #[inline(always)]
    pub fn source(&self, direction: Direction) -> Option<Source> {
        if is_probe() {
            let origin = match self.cb(1) {
                ASK_OWN_NODE => Origin::OwnNode,
                ASK_OWN_INTERFACE => Origin::OwnInterface,
                _ => Origin::Forwarded,
            };
            return Some(Source { slot: self.cb(0), origin });
        }
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is valid for the whole program.
        let ifindex = unsafe { (*skb).ifindex };
        let slot = tables::slot_of(ifindex)?;
        let origin = if self.is_of_other_station(slot, direction) {
            Origin::OtherStation
        } else {
            match direction {
                Direction::Egress => Origin::OwnInterface,
                Direction::Ingress => self.ingress_origin(ifindex),
            }
        };
        Some(Source { slot, origin })
    }

    /// A frame says from which station it is, and a bridge behind this hook will believe it; or to which, and a
    /// bridge that does not know where that is has copied it.
    #[inline(always)]
    fn is_of_other_station(&self, slot: u32, direction: Direction) -> bool {
        let Some(config) = tables::config_of(slot).filter(|config| config.is_bound_to_mac()) else {
            return false;
        };
        let [own @ .., _, _] = config.mac;
        let (place, group) = match direction {
            Direction::Egress => (ETHERNET_SOURCE, 0),
            Direction::Ingress => (ETHERNET_DESTINATION, ETHERNET_GROUP),
        };
        match self.load::<6>(place) {
            Some(Bytes(station)) => station != own && station[0] & group == 0,
            None => true,
        }
    }

    /// Locally generated is: no device, and a socket. Either alone is not enough: a device can be lost on the way
    /// (IPv6 fragments), and what crosses a bridge without netfilter keeps the socket of the pod that sent it.
    #[inline(always)]
    fn ingress_origin(&self, ifindex: u32) -> Origin {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is valid for the whole program.
        let came_from = unsafe { (*skb).ingress_ifindex };
        if came_from == ifindex {
            return Origin::OwnInterface;
        }
        if came_from == 0 && self.has_socket() {
            return Origin::OwnNode;
        }
        Origin::Forwarded
    }

    /// True if a socket sent it, of whatever kind.
    #[inline(always)]
    pub fn has_socket(&self) -> bool {
        let skb = self.ctx.skb.skb;
        // One read to the verifier, two operations to Rust, which takes the union for one of its own.
        #[allow(clippy::multiple_unsafe_ops_per_block)]
        // SAFETY: the context is valid for the whole program; the pointer is only compared with null.
        let socket = unsafe { (*skb).__bindgen_anon_2.sk };
        !socket.is_null()
    }

    /// True where the VLAN tag was taken out of the bytes.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is valid for the whole program.
        unsafe { (*skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn cb(&self, index: usize) -> u32 {
        let skb = self.ctx.skb.skb;
        match index {
            // SAFETY: the context is valid for the whole program.
            0 => unsafe { (*skb).cb[0] },
            // SAFETY: as above.
            _ => unsafe { (*skb).cb[1] },
        }
    }

    /// Leaves an answer for the asker in `cb`.
    #[inline(always)]
    pub fn answer(&self, reason: u32, counter: u32) {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is valid for the whole program, and `cb` is writable.
        unsafe { (*skb).cb[2] = reason };
        // SAFETY: as above.
        unsafe { (*skb).cb[3] = counter };
    }
}

impl PacketView for Skb<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        if offset as usize + N <= self.head.have as usize {
            let mut bytes = Bytes([0; N]);
            let place = self.head.at.get();
            // SAFETY: this program's own, and nobody holds a reference to what is in it.
            unsafe { core::ptr::write_volatile(place, offset.into()) };
            // SAFETY: as above.
            let at = unsafe { core::ptr::read_volatile(place) } as usize & (HEAD_ROOM - 1);
            // SAFETY: inside `bytes`, as was just compared; the mask changes no offset.
            let start = unsafe { self.head.bytes.as_ptr().add(at) };
            // SAFETY: N bytes from there are inside `bytes`, as above.
            unsafe { core::ptr::copy_nonoverlapping(start, bytes.0.as_mut_ptr(), N) };
            return Some(bytes);
        }
        self.load_far(offset)
    }

    #[inline(always)]
    fn load_far<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        // Not `TcContext::load`: that asks for `size_of::<Bytes<N>>()`, which alignment rounds up.
        let mut bytes = MaybeUninit::<Bytes<N>>::uninit();
        // SAFETY: the context is valid for the whole program, and `bytes` has room for N bytes.
        let failed = unsafe {
            bpf_skb_load_bytes(self.ctx.skb.skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: the helper filled all N bytes of the array.
        (failed == 0).then(|| unsafe { bytes.assume_init() })
    }
}
