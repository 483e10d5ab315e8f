//! The Cyclonus cases: policies with the truth matrices that the Cyclonus simulator made (see `tests/data/NOTICE`).
//! It owns the file's shape and turns each step into manifests; what the matrices should be, it does not know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{error, fmt, fs, io};

use serde_json::{Value, json};

use crate::verdict::Family;

/// One step of one case: a state of the cluster and what is reachable in it.
#[derive(Clone, Debug)]
pub struct Step {
    /// The case's number within its family.
    pub id: u64,
    /// 0-based position of the step in its case.
    pub step: usize,
    /// What the case is about.
    pub description: String,
    /// What features it touches.
    pub tags: Vec<String>,
    /// The family of the pods' addresses.
    pub family: Family,
    /// Objects of kind Namespace, Pod and NetworkPolicy.
    pub manifests: Vec<Value>,
    /// Rows and columns of the matrices, as `namespace/name`, sorted by namespace, then name. (The file has an
    /// order of its own.)
    pub order: Vec<String>,
    /// By protocol and port a row for each source: `.` allowed, `X` blocked, `-` self. (The simulator polices self
    /// traffic, which nobody should; its verdict is left out.)
    pub expected: BTreeMap<(String, u16), Vec<String>>,
}

/// Why the cases cannot be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// The file cannot be read.
    Read(PathBuf, io::Error),
    /// It is not JSON.
    Json(PathBuf, serde_json::Error),
    /// It is not of the expected shape: which field of what.
    Shape(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Read(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            LoadError::Json(path, error) => write!(f, "{} is not JSON: {error}", path.display()),
            LoadError::Shape(what) => write!(f, "Cyclonus cases: unexpected {what}"),
        }
    }
}

impl error::Error for LoadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            LoadError::Read(_, error) => Some(error),
            LoadError::Json(_, error) => Some(error),
            LoadError::Shape(_) => None,
        }
    }
}

/// The cases of this repository, `tests/data/cyclonus-cases.json`.
pub fn load() -> Result<Vec<Step>, LoadError> {
    load_from(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/cyclonus-cases.json")))
}

/// The steps of one case.
pub type Case = Vec<Step>;

/// Every case of the repository's file, for each family by itself, in the file's order.
pub fn cases() -> Result<Vec<Case>, LoadError> {
    let mut cases: Vec<Case> = Vec::new();
    for step in load()? {
        let goes_on = |case: &&mut Case| {
            case.first().is_some_and(|first| first.id == step.id && first.family == step.family)
        };
        match cases.last_mut().filter(goes_on) {
            Some(case) => case.push(step),
            None => cases.push(vec![step]),
        }
    }
    Ok(cases)
}

/// The cases of a file: IPv4 first, then IPv6, each in the file's order.
pub fn load_from(path: &Path) -> Result<Vec<Step>, LoadError> {
    let bytes = fs::read(path).map_err(|error| LoadError::Read(path.to_owned(), error))?;
    let file: Value =
        serde_json::from_slice(&bytes).map_err(|error| LoadError::Json(path.to_owned(), error))?;
    let mut all = Vec::new();
    for (name, family) in [("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)] {
        for case in list(&file, name)? {
            for (position, step) in list(case, "steps")?.iter().enumerate() {
                all.push(read_step(case, position, step, family)?);
            }
        }
    }
    Ok(all)
}

fn read_step(case: &Value, position: usize, step: &Value, family: Family) -> Result<Step, LoadError> {
    let id = case.get("id").and_then(Value::as_u64).ok_or_else(|| shape("id", case))?;
    let mut manifests = Vec::new();
    for (name, labels) in map(step, "namespaces")? {
        manifests.push(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }));
    }
    for pod in list(step, "pods")? {
        manifests.push(read_pod(pod)?);
    }
    for policy in list(step, "policies")? {
        let mut policy = policy.clone();
        let fields = policy.as_object_mut().ok_or_else(|| shape("policies", step))?;
        fields.insert("apiVersion".to_owned(), json!("networking.k8s.io/v1"));
        fields.insert("kind".to_owned(), json!("NetworkPolicy"));
        manifests.push(policy);
    }
    let mut order: Vec<(usize, String)> =
        strings(step.get("order").unwrap_or(&Value::Null))?.into_iter().enumerate().collect();
    order.sort_by(|(_, one), (_, other)| one.split_once('/').cmp(&other.split_once('/')));
    let (positions, order): (Vec<usize>, Vec<String>) = order.into_iter().unzip();
    let mut expected = BTreeMap::new();
    for (traffic, rows) in map(step, "expected")? {
        let (protocol, port) = traffic.split_once('/').ok_or_else(|| shape("expected", step))?;
        let port = port.parse().map_err(|_| shape("expected", step))?;
        let rows = sort_matrix(&strings(rows)?, &positions).ok_or_else(|| shape("expected", step))?;
        expected.insert((protocol.to_owned(), port), rows);
    }
    Ok(Step {
        id,
        step: position,
        description: string(case, "description")?,
        tags: strings(case.get("tags").unwrap_or(&Value::Null))?,
        family,
        manifests,
        order,
        expected,
    })
}

/// Takes rows and columns from their positions, and the verdicts on self traffic out.
fn sort_matrix(rows: &[String], positions: &[usize]) -> Option<Vec<String>> {
    let cell = |from: &usize, to: &usize| {
        if from == to { Some('-') } else { rows.get(*from)?.chars().nth(*to) }
    };
    positions.iter().map(|from| positions.iter().map(|to| cell(from, to)).collect()).collect()
}

fn read_pod(pod: &Value) -> Result<Value, LoadError> {
    let mut ports = Vec::new();
    for port in list(pod, "ports")? {
        ports.push(json!({
            "name": string(port, "name")?,
            "containerPort": port.get("port"),
            "protocol": string(port, "protocol")?,
        }));
    }
    let address = string(pod, "ip")?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": string(pod, "ns")?,
            "name": string(pod, "name")?,
            "labels": pod.get("labels"),
        },
        "spec": {"containers": [{"name": "serve", "image": "serve", "ports": ports}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    }))
}

fn shape(field: &str, of: &Value) -> LoadError {
    let text: String = of.to_string().chars().take(200).collect();
    LoadError::Shape(format!("{field} in {text}"))
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>, LoadError> {
    value.get(name).and_then(Value::as_array).ok_or_else(|| shape(name, value))
}

fn map<'a>(value: &'a Value, name: &str) -> Result<&'a serde_json::Map<String, Value>, LoadError> {
    value.get(name).and_then(Value::as_object).ok_or_else(|| shape(name, value))
}

fn string(value: &Value, name: &str) -> Result<String, LoadError> {
    value.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| shape(name, value))
}

fn strings(value: &Value) -> Result<Vec<String>, LoadError> {
    let text = |item: &Value| item.as_str().map(str::to_owned).ok_or_else(|| shape("string", value));
    value.as_array().ok_or_else(|| shape("list of strings", value))?.iter().map(text).collect()
}
