//! `cargo xtask manifests`: the plain manifests, made from the chart by helm. helm comes as a Go module of a pinned
//! version, so a machine with Go needs nothing else installed.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::check::Outcome;
use crate::sh::{self, Unfit};
use crate::workspace::{self, Workspace};

const HELM: &str = "helm.sh/helm/v3/cmd/helm";
const VERSION: &str = "v3.22.0";
const CHART: &str = "deploy/chart/portcullis";
const RELEASE: &str = "portcullis";
const NAMESPACE: &str = "kube-system";
/// What the cluster is taken to be: the oldest that knows the field `appArmorProfile`.
const KUBERNETES: &str = "v1.30.0";
/// kubectl manages what is applied by it.
const NOT_PLAIN: &str = "app.kubernetes.io/managed-by: Helm";

/// A file, and what helm is asked for it.
struct Manifest {
    path: &'static str,
    about: &'static str,
    made: Made,
}

enum Made {
    /// By templates, with these flags.
    Rendered(&'static [&'static str]),
    /// The chart's own definitions of kinds.
    Definitions,
}

const MANIFESTS: &[Manifest] = &[
    // By itself: without the definition its objects go, and who installs the agent anew wants to keep them.
    Manifest {
        path: "deploy/manifests/hostpolicies.yaml",
        about: "The kind HostPolicy. Deleting it deletes every HostPolicy.",
        made: Made::Definitions,
    },
    Manifest {
        path: "deploy/manifests/portcullis.yaml",
        about: "The agent on every node, with the chart's defaults.",
        made: Made::Rendered(&[]),
    },
    Manifest {
        path: "deploy/cleanup.yaml",
        about: "Takes everything of portcullis off every node, after the agent is deleted: docs/operations.md.",
        made: Made::Rendered(&["--set", "cleanup.enabled=true", "--show-only", "templates/cleanup.yaml"]),
    },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a file differs from what the chart gives
    #[arg(long)]
    check: bool,
}

pub(crate) fn verb(args: &Args) -> Result<ExitCode> {
    let helm = helm()?.map_err(Unfit)?;
    if args.check {
        compare(&helm)?;
        return Ok(ExitCode::SUCCESS);
    }
    for manifest in MANIFESTS {
        let path = workspace::root().join(manifest.path);
        fs::write(&path, render(&helm, manifest)?).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", manifest.path);
    }
    Ok(ExitCode::SUCCESS)
}

/// The check of `cargo xtask check` and `test`.
pub(crate) fn check() -> Result<Outcome> {
    match helm()? {
        Ok(helm) => compare(&helm).map(|()| Outcome::Passed),
        Err(why) => Ok(Outcome::Skipped(why)),
    }
}

fn compare(helm: &PathBuf) -> Result<()> {
    let mut lint = in_root(helm);
    lint.args(["lint", "--strict", "--quiet", CHART]);
    sh::output(&mut lint)?;
    for manifest in MANIFESTS {
        let path = workspace::root().join(manifest.path);
        let found = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        if found != render(helm, manifest)? {
            bail!("{} is not what {CHART} gives: run `cargo xtask manifests`", manifest.path);
        }
    }
    Ok(())
}

fn render(helm: &PathBuf, manifest: &Manifest) -> Result<String> {
    let mut command = in_root(helm);
    match manifest.made {
        Made::Rendered(flags) => {
            command.args([
                "template",
                RELEASE,
                CHART,
                "--namespace",
                NAMESPACE,
                "--kube-version",
                KUBERNETES,
            ]);
            command.args(flags)
        }
        Made::Definitions => command.args(["show", "crds", CHART]),
    };
    Ok(plain(manifest.about, &sh::output(&mut command)?))
}

/// Helm's output as a file of its own.
fn plain(about: &str, rendered: &str) -> String {
    let head = format!("# {about}\n# Made from {CHART} by `cargo xtask manifests`: change it there.\n");
    let lines = rendered.lines().filter(|line| line.trim() != NOT_PLAIN);
    lines.fold(head, |text, line| text + line.trim_end() + "\n")
}

fn in_root(program: &PathBuf) -> Command {
    let mut command = sh::command(program);
    command.current_dir(workspace::root());
    command
}

/// helm, built where it is missing; or why it cannot be had.
fn helm() -> Result<Result<PathBuf, String>> {
    let dir = Workspace::load()?.target_dir().join("tools").join(format!("helm-{VERSION}"));
    let helm = dir.join("helm");
    if helm.exists() {
        return Ok(Ok(helm));
    }
    let Some(go) = sh::find("go") else {
        return Ok(Err("helm is built by Go, and there is no `go`: install Go 1.26 or newer".to_owned()));
    };
    let mut command = sh::command(go);
    command.args(["install", &format!("{HELM}@{VERSION}")]).env("GOBIN", &dir).env("CGO_ENABLED", "0");
    sh::say(format_args!("{} (the first time takes minutes)", sh::line(&command)));
    Ok(match sh::output(&mut command) {
        Ok(_) => Ok(helm),
        Err(error) => {
            let text = format!("{error:#}");
            // Before it are the modules that were fetched.
            Err(format!("helm cannot be built here: {}", text.lines().last().unwrap_or_default()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> String {
        fs::read_to_string(workspace::root().join(path)).unwrap()
    }

    #[test]
    fn a_plain_manifest_says_where_it_is_from_and_not_that_helm_manages_it() {
        let text = plain("About.", "kind: X\n    app.kubernetes.io/managed-by: Helm\n  a: b  \n");
        assert_eq!(
            text,
            "# About.\n# Made from deploy/chart/portcullis by `cargo xtask manifests`: change it there.\nkind: X\n  a: b\n"
        );
    }

    #[test]
    fn the_chart_and_the_manifests_bear_the_version_of_the_agent() {
        let version = Workspace::load().unwrap().version("portcullis-agent").unwrap();
        let chart = read("deploy/chart/portcullis/Chart.yaml");
        for line in [format!("version: {version}"), format!("appVersion: \"{version}\"")] {
            assert!(chart.lines().any(|found| found == line), "{line} is not in the chart");
        }
        let image = format!("image: \"{}:{version}\"", crate::image::REPOSITORY);
        for manifest in MANIFESTS.iter().filter(|one| matches!(one.made, Made::Rendered(_))) {
            assert!(read(manifest.path).contains(&image), "{} has no {image}", manifest.path);
        }
    }
}
