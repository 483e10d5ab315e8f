//! Puts the plugin's binary and our configuration where the container runtime looks, and takes them away. Files are
//! written beside their place and renamed: a runtime never sees half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use thiserror::Error;

use super::PLUGIN;
use super::conf::WhenUnavailable;
use super::conflist::{Settings, Shape, Unusable, chained};

/// Our configuration. Runtimes take the first file by name.
pub const CONFLIST: &str = "00-portcullis.conflist";
/// What a file is called before it is in its place: by its end runtimes pass over it.
const BESIDE: &str = ".portcullis.new";

/// What the plugin is told.
#[derive(Clone, Debug, Args)]
pub struct SettingsArgs {
    /// How long a pod may wait for its policies before its start fails and is tried again, in seconds
    #[arg(long = "cni-timeout", value_name = "SECONDS", env = "PORTCULLIS_CNI_TIMEOUT", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=120))]
    pub timeout: u64,
    /// What happens to a pod that starts while no agent is there
    #[arg(long = "cni-when-unavailable", env = "PORTCULLIS_CNI_WHEN_UNAVAILABLE", default_value = "deny")]
    pub when_unavailable: WhenUnavailable,
}

impl SettingsArgs {
    /// With the agent's run directory.
    #[must_use]
    pub fn settings(&self, run_dir: &Path) -> Settings {
        Settings {
            run_dir: run_dir.to_owned(),
            timeout: Duration::from_secs(self.timeout),
            when_unavailable: self.when_unavailable,
        }
    }
}

/// What could not be done, with the file.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The system refused.
    #[error("{operation} {}: {cause}: {remedy}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        cause: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The primary's configuration cannot be followed.
    #[error("{}: {why}; ours stays as it was", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: Unusable,
    },
}

const CONF_REMEDY: &str = "name the runtime's configuration directory, mounted and writable, with --conf-dir (agent: --cni-conf-dir)";
const BIN_REMEDY: &str = "name the runtime's directory of plugins, mounted and writable, with --bin-dir";
const PLUGIN_REMEDY: &str = "name the plugin's binary with --plugin; it is built beside portcullis";

/// What our configuration is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Made from this file.
    Primary {
        /// The primary's file name.
        name: String,
        /// A file that sorts before ours: runtimes take that one.
        earlier: Option<String>,
    },
    /// This file chains our plugin itself: ours is not needed.
    ByHand(String),
    /// There is no other configuration; ours stays for now.
    Alone,
    /// There is no other configuration: ours went too.
    Nobody,
}

/// What becomes of ours where there is no other configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// The primary's may be back in a moment.
    Stay,
    /// It goes.
    Go,
}

/// Copies the plugin's binary into the runtime's directory.
pub fn install_binary(plugin: &Path, bin_dir: &Path) -> Result<PathBuf, InstallError> {
    let bytes = fs::read(plugin).map_err(failed("read", plugin, PLUGIN_REMEDY))?;
    let path = bin_dir.join(PLUGIN);
    put(&path, &bytes, 0o755).map_err(failed("write", &path, BIN_REMEDY))?;
    Ok(path)
}

/// Brings our configuration to what the primary's says.
pub fn sync(conf_dir: &Path, settings: &Settings, without: Without) -> Result<Followed, InstallError> {
    let names = names(conf_dir).map_err(failed("list", conf_dir, CONF_REMEDY))?;
    let path = conf_dir.join(CONFLIST);
    let Some(name) = names.iter().find(|name| *name != CONFLIST) else {
        if without == Without::Stay && !names.is_empty() {
            return Ok(Followed::Alone);
        }
        take(&path).map_err(failed("remove", &path, CONF_REMEDY))?;
        return Ok(Followed::Nobody);
    };
    let primary = conf_dir.join(name);
    let text = match fs::read_to_string(&primary) {
        Ok(text) => text,
        // It went between the two looks.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return sync_again(conf_dir, settings, without);
        }
        Err(error) => return Err(failed("read", &primary, "mend the primary plugin's configuration")(error)),
    };
    let shape = if is_list(name) { Shape::List } else { Shape::Single };
    let unusable = |why| InstallError::Unusable { path: primary.clone(), why };
    let Some(ours) = chained(&text, shape, settings).map_err(unusable)? else {
        take(&path).map_err(failed("remove", &path, CONF_REMEDY))?;
        return Ok(Followed::ByHand(name.clone()));
    };
    if fs::read_to_string(&path).ok().as_ref() != Some(&ours) {
        put(&path, ours.as_bytes(), 0o600).map_err(failed("write", &path, CONF_REMEDY))?;
    }
    let earlier = (name.as_str() < CONFLIST).then(|| name.clone());
    Ok(Followed::Primary { name: name.clone(), earlier })
}

/// A file that is listed and not there, twice, is a link that leads nowhere.
fn sync_again(conf_dir: &Path, settings: &Settings, without: Without) -> Result<Followed, InstallError> {
    let names = names(conf_dir).map_err(failed("list", conf_dir, CONF_REMEDY))?;
    let first = names.iter().find(|name| *name != CONFLIST).map(|name| conf_dir.join(name));
    match first {
        Some(path) if !path.exists() => {
            let gone = io::Error::from(io::ErrorKind::NotFound);
            Err(failed("read", &path, "mend the primary plugin's configuration")(gone))
        }
        Some(_) | None => sync(conf_dir, settings, without),
    }
}

/// Takes our configuration and the plugin's binary away; returns what was taken. The configuration goes first: the
/// runtime must not look for a binary that is gone.
pub fn remove(bin_dir: &Path, conf_dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut taken = Vec::new();
    for (path, remedy) in [(conf_dir.join(CONFLIST), CONF_REMEDY), (bin_dir.join(PLUGIN), BIN_REMEDY)] {
        if take(&path).map_err(failed("remove", &path, remedy))? {
            taken.push(path);
        }
    }
    Ok(taken)
}

/// The plugin's binary beside this one.
pub fn beside() -> Result<PathBuf, InstallError> {
    let own = std::env::current_exe().map_err(failed("find", Path::new("/proc/self/exe"), PLUGIN_REMEDY))?;
    Ok(own.with_file_name(PLUGIN))
}

fn failed(
    operation: &'static str,
    path: &Path,
    remedy: &'static str,
) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |cause| InstallError::File { operation, path, cause, remedy }
}

/// The configurations that a runtime would look at, in its order: by the bytes of their names.
fn names(conf_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(conf_dir)? {
        // A name that is no text is nobody's configuration.
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let is_conf = ["conf", "conflist", "json"]
            .iter()
            .any(|end| name.rsplit_once('.').is_some_and(|(_, found)| found == *end));
        if is_conf && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_list(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| end == "conflist")
}

/// Writes a file beside its place and renames it.
fn put(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}{BESIDE}"));
    take(&beside)?;
    let write = |beside: &Path| {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(beside, path)
    };
    write(&beside).inspect_err(|_| {
        // The error that is told is the first one.
        let _ = fs::remove_file(&beside);
    })
}

/// Removes a file; false where there was none.
fn take(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
