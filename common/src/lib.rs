//! What the kernel's programs, the agent, `explain` and the tests share, so that one parser and one
//! classification run everywhere: wire types of the maps, the packet parser, the ruleset walk, the flow
//! rules and the whole judgement of a packet. No I/O, no allocation, no `unsafe`, no dependency on Aya.
#![no_std]
#![deny(unsafe_code)]
// A call that LLVM does not inline has five argument registers in eBPF and a stack frame of the 512 bytes that
// all frames share, so what is a function of its own in the kernel is decided here, not by a heuristic.
#![allow(clippy::inline_always)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod classify;
pub mod event;
pub mod flow;
pub mod judge;
pub mod packet;
pub mod wire;

#[cfg(test)]
mod testing;
