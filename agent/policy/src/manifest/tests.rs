//! Tests of whole directories. Given files, when they are loaded, then the cluster holds what they mean.

mod addresses;
mod closing;
mod collecting;
mod seeds;
mod text;
mod workloads;

use super::{Loaded, Options, SourceFile, load_sources};
use crate::model::{Pod, Problem, Severity};

fn load_files(files: &[(&str, &str)]) -> Loaded {
    let files: Vec<_> =
        files.iter().map(|(path, text)| SourceFile { path, content: text.as_bytes() }).collect();
    load_sources(&files, &Options::default())
}

fn load_yaml(text: &str) -> Loaded {
    load_files(&[("f.yaml", text)])
}

fn pod_names(loaded: &Loaded) -> Vec<String> {
    loaded.cluster.pods.keys().map(ToString::to_string).collect()
}

fn addresses_of(pod: &Pod) -> Vec<String> {
    pod.addresses.iter().map(ToString::to_string).collect()
}

fn assert_problem<'a>(loaded: &'a Loaded, severity: Severity, object: &str, words: &str) -> &'a Problem {
    let found = loaded
        .problems
        .iter()
        .find(|p| p.severity == severity && p.object == object && p.to_string().contains(words));
    found.unwrap_or_else(|| panic!("no {severity:?} of {object} with {words:?} in {:#?}", loaded.problems))
}

fn assert_fine(loaded: &Loaded) {
    assert!(loaded.problems.is_empty(), "unexpected {:#?}", loaded.problems);
}
