//! A directory of manifests as a source: remembers what each file said last, on disk too, so that neither a
//! broken file nor a restart beside one opens what the file had closed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use portcullis_policy::convert::printable;
use portcullis_policy::manifest::{self, Loaded, ManifestObject, Options, ParsedFile};
use portcullis_policy::model::{Problem, Severity};
use serde_json::{Value, json};

use super::read::{ReadError, read_directory};

/// Reads one directory, again and again.
#[derive(Debug)]
pub struct DirSource {
    dir: PathBuf,
    memory: PathBuf,
    options: Options,
    last: BTreeMap<String, ParsedFile>,
    never_read: Vec<String>,
}

impl DirSource {
    /// A source that keeps what files said last in `memory`.
    #[must_use]
    pub fn new(dir: PathBuf, memory: PathBuf, pod_cidrs: Vec<IpNet>) -> Self {
        let last = recall(&memory);
        Self { dir, memory, options: Options { pod_cidrs }, last, never_read: Vec::new() }
    }

    /// Reads the directory. One that cannot be listed is an error, and whatever was read last stays.
    pub fn read(&mut self) -> Result<Loaded, ReadError> {
        let reading = read_directory(&self.dir)?;
        let mut files: BTreeMap<String, ParsedFile> =
            reading.files.into_iter().map(|file| (file.path.clone(), file)).collect();
        for path in &reading.unreadable {
            if let Some(kept) = self.last.get(path) {
                files.insert(path.clone(), kept.clone());
            }
        }
        let mut loaded = self.load(&mut files);
        let missing = reading.unreadable.iter().filter(|path| !files.contains_key(*path));
        self.never_read = missing.chain(&loaded.incomplete_files).cloned().collect();
        loaded.problems.extend(reading.problems);
        loaded.problems.extend(self.never_read.iter().map(|path| never_read(path)));
        loaded.unreadable_files.extend(reading.unreadable);
        if files != self.last {
            self.last = files;
            if let Err(error) = remember(&self.memory, &self.last) {
                tracing::warn!(
                    "{}: {error}: a restart beside a broken file will not know what it said",
                    self.memory.display()
                );
            }
        }
        Ok(loaded)
    }

    /// Files of which no version could be read whole: nobody knows which pods their policies would isolate. A node
    /// where there is one is not ready.
    #[must_use]
    pub fn never_read(&self) -> &[String] {
        &self.never_read
    }

    /// Loads what the files say. One with an object that is nobody's (its namespace or kind cannot be read) is
    /// replaced by what it said last, for that object may have been a policy; what is wrong with it stays told.
    fn load(&self, files: &mut BTreeMap<String, ParsedFile>) -> Loaded {
        let load = |files: &BTreeMap<String, ParsedFile>| {
            let in_order: Vec<ParsedFile> = files.values().cloned().collect();
            manifest::load(&in_order, &self.options)
        };
        let written = load(files);
        let incomplete = written.incomplete_files.iter().filter_map(|path| self.last.get(path));
        let kept: Vec<ParsedFile> =
            incomplete.filter(|last| files.get(&last.path) != Some(*last)).cloned().collect();
        if kept.is_empty() {
            return written;
        }
        files.extend(kept.into_iter().map(|file| (file.path.clone(), file)));
        let mut loaded = load(files);
        let mut problems = written.problems;
        let more: Vec<Problem> =
            loaded.problems.into_iter().filter(|problem| !problems.contains(problem)).collect();
        problems.extend(more);
        loaded.problems = problems;
        loaded
    }

    /// Something that changes when the directory does: paths, sizes and times. `None` if it cannot be listed.
    #[must_use]
    pub fn signature(&self) -> Option<Signature> {
        let mut signature = Signature::default();
        collect(&self.dir, 0, &mut signature).ok()?;
        Some(signature)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// How deep directories are looked into for a signature.
const MAX_DEPTH: u32 = 32;
/// How many directories are: links can lead in circles, and meet themselves often on the way down.
const MAX_DIRS: usize = 10_000;

/// What a directory looks like from outside: changes with its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    files: Vec<(PathBuf, u64, Option<std::time::SystemTime>)>,
    dirs: usize,
}

fn collect(dir: &Path, depth: u32, seen: &mut Signature) -> std::io::Result<()> {
    seen.dirs += 1;
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            if depth < MAX_DEPTH && seen.dirs < MAX_DIRS {
                collect(&path, depth + 1, seen)?;
            }
        } else {
            seen.files.push((path, metadata.len(), metadata.modified().ok()));
        }
    }
    Ok(())
}

fn never_read(path: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        object: printable(path),
        field: String::new(),
        message: "has not been read whole since this agent first saw it: policies in it do not isolate, and the node \
                  is not ready; mend the file"
            .to_owned(),
        location: None,
    }
}

