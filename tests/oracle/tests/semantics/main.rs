//! The semantics, statement by statement: a test is named after the numbers (`s14`) that it holds.

#![allow(clippy::needless_pass_by_value, reason = "json! literals read best without an ampersand")]

mod builders;
mod isolation;
mod objects;
mod peers;
mod ports;
