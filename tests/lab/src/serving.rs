//! Which names serve which addresses: the same whether a thread of the lab's owner serves or a process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use portcullis_policy::model::Protocol;

use crate::netns::Netns;
use crate::state::{self, PodState, ProcessId, State};
use crate::traffic::Server;

/// What the serving process says once it serves.
const SERVING: &str = "serving";

/// The name that the node serves under.
pub(crate) const NODE: &str = "node";

/// The name that the outside serves under.
pub(crate) const OUTSIDE: &str = "outside";

/// The name that a pod serves under.
pub(crate) fn name_of(pod: &PodState) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// Addresses of the node that are served.
pub(crate) fn node_addresses(state: &State) -> BTreeSet<IpAddr> {
    let link = [state.link.node4.into(), state.link.node6.into()];
    state.node_addresses.iter().copied().chain(link).collect()
}

/// Addresses of the outside that are served.
pub(crate) fn outside_addresses(state: &State) -> BTreeSet<IpAddr> {
    let link = [state.link.outside4.into(), state.link.outside6.into()];
    state.outside.iter().copied().chain(link).collect()
}

/// The ports of a state.
pub(crate) fn ports(state: &State) -> BTreeSet<(Protocol, u16)> {
    state.ports.iter().filter_map(|(name, port)| Some((Protocol::from_name(name)?, *port))).collect()
}

/// Serves ports everywhere in a lab.
pub(crate) fn serve_all(server: &Server, state: &State, ports: &BTreeSet<(Protocol, u16)>) -> Result<()> {
    let open = |role: &str| Netns::open(&state::netns_name(&state.id, role));
    server.serve(&open("node")?, NODE, &node_addresses(state), ports)?;
    server.serve(&open("out")?, OUTSIDE, &outside_addresses(state), ports)?;
    for pod in &state.pods {
        server.serve(&Netns::open(&pod.netns)?, &name_of(pod), &pod.addresses, ports)?;
    }
    Ok(())
}

/// What `portcullis-lab serve` does: serves a lab's namespaces until it is ended.
pub fn run(id: &str) -> Result<()> {
    let Some(state) = State::read(id)? else { bail!("there is no lab `{id}`") };
    let server = Server::start()?;
    serve_all(&server, &state, &ports(&state))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{SERVING}").and_then(|()| stdout.flush()).context("saying that it serves")?;
    loop {
        thread::park();
    }
}

/// Starts `BINARY serve` for a lab whose state is written, and waits until it serves.
pub(crate) fn start(binary: &Path, id: &str) -> Result<ProcessId> {
    let log = File::create(state::dir(id).join("servers.log")).context("creating the servers' log")?;
    let mut child = Command::new(binary)
        .args(["serve", "--id", id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))?;
    let mut line = String::new();
    let said = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
    if matches!(said, Some(Ok(_))) && line.trim_end() == SERVING {
        return ProcessId::of(child.id().cast_signed());
    }
    drop(child.kill());
    drop(child.wait());
    let log = std::fs::read_to_string(state::dir(id).join("servers.log")).unwrap_or_default();
    bail!("the lab's servers did not start: {}", log.trim_end())
}
