//! `policies lint`: what is wrong or odd about a directory of manifests, before anything is applied.

use std::path::Path;

use ipnet::IpNet;
use portcullis_policy::compile::Compiler;
use portcullis_policy::convert::printable;
use portcullis_policy::findings::{FindingKind, findings};
use portcullis_policy::manifest::{self, Loaded, Options};
use portcullis_policy::model::{Pod, Problem, Severity};
use serde::{Deserialize, Serialize};

use super::{Face, Failure};
use crate::output::{self, Exit};
use crate::source::read::{ReadError, read_directory};

/// Where a message ends and its remedy begins.
const REMEDY: &str = "; ";

/// One thing that is wrong or odd.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// The file, below the directory as it was given; `None` where nothing of the directory is to blame.
    pub file: Option<String>,
    /// The line at which the object begins, or that cannot be read.
    pub line: Option<u64>,
    /// `error`, `warning` or `note`.
    pub severity: String,
    /// `KIND NAMESPACE/NAME`, or the file.
    pub object: String,
    /// The field's path, empty for the whole object.
    pub field: String,
    /// Which finding of the analysis it is; `None` for what could not be read.
    pub kind: Option<String>,
    /// What is wrong and what follows.
    pub message: String,
    /// What to do.
    pub remedy: Option<String>,
}

impl Finding {
    /// Puts the directory in front of the file, so that an editor finds it.
    fn found_in(&mut self, dir: &Path) {
        let Some(file) = &mut self.file else { return };
        let path = printable(&dir.join(&*file).to_string_lossy());
        // A file that cannot be read is its own object.
        if self.object == *file {
            self.object.clone_from(&path);
        }
        *file = path;
    }
}

/// What `policies lint` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lint {
    /// By file and line.
    pub findings: Vec<Finding>,
    /// How many errors.
    pub errors: usize,
    /// How many warnings.
    pub warnings: usize,
    /// How many notes; they do not count against the files.
    pub notes: usize,
}

impl Lint {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        if self.errors == 0 && self.warnings == 0 { Exit::Fine } else { Exit::Negative }
    }
}

/// Checks and prints.
pub fn lint(dir: &Path, pod_cidrs: &[IpNet], face: Face) -> Result<Exit, Failure> {
    let (mut lint, pods) = check(dir, pod_cidrs).map_err(Failure::Lint)?;
    for finding in &mut lint.findings {
        finding.found_in(dir);
    }
    match pods {
        Pods::Some => {}
        Pods::None => {
            output::note("there is no pod in the directory, so what policies select is not checked");
        }
    }
    face.show(&lint, || table(&lint))?;
    Ok(lint.exit())
}

/// Whether there is something to select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pods {
    Some,
    None,
}

fn check(dir: &Path, pod_cidrs: &[IpNet]) -> Result<(Lint, Pods), ReadError> {
    let reading = read_directory(dir)?;
    let loaded = manifest::load(&reading.files, &Options::with(pod_cidrs));
    let mut all: Vec<Finding> = reading
        .problems
        .iter()
        .chain(&loaded.problems)
        .map(|problem| from_problem(problem, &loaded))
        .collect();
    all.extend(loaded.cluster_policies.iter().map(|policy| cluster_policy(policy)));
    match Compiler::new(0).compile(&loaded.cluster, &loaded.cluster.subjects()) {
        Ok((_, closed)) => all.extend(closed.iter().map(|problem| from_problem(problem, &loaded))),
        Err(error) => all.push(Finding {
            severity: Severity::Error.name().to_owned(),
            object: "Node".to_owned(),
            message: format!("the tables of a node have no room for these policies: {error}"),
            ..Finding::default()
        }),
    }
    let pods = if loaded.cluster.pods.values().any(Pod::is_live) { Pods::Some } else { Pods::None };
    all.extend(analysis(&loaded, pods));
    all.sort();
    all.dedup();
    let count = |severity: Severity| all.iter().filter(|found| found.severity == severity.name()).count();
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Note));
    Ok((Lint { findings: all, errors, warnings, notes }, pods))
}

