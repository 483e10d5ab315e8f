//! `up`: makes a lab and leaves it standing.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use portcullis_lab::{AgentSpec, Cni, Hook, Lab, LabOptions, Servers};
use portcullis_policy::model::{Cluster, Protocol};

use super::{Common, load, parse_port, print};

/// How long the agent may take until it enforces.
const READY: Duration = Duration::from_secs(30);

/// Arguments of `up`.
#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    common: Common,
    /// The agent's binary [default: `portcullis` beside this one]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Start no agent: every pod reaches every other
    #[arg(long, conflicts_with = "agent")]
    no_agent: bool,
    /// Where the agent's programs hang
    #[arg(long, value_enum, default_value_t = HookArg::Auto)]
    hook: HookArg,
    /// How pods hang on the node
    #[arg(long, value_enum, default_value_t = CniArg::Routed)]
    cni: CniArg,
    /// The node that the lab is [default: the manifests' first, else `node`]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// An address that the outside holds, besides 192.0.2.1, `2001:db8::1`, 169.254.169.254 and one in each
    /// ipBlock of the policies (repeatable)
    #[arg(long, value_name = "ADDR")]
    outside: Vec<IpAddr>,
    /// A port that all serve, besides those that pods declare (repeatable)
    #[arg(long, value_name = "PROTO/PORT", value_parser = parse_port)]
    port: Vec<(Protocol, u16)>,
    /// Leave what was made where the agent does not come up, for a look at it; `down` takes it away
    #[arg(long)]
    keep: bool,
    /// Further arguments for the agent
    #[arg(last = true, value_name = "AGENT-ARGS")]
    agent_args: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum HookArg {
    /// What the kernel offers
    Auto,
    /// TCX links
    Tcx,
    /// Filters of a clsact qdisc
    Clsact,
}

#[derive(Clone, Copy, ValueEnum)]
enum CniArg {
    /// A route to each pod's veth device, as of ptp and kindnet
    Routed,
    /// Ports of a bridge, as of flannel and the bridge plugin
    Bridge,
}

/// Makes the lab.
pub(crate) fn run(args: &Up) -> Result<()> {
    let begin = Instant::now();
    let Common { source, id, pod_cidr } = &args.common;
    let loaded = load(source, pod_cidr)?;
    let own = env::current_exe().context("finding this program's own path")?;
    let options = LabOptions {
        id: Some(id.clone()),
        node_name: args.node_name.clone(),
        outside: args.outside.clone(),
        ports: BTreeSet::from_iter(args.port.clone()),
        servers: Servers::Process(own.clone()),
        cni: match args.cni {
            CniArg::Routed => Cni::Routed,
            CniArg::Bridge => Cni::Bridge,
        },
    };
    let mut lab = Lab::up(&loaded.cluster, options)?;
    if !args.no_agent {
        let beside = own.with_file_name("portcullis");
        let mut arguments = args.agent_args.clone();
        arguments.extend(pod_cidr.iter().map(|net| format!("--pod-cidr={net}").into()));
        let spec = AgentSpec {
            binary: args.agent.clone().unwrap_or(beside),
            source: source.clone(),
            hook: match args.hook {
                HookArg::Auto => Hook::Auto,
                HookArg::Tcx => Hook::Tcx,
                HookArg::Clsact => Hook::Clsact,
            },
            arguments,
        };
        let started = lab.start_agent(&spec).and_then(|()| lab.wait_applied(1, READY));
        if let Err(error) = started {
            if args.keep {
                eprintln!("lab `{id}` is left as it is: `portcullis-lab down --id {id}` takes it away");
                lab.leave()?;
            }
            return Err(error);
        }
    }
    let description = describe(&lab, &loaded.cluster, begin.elapsed());
    lab.leave()?;
    print(&description)
}

fn describe(lab: &Lab, cluster: &Cluster, took: Duration) -> String {
    let state = lab.state();
    let list = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let link = state.link;
    let outside = list(&mut state.outside.iter());
    let mut lines = vec![
        format!("lab `{}` ({}) is up after {} ms", state.id, state.cni, took.as_millis()),
        format!("  node     {}  {} {}", lab.node().name(), link.node4, link.node6),
        format!("  outside  {}  {} {} {outside}", lab.outside().name(), link.outside4, link.outside6),
    ];
    lines.extend(state.pods.iter().map(|pod| {
        let addresses = list(&mut pod.addresses.iter());
        format!("  pod      {}  {}  {}/{}  {addresses}", pod.netns, pod.device, pod.namespace, pod.name)
    }));
    let left_out = cluster.pods.keys().filter(|key| lab.pod(key).is_none());
    lines.extend(left_out.map(|key| {
        format!("  pod      {key} gets no namespace (finished, hostNetwork, or no address of its own)")
    }));
    lines.push(match lab.agent_pid() {
        Some(pid) => format!("  agent    process {pid}, log {}", lab.agent_log().display()),
        None => "  agent    none".into(),
    });
    lines.join("\n") + "\n"
}
