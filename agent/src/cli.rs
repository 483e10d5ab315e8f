//! The command line: what can be said, and which verb that is.

mod examples;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ipnet::IpNet;
use portcullis_common::wire::DEFAULT_FLOWS;
use portcullis_policy::frame::Traffic;
use portcullis_policy::model;
use portcullis_policy::sizes::TableSize;

use crate::attach::HookChoice;
use crate::cni::install::SettingsArgs;
use crate::config;
use crate::daemon;
use crate::firewall::HostArgs;
use crate::listen::ListenArgs;
use crate::log::LogArgs;
use crate::mark::MarkMask;
use crate::observe::filter::NameText;
use crate::output::{self, Colour, Exit, Format};
use crate::plugin;
use crate::preflight::{self, Regard};
use crate::source::Choice;
use crate::verbs::ask::{ExplainRequest, Family, Hosts, Judge, MatrixRequest, Sent, TrafficText};
use crate::verbs::endpoints::{Scope, endpoints};
use crate::verbs::host_firewall::Act;
use crate::verbs::observe::{FilterArgs, Lines, WhenArgs, observe};
use crate::verbs::offline::offline;
use crate::verbs::policies::{PoliciesAsk, policies};
use crate::verbs::status::status;
use crate::verbs::wait::TimeText;
use crate::verbs::{self, Face, Failure, From};

/// Kubernetes NetworkPolicies, enforced and explained by eBPF.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 110, after_help = EXITS)]
struct Cli {
    /// No colours, on a terminal either
    #[arg(long, global = true)]
    no_color: bool,
    #[command(subcommand)]
    verb: Verb,
}

const EXITS: &str = "Exit status: 0 fine, 1 a negative finding (`explain`: denied; `status`: not ready; `policies lint`: an error or a warning; `wait`: not in time; `--diff`: differs), 2 usage, 3 the environment is not fit.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Enforce the policies of a directory or of the API server on this node's pods
    #[command(after_help = examples::AGENT)]
    Agent(AgentArgs),
    /// Say whether this node is fit, and who else is on it
    #[command(after_help = examples::PREFLIGHT)]
    Preflight(PreflightArgs),
    /// Say whether one flow is allowed, and which rule decides
    #[command(after_help = examples::EXPLAIN, after_long_help = examples::explain())]
    Explain(ExplainArgs),
    /// Show which pod reaches which
    #[command(after_help = examples::MATRIX)]
    Matrix(MatrixArgs),
    /// Show verdicts that fell, and with -f as they fall
    #[command(after_help = examples::OBSERVE)]
    Observe(ObserveArgs),
    /// Show how the agent and its node do; exit 1 if something is wrong
    #[command(after_help = examples::STATUS)]
    Status(StatusArgs),
    /// Show the pods that are enforced here, and with the host firewall the node too
    #[command(after_help = examples::ENDPOINTS)]
    Endpoints(EndpointsArgs),
    /// Show what each policy does here, or check files
    #[command(after_help = examples::POLICIES)]
    Policies(PoliciesArgs),
    /// Wait until something is in force on this node; exit 1 if it is not in time
    #[command(after_help = examples::WAIT)]
    Wait {
        #[command(subcommand)]
        what: WaitFor,
    },
    /// Turn the host firewall off on this node, or on again
    #[command(after_help = examples::HOST_FIREWALL)]
    HostFirewall(HostFirewallArgs),
    /// Take every program, link, map and pin of ours away
    #[command(after_help = examples::CLEANUP)]
    Cleanup(CleanupArgs),
    /// Put the CNI plugin before pods' start, or take it away
    #[command(after_help = examples::CNI)]
    Cni(CniArgs),
    /// Print what a shell needs to complete this command line
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print a manual page, or write them all
    #[command(after_help = examples::MAN)]
    Man(ManArgs),
}

#[derive(Debug, Subcommand)]
enum WaitFor {
    /// A NetworkPolicy, as the API server or the directory shows it now
    #[command(after_help = examples::WAIT)]
    Policy {
        /// Which
        #[arg(value_name = "NAMESPACE/NAME")]
        policy: NameText,
        /// How long: a number with ms, s or m behind it, up to 60m
        #[arg(long, value_name = "TIME", default_value = "30s")]
        timeout: TimeText,
        #[command(flatten)]
        run_dir: RunDir,
    },
}

