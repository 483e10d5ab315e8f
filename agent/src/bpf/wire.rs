//! Lets Aya move the wire types of `portcullis_common`. The one `unsafe impl` that it takes stands here.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A value as the kernel holds it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire<T>(pub(crate) T);

// SAFETY: `FromBytes` says that every bit pattern is a value, `IntoBytes` that there is no padding; the wrapper
// is transparent.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> aya::Pod for Wire<T> {}
