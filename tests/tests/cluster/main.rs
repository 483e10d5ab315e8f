//! The agent on a real cluster, installed by our manifests. `cargo xtask cluster-test` runs it and says in the
//! environment which cluster; elsewhere each test says that it was skipped.
//!
//! There is one cluster, so one test at a time; each brings about what it needs, in whatever order they run.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod agent;
mod churn;
mod cyclonus;
mod demo;
mod events;
mod host;
mod nodes;
mod removal;
mod restart;
mod services;
mod starts;
