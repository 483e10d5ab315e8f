//! Network devices to attach to and to name in test runs, in a network namespace that has no name and ends with
//! its process. Uses nothing of `ip` that busybox's lacks.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::sched::{CloneFlags, unshare};

/// Moves the calling thread, and what it starts from here on, into a new network namespace.
pub fn own_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")
}

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Its index.
    pub index: u32,
    name: String,
    peer: String,
}

impl Veth {
    /// Makes a pair in the calling thread's namespace, both ends down; the kernel names the other end.
    pub fn create(name: &str) -> Result<Self> {
        let before = names()?;
        ip(&["link", "add", name, "type", "veth"])?;
        let index = if_nametoindex(name).with_context(|| format!("finding {name}"))?;
        let mut new = names()?;
        new.retain(|found| found != name && !before.contains(found));
        let peer = new.pop_first().with_context(|| format!("finding the other end of {name}"))?;
        Ok(Self { index, name: name.to_owned(), peer })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The other end's, as the kernel named it.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The index of the other end, which must be in the calling thread's namespace.
    pub fn peer_index(&self) -> Result<u32> {
        if_nametoindex(self.peer.as_str()).with_context(|| format!("finding {}", self.peer))
    }

    /// Keeps the kernel from giving either end an address, and from telling anybody of it. Not with busybox's `ip`.
    pub fn silence(&self) -> Result<()> {
        ip(&["link", "set", &self.peer, "addrgenmode", "none"])?;
        ip(&["link", "set", &self.name, "addrgenmode", "none"])
    }

    /// Takes both ends up.
    pub fn up(&self) -> Result<()> {
        ip(&["link", "set", &self.peer, "up"])?;
        ip(&["link", "set", &self.name, "up"])
    }
}

fn names() -> Result<BTreeSet<String>> {
    let interfaces = if_nameindex().context("listing interfaces")?;
    Ok(interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect())
}

/// Runs `ip`.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("starting `ip`")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(())
}
