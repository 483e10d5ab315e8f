//! `cargo xtask cluster-test`: a real cluster. The image is built and loaded, our own tests run (`tests/tests/cluster`),
//! then the upstream suite's tests of NetworkPolicy.
//!
//! Two kinds of cluster: a rig of scripts, whose directory `PORTCULLIS_CLUSTER` names (`up`, `down`, `load ARCHIVE`,
//! `kubectl`, `in NODE COMMAND`, `e2e par N REGEXP`), and whatever `KUBECONFIG` names.

mod evidence;
mod junit;

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::image::{self, Written};
use crate::sh::{self, Unfit};
use crate::test::tally::Tally;
use crate::test::{count, test_command};
use crate::workspace::{self, Workspace};
use evidence::Evidence;
use junit::{Ended, Spec};

const RIG: &str = "PORTCULLIS_CLUSTER";
/// Our tests' binary.
const OWN: &str = "cluster";
/// Which specs of the upstream suite.
const FOCUS: &str = r"\[Feature:NetworkPolicy\]|Netpol";
/// SCTP wants sockets that not every kernel has.
const SKIP: &str = "SCTPConnectivity";
/// Processes that share the specs.
const PROCESSES: &str = "4";
/// What builds the rig's programs.
const GO: [u64; 3] = [1, 26, 8];

const MANIFESTS: &str = "deploy/manifests/portcullis.yaml";
const CLEANUP: &str = "deploy/cleanup.yaml";
const NAMESPACE: &str = "kube-system";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Ours
    Own,
    /// The upstream suite's
    Upstream,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What loads an archive of the image into every node, the archive being appended [default: the rig's `load`, else
    /// `kind load image-archive`]
    #[arg(long, value_name = "COMMAND")]
    load_command: Option<String>,
    /// What runs a command on a node, node and command being appended [default: the rig's `in`, else `docker exec`]
    #[arg(long, value_name = "COMMAND")]
    node_command: Option<String>,
    /// Only these tests
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Leave portcullis installed and the rig up
    #[arg(long)]
    keep: bool,
}

/// What came of it: counts, and what failed.
pub(crate) type Outcome = (Tally, Vec<String>);

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let cluster = match Cluster::find(args) {
        Found::Cluster(cluster) => cluster,
        Found::Nothing(why) => return Err(Unfit(why).into()),
    };
    let (tally, failures) = run(&Workspace::load()?, &cluster, args.only, args.keep)?;
    if !failures.is_empty() {
        println!("\nfailed:");
    }
    for failure in &failures {
        println!("  {failure}");
    }
    println!("\n{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The layer of `cargo xtask test`: the rig, or why there is none.
pub(crate) fn layer(workspace: &Workspace) -> Result<Result<Outcome, String>> {
    if env::var_os(RIG).is_none() {
        return Ok(Err(format!("no cluster rig: {RIG} names the directory of its scripts")));
    }
    match Cluster::find(&Args { load_command: None, node_command: None, only: None, keep: false }) {
        Found::Cluster(cluster) => run(workspace, &cluster, None, false).map(Ok),
        Found::Nothing(why) => Ok(Err(why)),
    }
}

/// How a cluster is reached: words of command lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cluster {
    rig: Option<PathBuf>,
    kubectl: String,
    load: String,
    node: String,
}

enum Found {
    Cluster(Cluster),
    /// And why.
    Nothing(String),
}