#[derive(Debug, Subcommand)]
enum PoliciesVerb {
    /// Check files before they are applied: exit status 1 if anything but notes is found
    #[command(after_help = examples::LINT)]
    Lint(LintArgs),
}

#[derive(Debug, Args)]
struct LintArgs {
    /// The directory of manifests
    dir: PathBuf,
    /// Where pods without an address get one; several with commas [default: 10.244.0.0/16,fd00:10:244::/64]
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "PORTCULLIS_POD_CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,
    /// Format of the result
    #[arg(short, long, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct ManArgs {
    /// The verb whose page is printed [default: the program's]
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(conflicts_with = "out")]
    verb: Option<String>,
    /// Write a page for the program and for each verb into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Drop what is denied
    Enforce,
    /// Judge, count and report everything, and drop nothing
    Audit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OwnNodeEgress {
    /// Policies decide, as of any address
    Policy,
    /// It passes
    Allow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HostNetworkPods {
    /// Nothing
    Ignore,
    /// The NetworkPolicies of their namespaces, as of other pods
    #[allow(clippy::doc_markdown)] // the text of --help
    NetworkPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Services {
    /// Policies decide, where the backend that was chosen gets it
    Follow,
    /// Denied
    Deny,
}

#[derive(Debug, Args)]
struct RunDir {
    /// Where the agent's socket is
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_RUN_DIR", default_value = "/run/portcullis")]
    run_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Bpffs {
    /// The bpf file system that holds the pins
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_BPFFS", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// This node's name
    #[arg(long, value_name = "NAME", env = "PORTCULLIS_NODE_NAME")]
    node_name: Option<String>,
    /// Where pods without an address get one; several with commas [default: 10.244.0.0/16,fd00:10:244::/64]
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "PORTCULLIS_POD_CIDR", value_delimiter = ',')]
    pod_cidrs: Vec<IpNet>,
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// A file with these flags, in YAML: keys are their names in camelCase (podCidr); the environment and flags are
    /// stronger
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// Print every flag's value and where it is from, and end
    #[arg(long)]
    print_config: bool,
    /// The directory of manifests, watched for change; or kube, the API server (a directory of that name is ./kube)
    #[arg(long, value_name = "DIR|kube", env = "PORTCULLIS_SOURCE")]
    source: PathBuf,
    /// With --source kube: how to reach the API server [default: as the pod's service account, else as kubectl does]
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// What to do with what is denied
    #[arg(long, env = "PORTCULLIS_MODE", default_value = "enforce")]
    mode: Mode,
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    bpffs: Bpffs,
    /// Where programs hang
    #[arg(long, env = "PORTCULLIS_HOOK", default_value = "auto")]
    hook: HookChoice,
    /// Start beside programs that send packets around ours, too
    #[arg(long, env = "PORTCULLIS_FORCE")]
    force: bool,
    #[command(flatten)]
    node: NodeArgs,
    /// What pods whose egress a policy isolates may send to the addresses of their own node: what policies say, or all.
    /// With --services=deny all leads further where the node forwards it: to the backends of node ports, whatever policies
    /// say of these
    #[arg(long, env = "PORTCULLIS_OWN_NODE_EGRESS", default_value = "policy")]
    own_node_egress: OwnNodeEgress,
    /// What pods whose egress a policy isolates may send to the virtual addresses of Services: what policies say of the
    /// backend that is chosen, or nothing
    #[arg(long, env = "PORTCULLIS_SERVICES", default_value = "follow")]
    services: Services,
    /// The root of the node's cgroups (version 2), where what ends at the node's own sockets is judged [default:
    /// /sys/fs/cgroup, or unified below it]
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_CGROUP_ROOT")]
    cgroup_root: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
    /// The bits of the packet mark that say who sent a packet that may be translated: 12 in one piece, which nobody else on
    /// the node writes
    #[arg(long, value_name = "MASK", env = "PORTCULLIS_MARK_MASK", default_value_t)]
    mark_mask: MarkMask,
    /// Namespaces whose pods may send from addresses that are not theirs; several with commas. A Namespace's own
    /// annotation portcullis.dev/source-binding goes first
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_name = "NS", env = "PORTCULLIS_UNBOUND_NAMESPACES", value_delimiter = ',')]
    unbound_namespaces: Vec<String>,
    /// How large a pod's table of flows may grow; it starts with 16,384
    #[arg(long, value_name = "N", env = "PORTCULLIS_FLOWS_PER_ENDPOINT", default_value_t = DEFAULT_FLOWS,
          value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    flows_per_endpoint: u32,
    /// Size of a table, repeatable or with commas: endpoints, peers, prefixes, peer-rows, rules, rulesets, rows,
    /// port-ranges, counters, events (bytes); docs/maps.md says what they hold
    #[arg(long = "map-size", value_name = "NAME=N", env = "PORTCULLIS_MAP_SIZES", value_delimiter = ',')]
    map_sizes: Vec<TableSize>,
    #[command(flatten)]
    listen: ListenArgs,
    /// Keep our CNI configuration in this directory of the container runtime in step with the primary plugin's, so that
    /// no pod starts before it is enforced [default: no plugin is used]
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    #[command(flatten)]
    cni: SettingsArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Args)]
