//! Parts of the judgement that are global functions: the verifier looks at each once, whatever it knows where it is
//! called, instead of once for each way that leads there. They take numbers only, which Linux has allowed since 5.6
//! (memory since 5.12), and find the rest in maps.

use core::hint::black_box;

use portcullis_common::addr::Addr;
use portcullis_common::event::Direction;
use portcullis_common::judge::{self, At, Origin, Packed, Work};

use crate::tables::{self, Maps};

/// What a function of its own says where this CPU has no place to work: no verdict, which closes.
const NOTHING: u64 = Packed::UNREADABLE.0;

/// [`judge::by_tuple`] of what this CPU works on.
#[inline(always)]
pub fn by_tuple(work: &mut Work, at: At) -> Packed {
    // The function finds it by itself; from here on the compiler has to expect that.
    black_box(core::ptr::from_mut(work));
    let origin = at.origin.number() | (work.place << PLACE_SHIFT);
    let (slot, origin) = (at.slot.into(), origin.into());
    Packed(match at.direction {
        Direction::Ingress => ingress_tuple(slot, origin),
        Direction::Egress => egress_tuple(slot, origin),
    })
}

/// [`judge::existing`] of what this CPU works on.
#[inline(always)]
pub fn existing(work: &mut Work, at: At) -> Packed {
    black_box(core::ptr::from_mut(work));
    let place = u64::from(at.slot) | (u64::from(work.place) << 32);
    let origin = u64::from(at.origin.number()) | (u64::from(at.direction.index()) << PLACE_SHIFT);
    Packed(held_flow(place, origin))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn held_flow(place: u64, origin: u64) -> u64 {
    let Some(scratch) = tables::scratch_at((place >> 32) as u32) else {
        return NOTHING;
    };
    let direction = if (origin >> PLACE_SHIFT) as u8 == Direction::Ingress.index() {
        Direction::Ingress
    } else {
        Direction::Egress
    };
    let origin = Origin::from_number(u32::from(origin as u8));
    judge::existing(&Maps, &mut scratch.work, At { slot: place as u32, direction, origin }).0
}

/// [`judge::decide`].
#[inline(always)]
pub fn decide(remote: &Addr, ruleset: u16, protocol: u8, port: u16) -> Packed {
    let (high, low) = remote.halves();
    Packed(policies(high, low, ruleset.into(), protocol.into(), port.into()))
}

/// [`judge::ahead`] of what this CPU works on.
#[inline(always)]
pub fn ahead(work: &Work, verdict: Packed) -> Packed {
    black_box(core::ptr::from_ref(work));
    Packed(led_on(verdict.0))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn led_on(verdict: u64) -> u64 {
    let Some(scratch) = tables::scratch() else {
        return NOTHING;
    };
    judge::ahead(&Maps, &scratch.work, Packed(verdict)).0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ingress_tuple(slot: u64, origin: u64) -> u64 {
    tuple(slot, origin, Direction::Ingress)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn egress_tuple(slot: u64, origin: u64) -> u64 {
    tuple(slot, origin, Direction::Egress)
}

/// Above an origin's number: at which of the CPU's places the work is.
const PLACE_SHIFT: u32 = 8;

#[inline(always)]
fn tuple(slot: u64, origin: u64, direction: Direction) -> u64 {
    let Some(scratch) = tables::scratch_at((origin >> PLACE_SHIFT) as u32) else {
        return NOTHING;
    };
    let origin = Origin::from_number(u32::from(origin as u8));
    judge::by_tuple(&Maps, &mut scratch.work, At { slot: slot as u32, direction, origin }).0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn policies(high: u64, low: u64, ruleset: u64, protocol: u64, port: u64) -> u64 {
    let remote = Addr::from_halves(high, low);
    judge::decide(&Maps, &remote, ruleset as u16, protocol as u8, port as u16).0
}