/// What can be read and is odd. Without pods nothing is selected, and that says nothing about a policy.
fn analysis(loaded: &Loaded, pods: Pods) -> Vec<Finding> {
    let asks_for_pods = |kind| match kind {
        FindingKind::SelectsNothing | FindingKind::PeerMatchesNothing | FindingKind::PortMatchesNothing => {
            true
        }
        FindingKind::RuleMatchesNothing | FindingKind::RuleShadowed | FindingKind::NoDns => false,
    };
    findings(&loaded.cluster)
        .into_iter()
        .filter(|finding| pods == Pods::Some || !asks_for_pods(finding.kind))
        .map(|finding| {
            let (file, line) = place(None, &finding.object, loaded);
            let (message, remedy) = split(&finding.message);
            Finding {
                file,
                line,
                severity: finding.severity.name().to_owned(),
                object: finding.object,
                field: finding.field,
                kind: Some(finding.kind.name().to_owned()),
                message,
                remedy,
            }
        })
        .collect()
}

fn from_problem(problem: &Problem, loaded: &Loaded) -> Finding {
    let (file, line) = place(problem.location.as_deref(), &problem.object, loaded);
    let (message, remedy) = split(&problem.message);
    Finding {
        file,
        line,
        severity: problem.severity.name().to_owned(),
        object: problem.object.clone(),
        field: problem.field.clone(),
        kind: None,
        message,
        remedy,
    }
}

/// `policy` is `NAME (FILE:LINE)`.
fn cluster_policy(policy: &str) -> Finding {
    let (name, place) = policy.rsplit_once(" (").unwrap_or((policy, ""));
    let (file, line) = parts(place.trim_end_matches(')'));
    Finding {
        file,
        line,
        severity: Severity::Error.name().to_owned(),
        object: format!("ClusterNetworkPolicy {name}"),
        message: "is not supported by this version yet, and an agent refuses a directory that holds one"
            .to_owned(),
        remedy: Some("take it out".to_owned()),
        ..Finding::default()
    }
}

/// Where a finding stands: what it says itself, else where its object stands.
fn place(location: Option<&str>, object: &str, loaded: &Loaded) -> (Option<String>, Option<u64>) {
    let known = location.or_else(|| loaded.locations.get(object).map(String::as_str));
    known.map_or((None, None), parts)
}

/// `FILE:LINE` or `FILE`.
fn parts(location: &str) -> (Option<String>, Option<u64>) {
    let file = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match location.rsplit_once(':').map(|(name, line)| (name, line.parse())) {
        Some((name, Ok(line))) => (file(name), Some(line)),
        Some((_, Err(_))) | None => (file(location), None),
    }
}

fn split(message: &str) -> (String, Option<String>) {
    match message.rsplit_once(REMEDY) {
        Some((what, remedy)) => (what.to_owned(), Some(remedy.to_owned())),
        None => (message.to_owned(), None),
    }
}

/// For people and their editors: `FILE:LINE: SEVERITY: OBJECT FIELD: MESSAGE; REMEDY`.
fn table(lint: &Lint) -> String {
    let mut text: String = lint.findings.iter().map(|finding| line(finding) + "\n").collect();
    if lint.errors + lint.warnings + lint.notes == 0 {
        text.push_str("nothing found\n");
    } else {
        let counts =
            [plural(lint.errors, "error"), plural(lint.warnings, "warning"), plural(lint.notes, "note")];
        text.push_str(&(counts.join(", ") + "\n"));
    }
    text
}

