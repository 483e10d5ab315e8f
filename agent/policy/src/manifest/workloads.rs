//! Workloads stand for the pods that they would make: repositories hold workloads, not pods.

use serde_json::Value;

use super::collect::{Found, Kind, Objects, Workload};
use super::owners;
use crate::convert::{Object, Path, Read, Report, field, from_template, object, printable, what_is};
use crate::model::{Cluster, ObjectKey, Pod, Problem};

/// The most pods that one workload stands for.
pub const MAX_REPLICAS: u64 = 1_000;

/// The most pods that all workloads of a directory stand for.
pub const MAX_STAND_INS: usize = 100_000;

/// Adds the pods `NAME-0`, `NAME-1`, ... of every workload that is not made already. Where a Pod has such a
/// name the next free number is taken.
pub(super) fn expand(objects: &Objects<'_>, cluster: &mut Cluster, problems: &mut Vec<Problem>) {
    let made = owners::made(objects);
    let mut room = MAX_STAND_INS;
    for ((kind, key), found) in objects {
        let Kind::Workload(workload) = *kind else { continue };
        if made.contains(&(workload, key.clone())) {
            continue;
        }
        let mut report = found.report(*kind, key);
        stand_ins(workload, key, found, &mut room, cluster, &mut report);
        problems.append(&mut report.into_problems());
    }
}

fn stand_ins(
    workload: Workload,
    key: &ObjectKey,
    found: &Found<'_>,
    room: &mut usize,
    cluster: &mut Cluster,
    report: &mut Report,
) {
    let spec_path = Path::ROOT.field("spec");
    let job_path = spec_path.field("jobTemplate");
    let path = match workload {
        Workload::CronJob => job_path.field("spec"),
        Workload::Deployment
        | Workload::StatefulSet
        | Workload::DaemonSet
        | Workload::ReplicaSet
        | Workload::Job => spec_path,
    };
    let Some((spec, template)) = spec_and_template(workload, found.value, path, report) else {
        return;
    };
    let count = usize::try_from(count(workload, spec, path, report)).unwrap_or(usize::MAX);
    if count > *room {
        report.error(
            Path::ROOT,
            format_args!(
                "some of its pods are left out, for workloads may stand for {MAX_STAND_INS} pods in all; lower \
                 their replicas"
            ),
        );
    }
    let count = count.min(*room);
    if count == 0 {
        return;
    }
    *room -= count;
    let pod = from_template(template, key, path.field("template"), report);
    if let Some(taken) = add(&pod, key, count, cluster) {
        report.warning(
            Path::ROOT,
            format_args!(
                "{} exists without belonging to it, so its pods have later numbers; give that Pod an \
                 ownerReference if it does",
                printable(&taken.to_string())
            ),
        );
    }
}

/// The spec that holds the template, to which `path` leads, and the template. What is missing is reported: then there is no pod.
fn spec_and_template<'v>(
    workload: Workload,
    value: &'v Value,
    path: Path<'_>,
    report: &mut Report,
) -> Option<(&'v Object, &'v Object)> {
    let steps: &[&str] = match workload {
        Workload::CronJob => &["spec", "jobTemplate", "spec"],
        Workload::Deployment
        | Workload::StatefulSet
        | Workload::DaemonSet
        | Workload::ReplicaSet
        | Workload::Job => &["spec"],
    };
    let spec = descend(value.as_object()?, steps, Path::ROOT, report)?;
    Some((spec, descend(spec, &["template"], path, report)?))
}

/// What stands at the end of the steps. All of them are needed.
fn descend<'v>(
    parent: &'v Object,
    steps: &[&str],
    path: Path<'_>,
    report: &mut Report,
) -> Option<&'v Object> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(parent);
    };
    let nothing = "the workload stands for no pod";
    match object(parent, step, path, report, nothing) {
        Read::Is(fields) => descend(fields, rest, path.field(step), report),
        Read::WrongType => None,
        Read::Absent => {
            report.error(path.field(step), format_args!("is missing: {nothing}; write it"));
            None
        }
    }
}

/// Adds `count` pods like `pod`, and returns the first name that a pod of somebody else has, if any.
fn add(pod: &Pod, key: &ObjectKey, count: usize, cluster: &mut Cluster) -> Option<ObjectKey> {
    let mut taken = None;
    let mut added = 0;
    for number in 0_u64.. {
        if added == count {
            break;
        }
        let pod_key = ObjectKey::new(&*key.namespace, format!("{}-{number}", key.name));
        if cluster.pods.contains_key(&pod_key) {
            taken.get_or_insert(pod_key);
            continue;
        }
        let uid = format!("manifest:{pod_key}");
        cluster.pods.insert(pod_key, Pod { uid, ..pod.clone() });
        added += 1;
    }
    taken
}

/// How many pods the workload stands for.
fn count(workload: Workload, spec: &Object, path: Path<'_>, report: &mut Report) -> u64 {
    let name = match workload {
        Workload::Deployment | Workload::StatefulSet | Workload::ReplicaSet => "replicas",
        Workload::Job | Workload::CronJob => "parallelism",
        Workload::DaemonSet => return 1,
    };
    let path = path.field(name);
    match field(spec, name) {
        None => 1,
        Some(value) => match value.as_u64() {
            Some(count) if count <= MAX_REPLICAS => count,
            Some(count) => {
                report.error(
                    path,
                    format_args!("{count} counts as {MAX_REPLICAS}, the most that is read; lower it"),
                );
                MAX_REPLICAS
            }
            None => {
                let found = if value.is_number() { value.to_string() } else { what_is(value).to_owned() };
                report.error(
                    path,
                    format_args!("is {found} and counts as 1; write a whole number that is not negative"),
                );
                1
            }
        },
    }
}