impl Cluster {
    fn find(args: &Args) -> Found {
        let chosen = |given: &Option<String>, other: String| given.clone().unwrap_or(other);
        if let Some(dir) = env::var_os(RIG).map(PathBuf::from) {
            let Ok(dir) = dir.canonicalize() else {
                return Found::Nothing(format!("{RIG} is {}, and there is no such directory", dir.display()));
            };
            if let Err(why) = go_is_new_enough() {
                return Found::Nothing(why);
            }
            if !sh::is_root() {
                return Found::Nothing("a rig of namespaces needs root".to_owned());
            }
            let script = |name: &str| dir.join(name).display().to_string();
            return Found::Cluster(Self {
                kubectl: script("kubectl"),
                load: chosen(&args.load_command, script("load")),
                node: chosen(&args.node_command, script("in")),
                rig: Some(dir),
            });
        }
        if env::var_os("KUBECONFIG").is_none() {
            return Found::Nothing(format!(
                "no cluster: set KUBECONFIG to the file of one that may be changed, or {RIG} to a rig"
            ));
        }
        if sh::find("kubectl").is_none() {
            return Found::Nothing("kubectl is not on the search path: install it".to_owned());
        }
        Found::Cluster(Self {
            rig: None,
            kubectl: "kubectl".to_owned(),
            load: chosen(&args.load_command, "kind load image-archive".to_owned()),
            node: chosen(&args.node_command, "docker exec".to_owned()),
        })
    }

    fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = words_of(&self.kubectl);
        command.args(words).current_dir(workspace::root());
        command
    }

    fn script(&self, name: &str) -> Option<Command> {
        self.rig.as_ref().map(|dir| sh::command(dir.join(name)))
    }

    fn is_up(&self) -> bool {
        sh::succeeds(&mut self.kubectl(&["get", "--raw", "/readyz"]))
    }

    /// The agent on every node, ready.
    fn install(&self) -> Result<()> {
        sh::run(self.kubectl(&["apply", "-f", MANIFESTS]).stdout(std::io::stderr()))?;
        let wait = ["-n", NAMESPACE, "rollout", "status", "daemonset/portcullis", "--timeout=180s"];
        sh::run(self.kubectl(&wait).stdout(std::io::stderr()))
    }

    /// Nothing of ours.
    fn remove(&self) -> Result<()> {
        let quiet = |words: &[&str]| sh::output(&mut self.kubectl(words)).map(drop);
        quiet(&["delete", "--ignore-not-found", "--wait", "-f", MANIFESTS])?;
        quiet(&["apply", "-f", CLEANUP])?;
        let cleaned =
            ["-n", NAMESPACE, "rollout", "status", "daemonset/portcullis-cleanup", "--timeout=180s"];
        quiet(&cleaned)?;
        quiet(&["delete", "--wait", "-f", CLEANUP])
    }
}

/// A command of words that are separated by blanks.
fn words_of(text: &str) -> Command {
    let mut words = text.split_whitespace();
    let mut command = sh::command(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Or why not.
fn go_is_new_enough() -> Result<(), String> {
    let needed = GO.map(|part| part.to_string()).join(".");
    let remedy = format!("the rig is built by Go {needed} or newer");
    let Some(go) = sh::find("go") else { return Err(format!("{remedy}, and there is no `go`")) };
    let found = sh::output(sh::command(go).args(["env", "GOVERSION"])).map_err(|error| error.to_string())?;
    if version_of(&found).is_some_and(|found| found >= GO) {
        return Ok(());
    }
    Err(format!("{remedy}, and this one is {}", found.trim()))
}

/// `go1.26.8` as numbers.
fn version_of(text: &str) -> Option<[u64; 3]> {
    let first = text.trim().strip_prefix("go")?.split([' ', '-']).next()?;
    let mut parts = first.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?])
}

fn run(workspace: &Workspace, cluster: &Cluster, only: Option<Part>, keep: bool) -> Result<Outcome> {
    let _lock = lock()?;
    let was_up = cluster.is_up();
    if let Some(mut up) = cluster.script("up") {
        sh::run(up.stdout(std::io::stderr()))?;
    }
    let outcome = image::build(workspace).and_then(|image| tests(workspace, cluster, &image, only));
    if !keep {
        if was_up || cluster.rig.is_none() {
            if let Err(error) = cluster.remove() {
                sh::say(format_args!("portcullis could not be removed: {error:#}"));
            }
        } else if let Some(mut down) = cluster.script("down") {
            sh::run(&mut down)?;
        }
    }
    outcome
}

