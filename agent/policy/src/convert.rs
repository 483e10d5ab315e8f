//! From one object of Kubernetes, as JSON with its unknown fields kept (S49), to its part of the
//! [`crate::model`]. What cannot be read closes and is told in a [`Report`]; nothing here fails or panics.
//! This module must not know files, lists of objects or made-up addresses: that is [`crate::manifest`]'s.

mod cidr;
mod cluster;
mod host;
mod labels;
mod mode;
mod peers;
mod pod;
mod policy;
mod ports;
mod report;
mod selector;
mod service;
mod shape;
mod slice;
#[cfg(test)]
mod tests;
mod value;

pub use cluster::{METADATA_NAME, namespace, node};
pub use host::host_policy;
pub use mode::{MODE_ANNOTATION, SOURCE_BINDING_ANNOTATION};
pub(crate) use pod::from_template;
pub use pod::pod;
pub use policy::network_policy;
pub(crate) use report::Path;
pub use report::{Report, printable};
pub use service::service;
pub use slice::{MANAGED_BY, SLICE_CONTROLLER, endpoint_slice};
pub(crate) use value::{Object, Read, field, object, what_is};
