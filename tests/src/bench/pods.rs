//! Two pods and their node: three network namespaces without names, routed as by ptp and kindnet. They end with
//! whoever holds them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};

use crate::live;

/// The node's address; pods have it as their gateway.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 10);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 11);
/// The client's side of the node, and the server's.
pub(crate) const DEVICES: [&str; 2] = ["pcb-client", "pcb-server"];

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            live::silence()?;
            File::open("/proc/thread-self/ns/net").context("opening a network namespace")
        });
        Ok(Self(made.join().map_err(|_| anyhow!("making a network namespace panicked"))??))
    }

    /// Moves the calling thread there, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// Runs something there, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| self.enter().and_then(|()| work()));
            worker.join().map_err(|_| anyhow!("a thread inside a network namespace panicked"))?
        })
    }
}

/// Both pods, and the node between them.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    pub(crate) server: Namespace,
    /// Of [`DEVICES`].
    pub(crate) indices: [u32; 2],
}

impl Pods {
    pub(crate) fn new() -> Result<Self> {
        let (node, client, server) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        let process = std::process::id();
        let indices = node.run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("making the node a router")?;
            for (device, (pod, address)) in DEVICES.into_iter().zip([(&client, CLIENT), (&server, SERVER)]) {
                let place = format!("/proc/{process}/fd/{}", pod.0.as_raw_fd());
                ip(&format!("link add {device} type veth peer name eth0 netns {place}"))?;
                ip(&format!("addr add {NODE}/32 dev {device}"))?;
                ip(&format!("link set {device} up"))?;
                ip(&format!("route add {address}/32 dev {device}"))?;
            }
            let index = |name| if_nametoindex(name).with_context(|| format!("finding {name}"));
            Ok([index(DEVICES[0])?, index(DEVICES[1])?])
        })?;
        for (pod, address) in [(&client, CLIENT), (&server, SERVER)] {
            pod.run(|| {
                // Each connection has a port of its own for as long as can be.
                fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")
                    .context("widening ports")?;
                for line in [
                    "link set lo up".to_owned(),
                    format!("addr add {address}/32 dev eth0"),
                    "link set eth0 up".to_owned(),
                    format!("route add {NODE}/32 dev eth0"),
                    format!("route add default via {NODE}"),
                ] {
                    ip(&line)?;
                }
                Ok(())
            })?;
        }
        Ok(Self { node, client, server, indices })
    }
}

fn ip(line: &str) -> Result<()> {
    run("ip", &line.split_whitespace().collect::<Vec<_>>())
}

/// Runs a program in the calling thread's namespace.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let line = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().with_context(line)?;
    if !output.status.success() {
        bail!("{}: {}", line(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