/// A machine has one rig, and a cluster one agent: others wait here.
fn lock() -> Result<File> {
    let path = env::temp_dir().join("portcullis-cluster-test.lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        sh::say(format_args!("another run has the cluster ({}): waiting for it", path.display()));
        file.lock().with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

fn tests(workspace: &Workspace, cluster: &Cluster, image: &Written, only: Option<Part>) -> Result<Outcome> {
    sh::run(words_of(&cluster.load).arg(&image.archive).stdout(std::io::stderr()))?;
    // What is there may be older than what was loaded under the same name.
    cluster.remove()?;
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    if only != Some(Part::Upstream) {
        let mut own = test_command(&[], &BTreeSet::from([OWN.to_owned()]));
        own.arg("--test-threads=1")
            .env("PORTCULLIS_KUBECTL", &cluster.kubectl)
            .env("PORTCULLIS_NODE_COMMAND", &cluster.node)
            .env("PORTCULLIS_IMAGE", &image.name)
            .env("PORTCULLIS_IMAGE_DIGEST", &image.digest);
        let (counted, failed) = count(own)?;
        tally += counted;
        failures.extend(failed);
    }
    if only != Some(Part::Own) {
        let (counted, failed) = upstream(workspace, cluster)?;
        tally += counted;
        failures.extend(failed);
    }
    Ok((tally, failures))
}

/// The upstream suite against the installed agent. A spec that fails is looked into: one that wants to reach a
/// Service, and whose packets the agent was seen to deny for that reason alone, is skipped by name.
fn upstream(workspace: &Workspace, cluster: &Cluster) -> Result<Outcome> {
    let reports = workspace.target_dir().join("cluster-e2e");
    fs::remove_dir_all(&reports).ok();
    fs::create_dir_all(&reports).with_context(|| format!("creating {}", reports.display()))?;
    let mut suite = match (cluster.script("e2e"), sh::find("e2e.test")) {
        (Some(mut script), _) => {
            script.args(["par", PROCESSES, FOCUS]);
            script
        }
        (None, Some(program)) => {
            let mut command = sh::command(program);
            command.args(["--provider=skeleton", "--ginkgo.no-color", "--dump-logs-on-failure=false"]);
            command.arg(format!("--ginkgo.focus={FOCUS}")).arg(format!("--ginkgo.skip={SKIP}"));
            command.arg(format!("--report-dir={}", reports.display()));
            command
        }
        (None, None) => {
            println!(
                "skipped: upstream: e2e.test is not on the search path: install it from a release of Kubernetes"
            );
            return Ok((Tally::SKIPPED, Vec::new()));
        }
    };
    cluster.install()?;
    if let Ok(ranges) = sh::output(&mut cluster.kubectl(&["get", "servicecidrs", "-o", "json"])) {
        fs::write(reports.join(evidence::RANGES), ranges).context("writing the ranges of Services")?;
    }
    let watchers = watch(cluster, &reports)?;
    // Its status says only that some spec failed; the reports say which.
    sh::status(suite.stdout(std::io::stderr()))?;
    for mut watcher in watchers {
        watcher.kill().ok();
        watcher.wait().ok();
    }
    if let Some(dir) = &cluster.rig {
        collect(dir, &reports)?;
    }
    let specs = read(&reports)?;
    if specs.is_empty() {
        bail!("the upstream suite left no report in {}", reports.display());
    }
    Ok(judge(&specs, &Evidence::read(&reports)?))
}

/// Follows what the agents deny, a file for each.
fn watch(cluster: &Cluster, reports: &Path) -> Result<Vec<Child>> {
    let selector = "app.kubernetes.io/name=portcullis,app.kubernetes.io/component=agent";
    let names = ["-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "name"];
    let pods = sh::output(&mut cluster.kubectl(&names))?;
    let follow = |pod: &str| {
        let name = pod.rsplit('/').next().unwrap_or(pod);
        let path = reports.join(format!("denied-{name}.jsonl"));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let words = ["-n", NAMESPACE, "exec", name, "-c", "agent", "--", "portcullis", "observe", "-f"];
        let mut command = cluster.kubectl(&words);
        command.args(["--verdict", "deny", "--direction", "egress", "-o", "json"]);
        let quiet = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
        quiet.spawn().with_context(|| format!("following {name}"))
    };
    pods.lines().map(follow).collect()
}

/// Takes the rig's reports before it goes.
fn collect(rig: &Path, reports: &Path) -> Result<()> {
    let run = env::var_os("K8S_RUN").map_or_else(
        || {
            let cache = env::var_os("K8S_CACHE").map(PathBuf::from);
            let home = PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
            cache.unwrap_or_else(|| home.join(".cache/k8s-rig")).join("run")
        },
        PathBuf::from,
    );
    let from = run.join("e2e");
    let entries = fs::read_dir(&from)
        .with_context(|| format!("reading the reports of {} in {}", rig.display(), from.display()))?;
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
        let part = entry.file_name().to_string_lossy().into_owned();
        for file in fs::read_dir(entry.path())?.filter_map(Result::ok) {
            let name = file.file_name().to_string_lossy().into_owned();
            let to = reports.join(format!("{part}-{name}"));
            fs::copy(file.path(), &to).with_context(|| format!("writing {}", to.display()))?;
        }
    }
    Ok(())
}

fn read(reports: &Path) -> Result<Vec<Spec>> {
    let mut specs = Vec::new();
    for entry in fs::read_dir(reports)?.filter_map(Result::ok) {
        if entry.path().extension().is_some_and(|extension| extension == "xml") {
            let bytes = fs::read(entry.path())?;
            specs.extend(junit::specs(&String::from_utf8_lossy(&bytes)));
        }
    }
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(specs)
}

fn judge(specs: &[Spec], evidence: &Evidence) -> Outcome {
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    for spec in specs {
        tally += match spec.ended {
            Ended::Passed => Tally::PASSED,
            Ended::Failed => match evidence.only_services(&spec.output) {
                Ok(denials) => {
                    println!(
                        "skipped: {}: it reaches Services, which are not judged yet: egress to their addresses was denied {denials} times, and nothing else is wrong",
                        spec.name
                    );
                    Tally::SKIPPED
                }
                Err(why) => {
                    println!("FAILED: {}: {why}", spec.name);
                    failures.push(format!("upstream: {}", spec.name));
                    Tally::FAILED
                }
            },
        };
    }
    println!("upstream: {tally}");
    (tally, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go() {
        assert_eq!(version_of("go1.26.8\n"), Some([1, 26, 8]));
        assert_eq!(version_of("go1.27"), Some([1, 27, 0]));
        assert_eq!(version_of("go1.26.8-X:nodwarf5"), Some([1, 26, 8]));
        assert_eq!(version_of("devel"), None);
        assert!(version_of("go1.30.1").unwrap() >= GO && version_of("go1.9.9").unwrap() < GO);
    }

    #[test]
    fn words_of_a_command() {
        assert_eq!(
            sh::line(words_of("kind load  image-archive").arg("x.tar")),
            "kind load image-archive x.tar"
        );
    }

    #[test]
    fn a_failed_spec_counts_as_failed_unless_it_failed_by_services_alone() {
        let spec = |name: &str, ended, output: &str| Spec {
            name: name.to_owned(),
            ended,
            output: output.to_owned(),
        };
        let specs = [spec("a", Ended::Passed, ""), spec("b", Ended::Failed, "no probe at all")];
        let (tally, failures) = judge(&specs, &Evidence::default());
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(failures, ["upstream: b"]);
    }
}