struct CniArgs {
    #[command(subcommand)]
    verb: CniVerb,
}

#[derive(Debug, Subcommand)]
enum CniVerb {
    /// Copy the plugin's binary, and chain it behind the primary plugin
    Install {
        #[command(flatten)]
        dirs: CniDirs,
        /// The plugin's binary [default: portcullis-cni beside this one]
        #[allow(clippy::doc_markdown)] // the text of --help
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        #[command(flatten)]
        run_dir: RunDir,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Take our configuration and the plugin's binary away: the primary plugin's configuration counts again
    Remove {
        #[command(flatten)]
        dirs: CniDirs,
        #[command(flatten)]
        run_dir: RunDir,
    },
}

#[derive(Debug, Args)]
struct CniDirs {
    /// Where the container runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where it looks for configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

#[derive(Debug, Args)]
struct PreflightArgs {
    /// Where programs would hang
    #[arg(long, env = "PORTCULLIS_HOOK", default_value = "auto")]
    hook: HookChoice,
    /// The bits of the packet mark that are ours: 12 in a row
    #[arg(long, value_name = "MASK", env = "PORTCULLIS_MARK_MASK", default_value_t)]
    mark_mask: MarkMask,
    #[command(flatten)]
    bpffs: Bpffs,
    /// Format of the result
    #[arg(short, long, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct AskArgs {
    /// Ask the manifests of this directory, not the running agent
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    node: NodeArgs,
    /// Address family [default: IPv4 where it is there]
    #[arg(long)]
    family: Option<Family>,
    /// With --source: judge the node of --node-name and its hostNetwork pods too, as an agent with a host firewall does
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, requires_all = ["source", "node_name"])]
    host_firewall: bool,
    /// With --host-firewall: what selects hostNetwork pods beside HostPolicies
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, default_value = "ignore", requires = "host_firewall")]
    host_network_pods: HostNetworkPods,
}

impl AskArgs {
    fn from(self) -> From {
        match self.source {
            None => From::Agent { run_dir: self.run_dir.run_dir },
            Some(ref dir) => self.other(dir.clone()),
        }
    }

    /// Another directory, read as this one is.
    fn other(&self, dir: PathBuf) -> From {
        let selects = match self.host_network_pods {
            HostNetworkPods::Ignore => model::HostNetworkPods::Ignore,
            HostNetworkPods::NetworkPolicy => model::HostNetworkPods::NetworkPolicy,
        };
        let hosts = self.host_firewall.then_some(selects);
        let (node, pod_cidrs) = (self.node.node_name.clone(), self.node.pod_cidrs.clone());
        From::Directory { dir, node, pod_cidrs, hosts }
    }
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// Who sends: NAMESPACE/POD, an address, `node`, `node/NAME` or `world`
    from: String,
    /// To whom, as FROM, or svc/NAMESPACE/NAME:PORT: each backend of a Service's port, by the port's number or name
    to: String,
    /// TCP/80, UDP/53, SCTP/9999 or ICMP; a Service's port says it itself, or takes a protocol alone
    #[arg(value_name = "PROTO/PORT")]
    sent: Option<Sent>,
    /// Where a pod without a namespace is looked for
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
    /// Format of the result
    #[arg(short, long, default_value = "table")]
    output: Format,
}

