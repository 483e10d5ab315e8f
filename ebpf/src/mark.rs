//! Our bits of a packet's mark: which endpoint sent it, and that it is judged again where it is delivered. The mark survives
//! translation, routing, fragmentation and bridging, and does not leave the node or enter a pod.

use aya_ebpf::bindings::__sk_buff;
use portcullis_common::judge::Delivery;
use portcullis_common::wire::{MARK_BITS, MARK_JUDGE, MARK_OPENS, MARK_SLOT};

use crate::tables;

/// Who sent a packet that is to be judged here.
#[derive(Clone, Copy)]
pub struct Sent {
    /// The endpoint.
    pub slot: u32,
    /// True if its verdict waits.
    pub opens: bool,
}

/// Where our bits are: in a map, so that all programs look elsewhere from one packet to the next.
#[inline(always)]
fn shift() -> u32 {
    tables::mark_shift() & 31
}

/// Leaves in the mark what the verdict wants, and nothing that anybody else left in our bits.
#[inline(always)]
pub fn write(skb: *mut __sk_buff, slot: u32, delivery: Delivery) {
    let bits = match delivery {
        Delivery::Done => 0,
        // There is no room for it, and no other's name will do.
        Delivery::Again | Delivery::Waits if slot > MARK_SLOT => 0,
        Delivery::Again => MARK_JUDGE | (slot & MARK_SLOT),
        Delivery::Waits => MARK_JUDGE | MARK_OPENS | (slot & MARK_SLOT),
    };
    put(skb, bits);
}

/// Whose packet this is, if it is to be judged here.
#[inline(always)]
pub fn read(skb: *mut __sk_buff) -> Option<Sent> {
    // SAFETY: the context is valid for the whole program.
    let bits = unsafe { (*skb).mark } >> shift();
    (bits & MARK_JUDGE != 0).then_some(Sent { slot: bits & MARK_SLOT, opens: bits & MARK_OPENS != 0 })
}

/// Says that this is judged already, and to who gets it by the loopback device who sent it, if there is room for the name.
#[inline(always)]
pub fn say(skb: *mut __sk_buff, slot: u32, loops: bool) {
    put(skb, if loops && slot > MARK_SLOT { 0 } else { MARK_OPENS | (slot & MARK_SLOT) });
}

/// Who sent this, whatever is still to be judged.
#[inline(always)]
pub fn sender(skb: *mut __sk_buff) -> Option<u32> {
    // SAFETY: the context is valid for the whole program.
    let bits = unsafe { (*skb).mark } >> shift();
    (bits & (MARK_JUDGE | MARK_OPENS) != 0).then_some(bits & MARK_SLOT)
}

/// Takes our bits out.
#[inline(always)]
pub fn clear(skb: *mut __sk_buff) {
    put(skb, 0);
}

#[inline(always)]
fn put(skb: *mut __sk_buff, bits: u32) {
    // SAFETY: the context is valid for the whole program.
    let mark = unsafe { (*skb).mark };
    let wanted = (mark & !(MARK_BITS << shift())) | (bits << shift());
    if mark != wanted {
        // SAFETY: as above.
        let place = unsafe { &raw mut (*skb).mark };
        // Volatile, and the whole word: a store that the compiler narrows to a byte is refused.
        // SAFETY: the mark is writable.
        unsafe { core::ptr::write_volatile(place, wanted) };
    }
}
