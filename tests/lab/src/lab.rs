//! A lab's life: up, pods that come and go, the agent, down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use portcullis_policy::model::{Cluster, ObjectKey, Protocol};

use crate::agent::{self, Agent, AgentSpec, Paths};
use crate::netns::Netns;
use crate::plan::{Plan, Wishes};
use crate::serving;
use crate::shape::Cni;
use crate::state::{self, PodState, ProcessId, State};
use crate::topology;
use crate::traffic::Server;
use crate::unfit;

/// Who serves the pods' ports.
#[derive(Clone, Debug, Default)]
pub enum Servers {
    /// A thread of this process. Pods can come and go, and streams are counted.
    #[default]
    Thread,
    /// A process of its own, which outlives this one; the `portcullis-lab` binary.
    Process(PathBuf),
}

/// How a lab is made.
#[derive(Clone, Debug, Default)]
pub struct LabOptions {
    /// Its id; one that no other lab has, where none is given.
    pub id: Option<String>,
    /// The node that it is: `--node-name` of the agent. The manifests' first, else `node`, where none is given.
    pub node_name: Option<String>,
    /// Addresses that the outside shall hold, beyond those that every lab has and one in each ipBlock.
    pub outside: Vec<IpAddr>,
    /// Ports that are served beyond those that pods declare.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Who serves.
    pub servers: Servers,
    /// How pods hang on the node.
    pub cni: Cni,
}

/// Whether dropping a lab takes it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    Owned,
    Left,
}

/// A pod's namespace and what is known of it.
#[derive(Debug)]
pub(crate) struct PodHandle {
    pub(crate) netns: Netns,
    pub(crate) state: PodState,
}

/// A lab that is up. Dropping it takes it down, unless it was [left](Lab::leave) or [found](Lab::open).
#[derive(Debug)]
pub struct Lab {
    pub(crate) state: State,
    pub(crate) node: Netns,
    pub(crate) outside: Netns,
    pub(crate) pods: BTreeMap<ObjectKey, PodHandle>,
    pub(crate) server: Option<Arc<Server>>,
    agent: Option<Agent>,
    pub(crate) wishes: Wishes,
    pub(crate) next_number: u32,
    /// Subnets that were routed to the node's bridge.
    pub(crate) subnets: BTreeSet<IpNet>,
    /// Addresses in them that are elsewhere, and that the node answers for.
    pub(crate) proxied: BTreeSet<IpAddr>,
    ownership: Ownership,
    run_dir: PathBuf,
    bpffs: PathBuf,
    log: PathBuf,
}

impl Lab {
    /// Makes a lab for a cluster. When it returns, every pod serves and is reachable; there is no agent yet.
    /// Labs whose owners died are taken away first.
    pub fn up(cluster: &Cluster, options: LabOptions) -> Result<Self> {
        unfit::check()?;
        state::sweep()?;
        let LabOptions { id, node_name, outside, ports, servers, cni } = options;
        let id = id.unwrap_or_else(unique_id);
        state::check_id(&id)?;
        let wishes = Wishes { node_name, outside, ports };
        let plan = Plan::new(cluster, &wishes, None)?;
        state::create_dir(&id)?;
        let guard = Guard(Some(id.clone()));
        let mut lab = Self::build(&id, cni, &plan, wishes)?;
        match servers {
            Servers::Thread => {
                let server = Server::start()?;
                serving::serve_all(&server, &lab.state, &plan.ports)?;
                lab.server = Some(Arc::new(server));
            }
            Servers::Process(binary) => {
                lab.state.servers = Some(serving::start(&binary, &id)?);
                lab.state.write()?;
            }
        }
        guard.disarm();
        Ok(lab)
    }

    /// The lab with this id, made by another process; dropping it changes nothing.
    pub fn open(id: &str) -> Result<Self> {
        unfit::check()?;
        state::check_id(id)?;
        let state = State::read(id)?.ok_or_else(|| {
            anyhow!("there is no lab `{id}`: `portcullis-lab up --source DIR --id {id}` first")
        })?;
        let node = Netns::open(&state::netns_name(id, "node"))?;
        let outside = Netns::open(&state::netns_name(id, "out"))?;
        let mut lab = Self::new(state, node, outside, Wishes::default());
        lab.ownership = Ownership::Left;
        for pod in lab.state.pods.clone() {
            let key = ObjectKey::new(pod.namespace.clone(), pod.name.clone());
            lab.pods.insert(key, PodHandle { netns: Netns::open(&pod.netns)?, state: pod });
        }
        lab.agent = lab.state.agent.filter(|p| p.is_running()).map(Agent::adopt);
        Ok(lab)
    }

    fn new(state: State, node: Netns, outside: Netns, wishes: Wishes) -> Self {
        let dir = state::dir(&state.id);
        Self {
            state,
            node,
            outside,
            pods: BTreeMap::new(),
            server: None,
            agent: None,
            wishes,
            next_number: 0,
            subnets: BTreeSet::new(),
            proxied: BTreeSet::new(),
            ownership: Ownership::Owned,
            run_dir: dir.join("run"),
            bpffs: dir.join("bpf"),
            log: dir.join("agent.log"),
        }
    }