/// `-o` of `matrix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MatrixFormat {
    /// To be read by people
    Table,
    /// JSON and nothing else on stdout
    Json,
    /// The same as YAML
    Yaml,
    /// One page for a browser, with the explanation of each cell
    Html,
}

impl MatrixFormat {
    /// Of a result that is printed; `None`: a page.
    const fn printed(self) -> Option<Format> {
        match self {
            Self::Table => Some(Format::Table),
            Self::Json => Some(Format::Json),
            Self::Yaml => Some(Format::Yaml),
            Self::Html => None,
        }
    }
}

#[derive(Debug, Args)]
struct MatrixArgs {
    /// TCP/80, UDP/53, SCTP/9999 or ICMP; none: every declared containerPort, TCP, UDP, then SCTP
    #[arg(value_name = "PROTO/PORT")]
    ports: Vec<Traffic>,
    /// Take every cell from the loaded program; `?` where the pod is not on this node
    #[arg(long)]
    kernel: bool,
    /// A Service as another column, svc/NAMESPACE/NAME:PORT: `/` where only some of its backends are allowed; several
    /// times for several
    #[arg(long, value_name = "SERVICE", conflicts_with = "diff")]
    to: Vec<String>,
    /// The node and the pods in its network as rows and columns too, where the host firewall is on
    #[arg(long)]
    hosts: bool,
    /// Show only what leaves or enters pods of this namespace, other cells stay blank; several times for several
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    namespaces: Vec<String>,
    /// All namespaces, which is the default
    #[arg(short = 'A', long, conflicts_with = "namespaces")]
    all_namespaces: bool,
    /// Show what the manifests of this directory would open and close, and which pods come and go; pairs are of
    /// pods on both sides. Exit status 1 if anything differs
    #[arg(long, value_name = "DIR", conflicts_with = "kernel")]
    diff: Option<PathBuf>,
    #[command(flatten)]
    ask: AskArgs,
    /// Format of the result
    #[arg(short, long, default_value = "table")]
    output: MatrixFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LineFormat {
    /// To be read by people
    Table,
    /// A JSON object a line
    Json,
}

#[derive(Debug, Args)]
struct ObserveArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Format of the lines
    #[arg(short, long, default_value = "table")]
    output: LineFormat,
    #[command(flatten)]
    when: WhenArgs,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Args)]
struct LiveArgs {
    #[command(flatten)]
    run_dir: RunDir,
    /// Format of the result
    #[arg(short, long, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    live: LiveArgs,
}

