//! `matrix --diff`: asks both sides for the same matrices, and prints what differs.

use std::path::Path;

use portcullis_policy::frame::Traffic;

use super::ask::{AskError, MatrixRequest, Reply, TrafficText};
use super::matrix::{self, Matrix};
use super::{Face, Failure, From, live, read};
use crate::api::Request;
use crate::output::{self, Exit};
use crate::world::World;

/// From the agent or directory to the other directory.
pub fn diff(from: &From, other: &From, request: MatrixRequest, face: Face) -> Result<Exit, Failure> {
    let namespaces = request.namespaces.clone();
    let (before, after) = matrices(&Side::open(from)?, &Side::open(other)?, request)?;
    for name in &namespaces {
        let is_there = |side: &[Matrix]| side.iter().flat_map(|m| &m.order).any(|pod| is_of(pod, name));
        if !before.is_empty() && !is_there(&before) && !is_there(&after) {
            return Err(AskError::UnknownNamespace { name: name.clone(), known: Vec::new() }.into());
        }
    }
    let result = matrix::diff::differences(&before, &after, &namespaces);
    let exit = matrix::diff::exit(&result);
    if exit == Exit::Fine {
        output::note("no difference");
    }
    face.show(&result, || matrix::diff::table(&result, face.colour))?;
    Ok(exit)
}

fn is_of(pod: &str, namespace: &str) -> bool {
    pod.split_once('/').is_some_and(|(of, _)| of == namespace)
}

/// Where one side's matrices come from. A directory is read once, however often it is asked.
enum Side<'a> {
    Agent(&'a Path),
    Files(Box<World>),
}

impl<'a> Side<'a> {
    fn open(from: &'a From) -> Result<Self, Failure> {
        Ok(match from {
            From::Agent { run_dir } => Self::Agent(run_dir),
            From::Directory { dir, node, pod_cidrs, hosts } => {
                Self::Files(Box::new(read(dir, node.as_deref(), pod_cidrs, *hosts)?))
            }
        })
    }

    fn ask(&self, request: &MatrixRequest) -> Result<Vec<Matrix>, Failure> {
        let Reply { result, notes } = match self {
            Self::Agent(run_dir) => live(run_dir, &Request::Matrix(request.clone()))?,
            Self::Files(world) => matrix::matrix(world, None, request)?,
        };
        notes.iter().for_each(output::note);
        Ok(result)
    }
}

/// Matrices of both sides at the same ports and of the same family: without ports, at those that pods of either
/// side declare; without family, of the first side's.
fn matrices(
    before: &Side<'_>,
    after: &Side<'_>,
    mut request: MatrixRequest,
) -> Result<(Vec<Matrix>, Vec<Matrix>), Failure> {
    // Whole matrices: a namespace may be on one side only.
    request.namespaces.clear();
    let every_declared = request.ports.is_empty();
    let mut first = before.ask(&request)?;
    request.family = request.family.or(first.first().map(|matrix| matrix.family));
    let mut second = after.ask(&request)?;
    if every_declared {
        let (of_first, of_second) = (traffics(&first), traffics(&second));
        for (side, matrices, has, wanted) in
            [(before, &mut first, &of_first, &of_second), (after, &mut second, &of_second, &of_first)]
        {
            let lacking = wanted.iter().filter(|traffic| !has.contains(traffic));
            request.ports = lacking.map(|traffic| TrafficText(*traffic)).collect();
            if !request.ports.is_empty() {
                matrices.extend(side.ask(&request)?);
            }
            matrices.sort_by_key(matrix_traffic);
        }
    }
    Ok((first, second))
}

fn traffics(matrices: &[Matrix]) -> Vec<Traffic> {
    matrices.iter().filter_map(matrix_traffic).collect()
}

/// What a matrix is of; `None`: no traffic of this version.
fn matrix_traffic(matrix: &Matrix) -> Option<Traffic> {
    let port = matrix.port.map(|port| format!("/{port}")).unwrap_or_default();
    format!("{}{port}", matrix.protocol).parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use crate::verbs::ask::Judge;

    fn manifests(ports: &str, policies: &str) -> Scratch {
        let dir = Scratch::new();
        let pod = |name: &str, number: u8| {
            format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: a}}, \
                 spec: {{containers: [{{name: c, ports: {ports}}}]}}, status: {{podIP: 10.0.0.{number}}}}}\n"
            )
        };
        let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n";
        dir.write("all.yaml", &[namespace, &pod("x", 1), &pod("y", 2), policies].concat());
        dir
    }

    fn sides(before: &Scratch, after: &Scratch) -> (Vec<Matrix>, Vec<Matrix>) {
        let from = |dir: &Scratch| From::Directory {
            dir: dir.path().to_owned(),
            node: None,
            pod_cidrs: Vec::new(),
            hosts: None,
        };
        let (before, after) = (from(before), from(after));
        let request = MatrixRequest {
            ports: Vec::new(),
            family: None,
            judge: Judge::Userspace,
            namespaces: Vec::new(),
            services: Vec::new(),
            hosts: crate::verbs::ask::Hosts::Out,
        };
        matrices(&Side::open(&before).unwrap(), &Side::open(&after).unwrap(), request).unwrap()
    }

    #[test]
    fn without_ports_both_sides_are_asked_about_the_ports_of_either() {
        let deny = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: a}, \
                    spec: {podSelector: {}}}\n";
        let before = manifests("[{containerPort: 80}, {containerPort: 53, protocol: UDP}]", "");
        let after = manifests("[{containerPort: 443}, {containerPort: 53, protocol: UDP}]", deny);
        let (first, second) = sides(&before, &after);
        let names: Vec<String> = traffics(&first).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["TCP/80", "TCP/443", "UDP/53"]);
        assert_eq!(traffics(&first), traffics(&second));
        let found = matrix::diff::differences(&first, &second, &[]);
        assert!(found.iter().all(|one| one.closed.len() == 2 && one.opened.is_empty()), "{found:?}");
    }
}
