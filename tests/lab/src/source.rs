//! Reads a directory of manifests: the lab's own few lines, so that it does not depend on the agent.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use portcullis_policy::manifest::{Loaded, Options, SourceFile, load_sources};

/// How deep directories are followed: links may lead in circles.
const DEPTH: u32 = 32;

/// Reads every `.yaml`, `.yml` and `.json` below a directory, in byte order of path, dot names skipped. Pods
/// without addresses get some from `pod_cidrs`; none given: the default ones.
pub fn read(dir: &Path, pod_cidrs: &[IpNet]) -> Result<Loaded> {
    let mut files = Vec::new();
    collect(dir, DEPTH, &mut files).with_context(|| format!("reading manifests in {}", dir.display()))?;
    files.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    let mut contents = Vec::new();
    for file in &files {
        let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let path = file.strip_prefix(dir).unwrap_or(file);
        contents.push((path.to_string_lossy(), content));
    }
    let sources: Vec<SourceFile<'_>> =
        contents.iter().map(|(path, content)| SourceFile { path, content }).collect();
    Ok(load_sources(&sources, &Options::with(pod_cidrs)))
}

fn collect(dir: &Path, depth: u32, files: &mut Vec<PathBuf>) -> Result<()> {
    ensure!(depth > 0, "directories are nested too deep");
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        let kind = fs::metadata(&path)?;
        let manifest =
            path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
        if kind.is_dir() {
            collect(&path, depth - 1, files)?;
        } else if kind.is_file() && manifest {
            files.push(path);
        }
    }
    Ok(())
}
