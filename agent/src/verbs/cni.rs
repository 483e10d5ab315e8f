//! `cni`: puts the CNI plugin where the container runtime finds it, and takes it away. The running agent keeps its
//! configuration in step afterwards.

use std::os::unix::net::UnixStream;
use std::path::Path;

use portcullis_policy::convert::printable;

use super::Failure;
use crate::api::socket;
use crate::cni::conflist::Settings;
use crate::cni::follow::told;
use crate::cni::install::{self, InstallError, Without, beside, install_binary, sync};
use crate::output::{self, Exit};

/// Copies the plugin and writes our configuration, if there is one of a primary plugin to be made from.
pub fn install(
    bin_dir: &Path,
    conf_dir: &Path,
    plugin: Option<&Path>,
    settings: &Settings,
) -> Result<Exit, Failure> {
    let plugin = plugin.map_or_else(beside, |plugin| Ok(plugin.to_owned()))?;
    // The binary first: a configuration must not name one that is not there.
    let binary = install_binary(&plugin, bin_dir)?;
    let mut text = format!("installed {}\n", printable(&binary.display().to_string()));
    // What was there before goes on: the agent takes it if nobody comes.
    let followed = sync(conf_dir, settings, Without::Stay);
    if let Ok(followed) = &followed {
        text = text + &printable(&told(conf_dir, followed)) + "\n";
    }
    output::print(&text).map_err(Failure::Output)?;
    match followed {
        // The agent follows it as soon as it is mended; until then no agent would be worse.
        Err(error @ InstallError::Unusable { .. }) => output::error(printable(&error.to_string())),
        Err(error @ InstallError::File { .. }) => return Err(error.into()),
        Ok(_) => {}
    }
    Ok(Exit::Fine)
}

/// Takes both away. Refuses while an agent runs: one that follows the primary's configuration puts ours back.
pub fn remove(bin_dir: &Path, conf_dir: &Path, run_dir: &Path) -> Result<Exit, Failure> {
    let socket = socket(run_dir);
    if UnixStream::connect(&socket).is_ok() {
        return Err(Failure::Followed(socket));
    }
    let taken = install::remove(bin_dir, conf_dir)?;
    let text = if taken.is_empty() {
        "nothing of ours found\n".to_owned()
    } else {
        taken
            .iter()
            .fold(String::new(), |text, path| text + "took " + &printable(&path.display().to_string()) + "\n")
    };
    output::print(&text).map_err(Failure::Output)?;
    Ok(Exit::Fine)
}
