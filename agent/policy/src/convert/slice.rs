//! EndpointSlices (`discovery.k8s.io/v1`).

use std::net::IpAddr;

use serde_json::Value;

use super::cidr::address;
use super::ports::{port_number, protocol};
use super::report::{Path, Report, quoted};
use super::value::{Object, Read, entry, field, list, object, text, wrong_type};
use crate::model::{EndpointSlice, ObjectKey, Readiness, SliceEndpoint, SliceMaker, SlicePort};

/// The label that says who made a slice (`LabelManagedBy` of `discovery/v1`).
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What it says where the controller did that follows selectors (`controllerName` of the endpointslice controller).
pub const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The label that names a slice's Service (`LabelServiceName` of `discovery/v1`).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

const NO_SLICE: &str = "the slice is left out";
const NO_BACKEND: &str = "the backend is left out";
const NO_PORT: &str = "the port is left out";

/// Reads an EndpointSlice of this namespace, `None` if it is no Service's, or holds names in place of addresses.
#[must_use]
pub fn endpoint_slice(value: &Value, namespace: &str, report: &mut Report) -> Option<EndpointSlice> {
    let fields = value.as_object()?;
    let label = |name| value.get("metadata")?.get("labels")?.get(name)?.as_str();
    let service = label(SERVICE_NAME).filter(|name| !name.is_empty())?;
    let family = match text(fields, "addressType", Path::ROOT, report, NO_SLICE) {
        // A mistake that no API server lets pass, and the addresses speak for themselves.
        Read::Absent => None,
        Read::Is("IPv4") => Some(Family::V4),
        Read::Is("IPv6") => Some(Family::V6),
        Read::Is("FQDN") | Read::WrongType => return None,
        Read::Is(other) => {
            report.error(
                Path::ROOT.field("addressType"),
                format_args!("{} is unknown: {NO_SLICE}; write IPv4, IPv6 or FQDN", quoted(other)),
            );
            return None;
        }
    };
    let maker = match label(MANAGED_BY) {
        Some(SLICE_CONTROLLER) => SliceMaker::Controller,
        Some(_) | None => SliceMaker::Other,
    };
    let entries = list(fields, "endpoints", Path::ROOT, report, "it has none").is().unwrap_or_default();
    let path = Path::ROOT.field("endpoints");
    let endpoint = |(index, value)| endpoint(value, namespace, family, path.index(index), report);
    let endpoints = entries.iter().enumerate().filter_map(endpoint).collect();
    let entries = list(fields, "ports", Path::ROOT, report, "it has none").is().unwrap_or_default();
    let path = Path::ROOT.field("ports");
    let port = |(index, value)| port(value, path.index(index), report);
    let ports = entries.iter().enumerate().filter_map(port).collect();
    Some(EndpointSlice { service: service.into(), maker, endpoints, ports })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn endpoint(
    value: &Value,
    namespace: &str,
    family: Option<Family>,
    path: Path<'_>,
    report: &mut Report,
) -> Option<SliceEndpoint> {
    let fields = entry(value, path, report, NO_BACKEND)?;
    let addresses = list(fields, "addresses", path, report, NO_BACKEND).is().unwrap_or_default();
    let address = first_address(addresses.first()?, family, path.field("addresses").index(0), report)?;
    let target = object(fields, "targetRef", path, report, "the backend counts as no pod").is();
    let of = |name: &str| target?.get(name)?.as_str();
    let pod = match (of("kind"), of("name")) {
        (Some("Pod"), Some(name)) => Some(ObjectKey::new(of("namespace").unwrap_or(namespace), name)),
        (Some(_) | None, _) => None,
    };
    let conditions = object(fields, "conditions", path, report, "the backend counts as ready").is();
    Some(SliceEndpoint { address, pod, readiness: readiness(conditions) })
}

fn first_address(
    value: &Value,
    family: Option<Family>,
    path: Path<'_>,
    report: &mut Report,
) -> Option<IpAddr> {
    let Value::String(written) = value else {
        wrong_type(value, "a string", path, report, NO_BACKEND);
        return None;
    };
    let Some(read) = address(written) else {
        report.error(path, format_args!("{} is no address: {NO_BACKEND}; mend it", quoted(written)));
        return None;
    };
    let own = if read.is_ipv4() { Family::V4 } else { Family::V6 };
    if family.is_some_and(|family| family != own) {
        report.error(
            path,
            format_args!(
                "{} is not of the slice's addressType: {NO_BACKEND}; mend one of them",
                quoted(written)
            ),
        );
        return None;
    }
    Some(read)
}

/// What is not said counts as ready, serving and not terminating, as for kube-proxy (`EndpointConditions` of
/// `discovery/v1`); whoever is ready serves.
fn readiness(conditions: Option<&Object>) -> Readiness {
    let of = |name| conditions.and_then(|fields| field(fields, name)).and_then(Value::as_bool);
    let ready = of("ready").unwrap_or(true);
    match (ready, of("serving").unwrap_or(ready), of("terminating").unwrap_or(false)) {
        (true, _, _) => Readiness::Ready,
        (false, true, true) => Readiness::Terminating,
        (false, _, _) => Readiness::NotReady,
    }
}

/// A port without a number is no port that anybody translates to.
fn port(value: &Value, path: Path<'_>, report: &mut Report) -> Option<SlicePort> {
    let fields = entry(value, path, report, NO_PORT)?;
    let protocol = protocol(fields, path, report)?;
    let value = field(fields, "port")?;
    let Some(port) = port_number(value) else {
        report.error(
            path.field("port"),
            format_args!(
                "{} is no port: {NO_PORT}; write a whole number from 1 to 65535",
                quoted(&value.to_string())
            ),
        );
        return None;
    };
    let name = text(fields, "name", path, report, "the port has no name").is().unwrap_or_default().into();
    Some(SlicePort { name, protocol, port })
}
