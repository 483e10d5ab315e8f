//! A directory of manifests as a source: remembers what each file said last, on disk too, so that neither a
//! broken file nor a restart beside one opens what the file had closed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use portcullis_policy::manifest::{self, Loaded, ManifestObject, Options, ParsedFile};
use serde_json::{Value, json};

use super::read::{ReadError, read_directory};

/// Reads one directory, again and again.
#[derive(Debug)]
pub struct DirSource {
    dir: PathBuf,
    memory: PathBuf,
    options: Options,
    last: BTreeMap<String, ParsedFile>,
}

impl DirSource {
    /// A source that keeps what files said last in `memory`.
    #[must_use]
    pub fn new(dir: PathBuf, memory: PathBuf, pod_cidrs: Vec<IpNet>) -> Self {
        let last = recall(&memory);
        Self { dir, memory, options: Options { pod_cidrs }, last }
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
        let in_order: Vec<ParsedFile> = files.values().cloned().collect();
        let mut loaded = manifest::load(&in_order, &self.options);
        loaded.problems.extend(reading.problems);
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
    let Ok(text) = fs::read(memory) else {
        return BTreeMap::new();
    };
    let files: Vec<Value> = serde_json::from_slice(&text).unwrap_or_default();
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
    use super::*;

    #[test]
    fn a_broken_file_says_what_it_said_last_also_after_a_restart() {
        let base = std::env::temp_dir().join(format!("portcullis-dir-{}", std::process::id()));
        let (dir, memory) = (base.join("source"), base.join("memory.json"));
        fs::create_dir_all(&dir).unwrap();
        let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: x}\nspec: {podSelector: {}}\n";
        fs::write(dir.join("a.yaml"), policy).unwrap();
        let source = || DirSource::new(dir.clone(), memory.clone(), Vec::new());

        let mut first = source();
        assert_eq!(first.read().unwrap().cluster.policies.len(), 1);
        fs::write(dir.join("a.yaml"), "{{{").unwrap();
        assert_eq!(first.read().unwrap().cluster.policies.len(), 1);
        let again = source().read().unwrap();
        assert_eq!(again.cluster.policies.len(), 1);
        assert_eq!(again.unreadable_files, ["a.yaml"]);

        fs::remove_file(dir.join("a.yaml")).unwrap();
        assert_eq!(source().read().unwrap().cluster.policies.len(), 0, "a removed file says nothing");
        fs::remove_dir_all(&base).unwrap();
    }
}
