//! Named network namespaces, as `ip netns` keeps them: a file below `/run/netns` with the namespace mounted
//! on it. Owns creating, entering and deleting; must not know what a namespace is for.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces live.
const DIR: &str = "/run/netns";

/// No path and no data, for mount calls that take none.
const NONE: Option<&str> = None;

/// A network namespace that has a name; kept open, so that entering it needs no look-up.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes a namespace, its loopback still down.
    pub fn create(name: &str) -> Result<Self> {
        prepare_dir()?;
        let path = path_of(name);
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| {
            if error.kind() == ErrorKind::AlreadyExists {
                return anyhow!("network namespace {name} exists already: take its lab down");
            }
            anyhow!(error).context(format!("creating {}", path.display()))
        })?;
        let mounted = on_thread(|| -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            mount(Some("/proc/thread-self/ns/net"), &path, NONE, MsFlags::MS_BIND, NONE)
                .with_context(|| format!("mounting a network namespace on {}", path.display()))
        })?;
        if let Err(error) = mounted {
            // The error that is reported matters more than the empty file left by a failing removal.
            drop(fs::remove_file(&path));
            return Err(error);
        }
        Self::open(name)
    }

    /// Opens a namespace that exists.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let handle = File::open(&path).with_context(|| format!("opening network namespace {name}"))?;
        Ok(Self { name: name.to_owned(), handle })
    }

    /// Opens that of a process, under whatever name.
    pub fn of_process(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let handle = File::open(&path).with_context(|| format!("opening {path}"))?;
        Ok(Self { name: format!("of process {pid}"), handle })
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it: for `nsenter --net=PATH`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))
    }

    /// Runs something on a thread inside the namespace. Sockets opened and processes started there stay
    /// there; mounts are those of the caller, so that bpffs and `/sys` are as outside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| self.enter().map(|()| work()))?
    }
}

/// Deletes a namespace by name; fine if there is none.
pub fn delete(name: &str) -> Result<()> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {}", path.display())),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Names of all named namespaces, sorted.
pub fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("listing network namespaces"),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context("listing network namespaces")?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Runs something on a thread of its own, because a thread that changed its namespace is of no other use.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().spawn_scoped(scope, work).context("starting a thread")?;
        worker.join().map_err(|_| anyhow!("a thread inside a network namespace panicked"))
    })
}

/// Makes `/run/netns` a shared mount of its own, under the lock and in the way of `ip netns add`: where that
/// came later, it would bind the directory over itself and keep our namespaces alive below.
fn prepare_dir() -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIR).with_context(|| format!("creating {DIR}"))?;
    let dir = File::open(DIR).with_context(|| format!("opening {DIR}"))?;
    let _lock =
        Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| e).context("locking /run/netns")?;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    for _ in 0..2 {
        match mount(Some(""), DIR, Some("none"), shared, NONE) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL) => {
                mount(Some(DIR), DIR, Some("none"), MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
                    .with_context(|| format!("binding {DIR} to itself"))?;
            }
            Err(error) => return Err(error).with_context(|| format!("sharing the mount {DIR}")),
        }
    }
    bail!("{DIR} cannot be made a shared mount")
}