fn line(finding: &Finding) -> String {
    let place = match (&finding.file, finding.line) {
        (Some(file), Some(line)) => format!("{file}:{line}: "),
        (Some(file), None) => format!("{file}: "),
        (None, _) => String::new(),
    };
    let object = if finding.file.as_ref() == Some(&finding.object) { "" } else { &finding.object };
    let what = [object, &finding.field].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
    let what = if what.is_empty() { String::new() } else { what.join(" ") + ": " };
    let remedy = finding.remedy.as_ref().map(|remedy| format!("{REMEDY}{remedy}")).unwrap_or_default();
    let kind = finding.kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
    format!("{place}{}: {what}{}{remedy}{kind}", finding.severity, finding.message)
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: x}}\n---\n";
    const POD: &str =
        "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: x, labels: {app: web}}}\n---\n";

    fn policy(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: x}}\n\
             spec: {spec}\n---\n"
        )
    }

    fn lines(files: &[(&str, &str)]) -> (Lint, Vec<String>) {
        let dir = Scratch::new();
        for (name, text) in files {
            dir.write(name, text);
        }
        let (lint, _) = check(dir.path(), &[]).unwrap();
        let lines = table(&lint).lines().map(str::to_owned).collect();
        (lint, lines)
    }

    #[test]
    fn good_files_are_fine() {
        let all = [NAMESPACE, POD, &policy("a", "{podSelector: {}, ingress: [{}]}")].concat();
        let (lint, lines) = lines(&[("a.yaml", &all)]);
        assert_eq!(lines, ["nothing found"]);
        assert_eq!(lint.exit(), Exit::Fine);
    }

    #[test]
    fn everything_is_told_with_its_place() {
        let all = [
            NAMESPACE,
            POD,
            &policy("typo", "{podSelector: {}, ingres: []}"),
            &policy("nobody", "{podSelector: {matchLabels: {app: wbe}}}"),
        ]
        .concat();
        let (lint, lines) =
            lines(&[("a.yaml", &all), ("b/broken.yaml", "a: 1\nb: ["), ("c.yaml", "kind: networkpolicy")]);
        assert_eq!(lint.exit(), Exit::Negative);
        assert!(
            lines[0].starts_with("a.yaml:5: error: NetworkPolicy x/typo spec.ingres: is unknown"),
            "{lines:#?}"
        );
        let nobody = lines.iter().find(|line| line.contains("x/nobody")).unwrap();
        assert!(
            nobody.starts_with("a.yaml:10: warning:") && nobody.ends_with("(selects-nothing)"),
            "{nobody}"
        );
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("b/broken.yaml:") && line.contains(": error: is no YAML"))
        );
        assert!(lines.iter().any(|line| line.starts_with("c.yaml:1: error: networkpolicy kind: is no kind")));
        assert_eq!(lint.findings.len(), lint.errors + lint.warnings + lint.notes);
        assert!(lint.findings.iter().all(|found| found.severity == "note" || found.remedy.is_some()));
    }

    #[test]
    fn a_note_alone_is_fine_and_a_clusternetworkpolicy_is_not() {
        let (note, text) = lines(&[("a.yaml", "{apiVersion: v1, kind: Secret, metadata: {name: a}}")]);
        assert_eq!((note.notes, note.exit()), (1, Exit::Fine), "{text:#?}");
        let cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: deny}\n";
        let (lint, text) = lines(&[("a.yaml", cluster)]);
        assert_eq!(lint.exit(), Exit::Negative);
        assert!(
            text[0].starts_with("a.yaml:1: error: ClusterNetworkPolicy deny: is not supported"),
            "{text:#?}"
        );
    }

    #[test]
    fn without_pods_nothing_is_said_about_what_is_selected() {
        let (lint, text) =
            lines(&[("a.yaml", &policy("a", "{podSelector: {matchLabels: {a: b}}, ingress: [{}]}"))]);
        assert_eq!(lint.exit(), Exit::Fine, "{text:#?}");
    }

    #[test]
    fn a_place_has_a_line_or_none() {
        assert_eq!(parts("a:b.yaml:7"), (Some("a:b.yaml".to_owned()), Some(7)));
        assert_eq!(parts("a.yaml"), (Some("a.yaml".to_owned()), None));
        assert_eq!(parts(""), (None, None));
    }
}
