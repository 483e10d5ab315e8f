//! `host-firewall`: turns it off on this node, as the last resort, whether an agent runs or not; on again; and says which it is.

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::{Array, Map, MapData};
use clap::ValueEnum;
use nix::unistd::geteuid;
use portcullis_common::event::Direction;
use portcullis_common::wire::{HOST_ON, HostState};
use serde::Serialize;
use thiserror::Error;

use super::Failure;
use crate::attach::cgroup::Root;
use crate::bpf::Pins;
use crate::bpf::wire::Wire;
use crate::firewall::off_file;
use crate::output::{self, Exit, Format};

/// What is to be done.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Act {
    /// Judge none of the node's own sockets from now on, until it is turned on again: an agent that is restarted keeps to it
    Off,
    /// Let the agent judge them again
    On,
    /// Say which it is
    Status,
}

/// Why that could not be done.
#[derive(Debug, Error)]
pub enum ActError {
    /// Only root may.
    #[error("host-firewall: this needs root on the node")]
    Unprivileged,
    /// A file.
    #[error("host-firewall: {path}: {cause}: name the agent's --run-dir")]
    File {
        /// Which.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The programs.
    #[error("host-firewall: {0}: run `portcullis cleanup` to take all programs away")]
    Programs(String),
}

/// Whether the node's own sockets are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Standing {
    /// The programs judge.
    on: bool,
    /// Somebody turned it off.
    turned_off: bool,
}

/// Does it.
pub fn run(act: Act, run_dir: &Path, bpffs: &Path, format: Format) -> Result<Exit, Failure> {
    if !geteuid().is_root() {
        return Err(ActError::Unprivileged.into());
    }
    let pins = Pins::new(bpffs);
    let off = off_file(run_dir);
    let failed = |cause| ActError::File { path: off.display().to_string(), cause };
    match act {
        Act::Off => {
            // First, or an agent turns it on again.
            fs::create_dir_all(run_dir).and_then(|()| fs::write(&off, "")).map_err(failed)?;
            let was_on = turn_off(&pins).map_err(ActError::Programs)?;
            let was = if was_on { "" } else { " (it was not on)" };
            output::print(&format!(
                "the host firewall is off on this node{was}; `portcullis host-firewall on` lets the agent turn it on again\n"
            ))
            .map_err(Failure::Output)?;
        }
        Act::On => {
            match fs::remove_file(&off) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error).into()),
                Ok(()) | Err(_) => {}
            }
            let text = "an agent that runs with --host-firewall turns it on within a second\n";
            output::print(text).map_err(Failure::Output)?;
        }
        Act::Status => {
            let on = state(&pins)
                .map_err(ActError::Programs)?
                .is_some_and(|(_, state)| state.flags & HOST_ON != 0);
            let turned_off = fs::symlink_metadata(&off).is_ok();
            let standing = Standing { on, turned_off };
            let text = match (on, turned_off) {
                (true, _) => "on\n",
                (false, true) => "turned off on this node\n",
                (false, false) => "off\n",
            };
            let text = output::render(&standing, format, || text.to_owned()).map_err(Failure::Output)?;
            output::print(&text).map_err(Failure::Output)?;
        }
    }
    Ok(Exit::Fine)
}

type StateMap = Array<MapData, Wire<HostState>>;

/// What the programs are told; none where none are there.
fn state(pins: &Pins) -> Result<Option<(StateMap, HostState)>, String> {
    let path = pins.maps().join("host_state");
    if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let open = || -> Result<_, aya::maps::MapError> {
        let map: StateMap = Map::from_map_data(MapData::from_pin(&path)?)?.try_into()?;
        let state = map.get(&0, 0)?.0;
        Ok((map, state))
    };
    open().map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

/// Tells the programs to let everything pass, and takes the one away that only the host firewall needs.
fn turn_off(pins: &Pins) -> Result<bool, String> {
    let mut was_on = false;
    if let Some((mut map, found)) = state(pins)? {
        was_on = found.flags & HOST_ON != 0;
        map.set(0, Wire(HostState::default()), 0).map_err(|error| format!("writing host_state: {error}"))?;
    }
    let root = Root::new(Path::new("/"), &pins.links());
    root.remove(Direction::Egress).map_err(|error| error.to_string())?;
    Ok(was_on)
}