#[derive(Debug, Args)]
struct EndpointsArgs {
    /// Those of one namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Those of all namespaces, as without -n
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    live: LiveArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct PoliciesArgs {
    #[command(subcommand)]
    verb: Option<PoliciesVerb>,
    #[command(flatten)]
    ask: PoliciesAsk,
    #[command(flatten)]
    live: LiveArgs,
}

#[derive(Debug, Args)]
struct HostFirewallArgs {
    /// What to do
    #[arg(value_enum)]
    act: Act,
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    bpffs: Bpffs,
    /// Format of the status
    #[arg(short, long, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
struct CleanupArgs {
    #[command(flatten)]
    run_dir: RunDir,
    #[command(flatten)]
    bpffs: Bpffs,
}

/// Reads the command line of this process and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if words.first().is_some_and(plugin::is_called) {
        return plugin::main();
    }
    let read = match config::read(Cli::command(), &words) {
        Ok(read) => read,
        Err(error) => {
            output::error(&error);
            return error.exit().into();
        }
    };
    let done = match (read.shown, Cli::from_arg_matches(&read.matches)) {
        (Some(shown), _) => output::print(&shown).map(|()| Exit::Fine).map_err(Failure::Output),
        (None, Ok(cli)) => run(cli),
        (None, Err(error)) => error.exit(),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::error(&failure);
            failure.exit().into()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let colour = Colour::choose(cli.no_color);
    match cli.verb {
        Verb::Agent(args) => agent(args),
        Verb::Preflight(args) => {
            preflight::run(args.hook, &args.bpffs.bpffs, args.mark_mask, Face { format: args.output, colour })
        }
        Verb::Explain(args) => {
            let face = Face { format: args.output, colour };
            let request = ExplainRequest {
                from: args.from,
                to: args.to,
                sent: args.sent,
                family: args.ask.family,
                namespace: args.namespace,
            };
            verbs::explain(&args.ask.from(), request, face)
        }
        Verb::Matrix(args) => matrix(args, colour),
        Verb::Observe(args) => {
            let lines = match args.output {
                LineFormat::Table => Lines::Text(colour),
                LineFormat::Json => Lines::Json,
            };
            observe(&args.run_dir.run_dir, lines, args.when, args.filter)
        }
        Verb::Status(StatusArgs { live }) => {
            status(&live.run_dir.run_dir, Face { format: live.output, colour })
        }
        Verb::Endpoints(EndpointsArgs { namespace, all_namespaces: _, live }) => {
            endpoints(&live.run_dir.run_dir, Scope { namespace }, Face { format: live.output, colour })
        }
        Verb::Policies(PoliciesArgs { verb: Some(PoliciesVerb::Lint(args)), .. }) => {
            let face = Face { format: args.output, colour };
            verbs::lint::lint(&args.dir, &args.pod_cidrs, face)
        }
        Verb::Policies(PoliciesArgs { verb: None, ask, live }) => {
            policies(&live.run_dir.run_dir, ask.into(), Face { format: live.output, colour })
        }
        Verb::Wait { what: WaitFor::Policy { policy, timeout, run_dir } } => {
            verbs::wait::policy(&run_dir.run_dir, policy, timeout)
        }
        Verb::HostFirewall(args) => {
            verbs::host_firewall::run(args.act, &args.run_dir.run_dir, &args.bpffs.bpffs, args.output)
        }
        Verb::Cleanup(args) => verbs::cleanup::cleanup(&args.run_dir.run_dir, &args.bpffs.bpffs),
        Verb::Cni(CniArgs { verb: CniVerb::Install { dirs, plugin, run_dir, settings } }) => {
            let settings = settings.settings(&run_dir.run_dir);
            verbs::cni::install(&dirs.bin_dir, &dirs.conf_dir, plugin.as_deref(), &settings)
        }
        Verb::Cni(CniArgs { verb: CniVerb::Remove { dirs, run_dir } }) => {
            verbs::cni::remove(&dirs.bin_dir, &dirs.conf_dir, &run_dir.run_dir)
        }
        Verb::Completions { shell } => verbs::completions::completions(shell, Cli::command()),
        Verb::Man(ManArgs { out: Some(dir), verb: _ }) => verbs::man::pages(&dir, Cli::command()),
        Verb::Man(ManArgs { out: None, verb }) => verbs::man::page(verb.as_deref(), Cli::command()),
    }
}

fn matrix(args: MatrixArgs, colour: Colour) -> Result<Exit, Failure> {
    let request = MatrixRequest {
        ports: args.ports.into_iter().map(TrafficText).collect(),
        family: args.ask.family,
        judge: if args.kernel { Judge::Kernel } else { Judge::Userspace },
        namespaces: args.namespaces,
        services: args.to,
        hosts: if args.hosts { Hosts::In } else { Hosts::Out },
    };
    let other = args.diff.map(|dir| args.ask.other(dir));
    let from = args.ask.from();
    match (other, args.output.printed()) {
        (None, Some(format)) => verbs::matrix(&from, request, Face { format, colour }),
        (None, None) => verbs::page(&from, request),
        (Some(other), Some(format)) => verbs::diff::diff(&from, &other, request, Face { format, colour }),
        (Some(_), None) => Err(Failure::DiffPage),
    }
}

fn agent(args: AgentArgs) -> Result<Exit, Failure> {
    let source = Choice::new(args.source, args.kubeconfig);
    match &source {
        // Before anything is touched: a directory that this version must not enforce.
        Choice::Directory(dir) => {
            offline(dir, args.node.node_name.as_deref(), &args.node.pod_cidrs)?;
        }
        Choice::Kube { .. } if args.node.node_name.is_none() => return Err(Failure::Nameless),
        Choice::Kube { .. } => {}
    }
    let host = args.host.options(args.node.node_name.as_deref())?;
    args.log.init();
    let regard = if args.force { Regard::Force } else { Regard::Refuse };
    preflight::admit(args.hook, &args.bpffs.bpffs, regard).map_err(Failure::Agent)?;
    let settings = args.cni.settings(&args.run_dir.run_dir);
    let options = daemon::Options {
        source,
        cni: args.cni_conf_dir.map(|dir| (dir, settings)),
        run_dir: args.run_dir.run_dir,
        bpffs: args.bpffs.bpffs,
        hook: args.hook,
        node_name: args.node.node_name,
        pod_cidrs: args.node.pod_cidrs,
        own_node_egress: match args.own_node_egress {
            OwnNodeEgress::Policy => daemon::OwnNodeEgress::Policy,
            OwnNodeEgress::Allow => daemon::OwnNodeEgress::Allow,
        },
        services: match args.services {
            Services::Follow => daemon::Services::Follow,
            Services::Deny => daemon::Services::Deny,
        },
        cgroup_root: args.cgroup_root,
        host,
        mark_mask: args.mark_mask,
        unbound_namespaces: args.unbound_namespaces.into_iter().collect(),
        flows_per_endpoint: args.flows_per_endpoint,
        listen: args.listen,
        mode: match args.mode {
            Mode::Enforce => model::Mode::Enforce,
            Mode::Audit => model::Mode::Audit,
        },
        sizes: args.map_sizes.into_iter().collect(),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::System)?;
    let ended = runtime.block_on(daemon::run(options));
    ended.map_err(|error| Failure::Agent(format!("{error:#}")))?;
    Ok(Exit::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_of_help_can_be_typed() {
        let all = [
            examples::AGENT,
            examples::HOST_FIREWALL,
            examples::CLEANUP,
            examples::CNI,
            examples::COMPLETIONS,
            examples::ENDPOINTS,
            examples::EXPLAIN,
            examples::LINT,
            examples::MAN,
            examples::MATRIX,
            examples::OBSERVE,
            examples::POLICIES,
            examples::PREFLIGHT,
            examples::STATUS,
            examples::WAIT,
        ];
        for line in all.iter().flat_map(|text| text.lines().skip(1)) {
            // What the shell does with the output is its own.
            let command = line.split(['>', '|']).next().unwrap_or_default();
            let words: Vec<&str> = command.split_whitespace().collect();
            // A file may give what the command line leaves out.
            let command =
                Cli::command().mut_subcommand("agent", |agent| agent.mut_args(|arg| arg.required(false)));
            let read = command.try_get_matches_from(words);
            assert!(
                read.is_ok(),
                "{line}: {}",
                read.err().map(|error| error.to_string()).unwrap_or_default()
            );
        }
    }

    fn parsed(words: &str) -> Result<(), clap::error::ErrorKind> {
        Cli::try_parse_from(words.split(' ')).map(|_| ()).map_err(|error| error.kind())
    }

    #[test]
    fn a_page_is_matrix_s_alone() {
        use clap::error::ErrorKind;

        assert_eq!(parsed("portcullis matrix -o html"), Ok(()));
        assert_eq!(parsed("portcullis explain a/x a/y TCP/80 -o html"), Err(ErrorKind::InvalidValue));
        assert_eq!(parsed("portcullis observe -o html"), Err(ErrorKind::InvalidValue));
    }

    #[test]
    fn what_is_sent_to_a_service_is_its_own_affair() {
        use clap::error::ErrorKind;

        for words in ["a/x svc/a/b:80", "a/x svc/a/b:dns UDP", "a/x svc/a/b TCP/80", "a/x 10.96.0.1 TCP/80"] {
            assert_eq!(parsed(&format!("portcullis explain {words}")), Ok(()), "{words}");
        }
        assert_eq!(parsed("portcullis matrix TCP/80 --to svc/a/b:80 --to svc/a/c:80 UDP/53"), Ok(()));
        assert_eq!(parsed("portcullis explain a/x svc/a/b:80 QUIC"), Err(ErrorKind::ValueValidation));
    }

    #[test]
    fn namespaces_are_named_or_all_and_a_difference_is_no_kernel_s() {
        use clap::error::ErrorKind;

        assert_eq!(parsed("portcullis matrix -n a -n b TCP/80"), Ok(()));
        assert_eq!(parsed("portcullis matrix -A --diff other"), Ok(()));
        assert_eq!(parsed("portcullis matrix -A -n a"), Err(ErrorKind::ArgumentConflict));
        assert_eq!(parsed("portcullis matrix --kernel --diff other"), Err(ErrorKind::ArgumentConflict));
        assert_eq!(
            parsed("portcullis matrix --to svc/a/b:80 --diff other"),
            Err(ErrorKind::ArgumentConflict)
        );
    }
}