fn remember(memory: &Path, files: &BTreeMap<String, ParsedFile>) -> std::io::Result<()> {
    let text: Vec<Value> = files
        .values()
        .map(|file| {
            let objects: Vec<Value> =
                file.objects.iter().map(|o| json!({"line": o.line, "value": o.value})).collect();
            json!({"path": file.path, "objects": objects})
        })
        .collect();
    let beside = memory.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(Value::Array(text).to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, memory)
}

fn recall(memory: &Path) -> BTreeMap<String, ParsedFile> {
    let lost = |error: &dyn std::fmt::Display| {
        tracing::warn!(
            "{}: {error}: what files that cannot be read said last is forgotten; mend those files",
            memory.display()
        );
    };
    let text = match fs::read(memory) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                lost(&error);
            }
            return BTreeMap::new();
        }
    };
    let files: Vec<Value> = serde_json::from_slice(&text).unwrap_or_else(|error| {
        lost(&error);
        Vec::new()
    });
    files
        .iter()
        .filter_map(|file| {
            let path = file.get("path")?.as_str()?.to_owned();
            let objects = file
                .get("objects")?
                .as_array()?
                .iter()
                .filter_map(|object| {
                    let line = object.get("line").and_then(Value::as_u64).unwrap_or(1);
                    let value = object.get("value")?.clone();
                    Some(ManifestObject { line, value })
                })
                .collect();
            Some((path.clone(), ParsedFile { path, objects }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use portcullis_policy::model::ObjectKey;

    use super::*;
    use crate::scratch::Scratch;

    const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: x}\nspec: {podSelector: {}}\n";

    fn source(base: &Scratch) -> DirSource {
        DirSource::new(base.path().join("source"), base.path().join("memory.json"), Vec::new())
    }

    fn tells(loaded: &Loaded, words: &str) -> bool {
        loaded.problems.iter().any(|p| p.severity == Severity::Error && p.to_string().contains(words))
    }

    #[test]
    fn a_broken_file_says_what_it_said_last_also_after_a_restart() {
        let base = Scratch::new();
        base.write("source/a.yaml", POLICY);
        let mut first = source(&base);
        assert_eq!(first.read().unwrap().cluster.policies.len(), 1);
        base.write("source/a.yaml", "{{{");
        assert_eq!(first.read().unwrap().cluster.policies.len(), 1);
        let mut second = source(&base);
        let again = second.read().unwrap();
        assert_eq!(again.cluster.policies.len(), 1);
        assert_eq!(again.unreadable_files, ["a.yaml"]);
        assert!(second.never_read().is_empty());

        fs::remove_file(base.path().join("source/a.yaml")).unwrap();
        assert_eq!(source(&base).read().unwrap().cluster.policies.len(), 0, "a removed file says nothing");
    }

    #[test]
    fn a_policy_without_readable_namespace_or_kind_leaves_its_file_as_it_was() {
        for (written, broken) in
            [("namespace: x", "namespace: [x]"), ("kind: NetworkPolicy", "kind: networkpolicy")]
        {
            let base = Scratch::new();
            base.write("source/a.yaml", POLICY);
            let mut agent = source(&base);
            agent.read().unwrap();
            base.write("source/a.yaml", &POLICY.replace(written, broken));
            for _ in 0..2 {
                let loaded = agent.read().unwrap();
                assert!(loaded.cluster.policies.contains_key(&ObjectKey::new("x", "a")), "{broken}");
                assert!(tells(&loaded, "a.yaml:1"), "{:#?}", loaded.problems);
                assert!(agent.never_read().is_empty());
            }
            base.write("source/a.yaml", POLICY);
            assert!(agent.read().unwrap().problems.is_empty(), "mended");
        }
    }

    #[test]
    fn a_file_that_was_never_read_whole_is_told_until_it_is() {
        for broken in ["{{{", &POLICY.replace("namespace: x", "namespace: [x]")] {
            let base = Scratch::new();
            base.write("source/a.yaml", broken);
            base.write("source/b.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: x}}");
            // A restart does not make it read.
            for mut agent in [source(&base), source(&base)] {
                for _ in 0..2 {
                    let loaded = agent.read().unwrap();
                    assert!(loaded.cluster.namespaces.contains_key("x"), "the rest is used");
                    assert!(tells(&loaded, "has not been read whole"), "{:#?}", loaded.problems);
                    assert_eq!(agent.never_read(), ["a.yaml"]);
                }
            }
            base.write("source/a.yaml", POLICY);
            let mut agent = source(&base);
            assert!(agent.read().unwrap().problems.is_empty());
            assert!(agent.never_read().is_empty());
        }
    }
}
