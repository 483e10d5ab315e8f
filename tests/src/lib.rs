//! What the tests share: from an oracle's cluster to ours, and from our answers to what an oracle says.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

pub mod compare;
pub mod kernel;
pub mod lifecycle;
pub mod live;
pub mod privilege;
