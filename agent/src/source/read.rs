//! Reads a directory of manifests into parsed files. Owns which files count and in what order; what they say
//! is [`portcullis_policy::manifest`]'s. Keeps nothing between calls.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use portcullis_policy::convert::printable;
use portcullis_policy::manifest::{MAX_FILE_BYTES, ParsedFile, SourceFile, parse_file};
use portcullis_policy::model::{Problem, Severity};
use thiserror::Error;

/// How deep directories are followed: links may lead in circles.
const MAX_DEPTH: u32 = 32;

/// Endings of files that count.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// What a directory holds at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Files whose text could be read, in byte order of path.
    pub files: Vec<ParsedFile>,
    /// What is wrong with the others.
    pub problems: Vec<Problem>,
    /// Paths of the others, as [`ParsedFile::path`]: the agent keeps what they said last.
    pub unreadable: Vec<String>,
}

/// The directory, or one below it, could not be listed. Nothing is known of what it holds, so nothing of it
/// may be used.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It is something else.
    #[error("{}: is not a directory: name the directory that holds the manifests", .0.display())]
    NotADirectory(PathBuf),
    /// It could not be listed.
    #[error("{}: the directory cannot be read ({cause}): name one that exists and may be read", path.display())]
    List {
        /// Which one.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Links lead in circles, or someone nests without end.
    #[error("{}: directories are nested more than {MAX_DEPTH} deep: remove the link that leads in a circle", .0.display())]
    TooDeep(PathBuf),
}

/// Reads every `.yaml`, `.yml` and `.json` below a directory, links followed, dot names skipped: of a
/// `ConfigMap` mount the files count, its `..data` does not.
pub fn read_directory(dir: &Path) -> Result<Reading, ReadError> {
    let list = |cause| ReadError::List { path: dir.to_owned(), cause };
    if !fs::metadata(dir).map_err(list)?.is_dir() {
        return Err(ReadError::NotADirectory(dir.to_owned()));
    }
    let mut paths = Vec::new();
    collect(dir, MAX_DEPTH, &mut paths)?;
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut reading = Reading::default();
    for path in &paths {
        let name = path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned();
        let parsed = match content(path) {
            Ok(None) => continue,
            Ok(Some(content)) => parse_file(&SourceFile { path: &name, content: &content }),
            Err(error) => Err(unreadable(&name, &error)),
        };
        match parsed {
            Ok(file) => reading.files.push(file),
            Err(problem) => {
                reading.problems.push(problem);
                reading.unreadable.push(name);
            }
        }
    }
    Ok(reading)
}

fn collect(dir: &Path, depth: u32, paths: &mut Vec<PathBuf>) -> Result<(), ReadError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(ReadError::TooDeep(dir.to_owned()));
    };
    let failed = |cause| ReadError::List { path: dir.to_owned(), cause };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let is_dir = fs::metadata(&path).is_ok_and(|of| of.is_dir());
        let counts = path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known));
        if is_dir {
            collect(&path, depth, paths)?;
        } else if counts {
            paths.push(path);
        }
    }
    Ok(())
}

/// A file's bytes, one more than the limit at most, so that the parser sees that it is too large. `None` if
/// it went away since the directory was listed.
fn content(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let read = || {
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut content = Vec::new();
        File::open(path)?.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut content)?;
        Ok(content)
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        // A link that leads nowhere is still there: somebody means something by it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn unreadable(name: &str, error: &io::Error) -> Problem {
    Problem {
        severity: Severity::Error,
        object: printable(name),
        field: String::new(),
        message: format!("cannot be read ({error}): give read permission, or remove it"),
        location: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::scratch::Scratch;

    fn names(reading: &Reading) -> Vec<&str> {
        reading.files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn files_come_in_byte_order_and_dot_names_are_skipped() {
        let dir = Scratch::new();
        for name in ["b.yaml", "B.yml", "a/z.json", "a.yaml", ".hidden.yaml", ".git/x.yaml", "notes.txt"] {
            dir.write(name, "{}");
        }
        let reading = read_directory(dir.path()).unwrap();
        assert_eq!(names(&reading), ["B.yml", "a.yaml", "a/z.json", "b.yaml"]);
    }

    #[test]
    fn a_configmap_mount_is_read_once() {
        let dir = Scratch::new();
        dir.write("..2026/np.yaml", "kind: Namespace\napiVersion: v1\nmetadata: {name: a}");
        symlink("..2026", dir.path().join("..data")).unwrap();
        symlink("..data/np.yaml", dir.path().join("np.yaml")).unwrap();
        let reading = read_directory(dir.path()).unwrap();
        assert_eq!(names(&reading), ["np.yaml"]);
        assert_eq!(reading.files.first().unwrap().objects.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_the_rest_is_used() {
        let dir = Scratch::new();
        dir.write("bad.yaml", "a: [");
        dir.write("good.yaml", "a: 1");
        symlink("nowhere", dir.path().join("link.yaml")).unwrap();
        let reading = read_directory(dir.path()).unwrap();
        assert_eq!(names(&reading), ["good.yaml"]);
        assert_eq!(reading.unreadable, ["bad.yaml", "link.yaml"]);
        assert_eq!(reading.problems.len(), 2);
    }

    #[test]
    fn a_missing_directory_a_file_and_a_circle_are_errors() {
        let dir = Scratch::new();
        dir.write("file", "");
        assert!(matches!(read_directory(&dir.path().join("no")), Err(ReadError::List { .. })));
        assert!(matches!(read_directory(&dir.path().join("file")), Err(ReadError::NotADirectory(_))));
        symlink(".", dir.path().join("circle")).unwrap();
        assert!(matches!(read_directory(dir.path()), Err(ReadError::TooDeep(_) | ReadError::List { .. })));
    }
}
