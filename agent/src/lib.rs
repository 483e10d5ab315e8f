//! stub

pub mod attach;