    fn build(id: &str, cni: Cni, plan: &Plan, wishes: Wishes) -> Result<Self> {
        let state = State {
            id: id.to_owned(),
            owner: Some(ProcessId::of(std::process::id().cast_signed())?),
            node_name: plan.node_name.clone(),
            cni,
            link: plan.link,
            node_addresses: plan.node_addresses.clone(),
            outside: plan.outside.clone(),
            pods: Vec::new(),
            ports: plan.ports.iter().map(|(protocol, port)| (protocol.name().to_owned(), *port)).collect(),
            servers: None,
            agent: None,
        };
        state.write()?;
        let bpffs = state::dir(id).join("bpf");
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("mounting bpffs on {}", bpffs.display()))?;
        let (node, outside) =
            topology::node_and_outside(id, cni, &plan.link, &plan.node_addresses, &plan.outside)?;
        let mut lab = Self::new(state, node, outside, wishes);
        lab.make_pods(plan.pods.iter().map(|(key, addresses)| (key.clone(), addresses.clone())).collect())?;
        Ok(lab)
    }

    /// Lets the lab stand when this process ends. Its servers must be a process of their own.
    pub fn leave(mut self) -> Result<()> {
        ensure!(self.server.is_none(), "a lab whose servers are a thread of this process cannot be left");
        self.state.owner = None;
        self.state.write()?;
        self.ownership = Ownership::Left;
        Ok(())
    }

    /// Takes the lab down, whoever made it, and returns what was taken away.
    pub fn down(mut self) -> Result<Vec<String>> {
        self.ownership = Ownership::Left;
        let ended = self.agent.as_mut().map_or(Ok(()), Agent::end);
        self.agent = None;
        self.server = None;
        let taken = state::take_down(&self.state.id)?;
        ended.map(|()| taken)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.state.id
    }

    /// The node's namespace: run something there by [`Netns::run`], verbs of the agent say.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// The outside's namespace.
    #[must_use]
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// A pod's namespace; none for a pod that has none.
    #[must_use]
    pub fn pod(&self, key: &ObjectKey) -> Option<&Netns> {
        self.pods.get(key).map(|pod| &pod.netns)
    }

    /// Namespace, device and addresses of a pod; none for a pod that has no namespace.
    #[must_use]
    pub fn pod_state(&self, key: &ObjectKey) -> Option<&PodState> {
        self.pods.get(key).map(|pod| &pod.state)
    }

    /// What is known of the lab: addresses of node and outside, ports.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// `--run-dir` of its agent.
    #[must_use]
    pub fn run_dir(&self) -> &std::path::Path {
        &self.run_dir
    }

    /// `--bpffs` of its agent.
    #[must_use]
    pub fn bpffs(&self) -> &std::path::Path {
        &self.bpffs
    }

    /// What its agents wrote to stdout and stderr.
    #[must_use]
    pub fn agent_log(&self) -> &std::path::Path {
        &self.log
    }

    /// Starts an agent in the node's namespace; [`Lab::wait_applied`] tells when it enforces.
    pub fn start_agent(&mut self, spec: &AgentSpec) -> Result<()> {
        if let Some(agent) = &self.agent {
            ensure!(!agent.process().is_running(), "the lab has an agent already: end it first");
        }
        let paths = Paths { run_dir: &self.run_dir, bpffs: &self.bpffs, log: &self.log };
        let agent = Agent::start(spec, &self.node, &self.state.node_name, paths)?;
        self.state.agent = Some(agent.process());
        self.agent = Some(agent);
        self.state.write()
    }

    /// The agent's pid, if one was started and runs.
    #[must_use]
    pub fn agent_pid(&self) -> Option<i32> {
        self.agent.as_ref().map(Agent::process).filter(|p| p.is_running()).map(|p| p.pid)
    }

    /// Sends the agent a signal, without waiting.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.agent.as_ref().context("the lab has no agent")?.signal(signal)
    }

    /// Ends the agent by a signal and waits until it has ended, 10 s at most. Its pins stay. No status where
    /// another process started it.
    pub fn kill(&mut self, signal: Signal) -> Result<Option<ExitStatus>> {
        let agent = self.agent.as_mut().context("the lab has no agent")?;
        agent.signal(signal)?;
        let status = agent.wait_end(Duration::from_secs(10))?;
        self.agent = None;
        self.state.agent = None;
        self.state.write()?;
        Ok(status)
    }

    /// The number of the change that the agent has applied last; none before it enforces.
    #[must_use]
    pub fn applied(&self) -> Option<u64> {
        agent::applied(&self.run_dir)
    }

    /// Waits until the agent has applied change `at_least` or a later one, and returns which. An agent that
    /// ends, or takes longer, is an error with the end of its log.
    pub fn wait_applied(&mut self, at_least: u64, patience: Duration) -> Result<u64> {
        let paths = Paths { run_dir: &self.run_dir, bpffs: &self.bpffs, log: &self.log };
        let agent = self.agent.as_mut().context("the lab has no agent")?;
        agent::wait_applied(agent, paths, at_least, patience)
    }

    pub(crate) fn own_server(&self) -> Result<Arc<Server>> {
        self.server.clone().context("this needs a lab whose servers are a thread of this process")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.ownership == Ownership::Left {
            return;
        }
        let ended = self.agent.as_mut().map_or(Ok(()), Agent::end);
        self.server = None;
        for outcome in [ended, state::take_down(&self.state.id).map(drop)] {
            if let Err(error) = outcome {
                eprintln!("taking lab `{}` down: {error:#}", self.state.id);
            }
        }
    }
}

/// Takes a half-made lab down, unless disarmed.
struct Guard(Option<String>);

impl Guard {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(id) = &self.0
            && let Err(error) = state::take_down(id)
        {
            eprintln!("taking lab `{id}` down: {error:#}");
        }
    }
}

fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
