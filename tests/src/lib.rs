//! What the tests share: from an oracle's cluster to ours, and from our answers to what an oracle says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on has failed"
)]

pub mod attached;
pub mod compare;
pub mod device;
pub mod flow;
pub mod kernel;
pub mod lifecycle;
pub mod privilege;
