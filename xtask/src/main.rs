//! `cargo xtask VERB`: everything a developer does with this tree, one file a verb.
//!
//! xtask depends on none of our crates, so that it runs before anything else builds and whatever state the
//! rest is in; it knows them by the names of their packages and binaries only. It decides nothing about
//! policies: it installs what is missing, builds, starts programs and counts what they say.
//!
//! Exit: 0 fine, 1 something failed, 2 usage, 3 this machine lacks something; `lab`, `run`, `bench` and `fuzz` hand on
//! what the program they start ends with.

mod bench;
mod build;
mod check;
mod cluster_test;
mod demo;
mod fuzz;
mod image;
mod lab;
mod manifests;
mod mutants;
mod rooms;
mod run;
mod setup;
mod sh;
mod standing;
mod test;
mod vm;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "Build, try and test portcullis", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need; the other verbs do it by themselves
    Setup(setup::Args),
    /// Build the agent with its eBPF object, and the lab
    Build(build::Args),
    /// Build, load into a lab made from manifests, and stay until Ctrl-C
    Run(run::Args),
    /// Pods of any manifests as network namespaces: `lab up|probe|down --source DIR`
    Lab(lab::Args),
    /// Watch a policy take effect on this machine, by real connections
    Demo(demo::Args),
    /// Everything that CI runs
    Test(test::Args),
    /// Format, lints, dependencies, documentation: what needs no run
    Check(check::Args),
    /// What packets, changes and connections cost, as tables
    Bench(bench::Args),
    /// One fault at a time in a copy of the tree: which tests notice?
    Mutants(mutants::Args),
    /// Random packets to the loaded programs and to the oracle, side by side
    Fuzz(fuzz::Args),
    /// The plain manifests, made from the chart
    Manifests(manifests::Args),
    /// The agent as an image, without a daemon: target/image/portcullis-amd64.tar
    Image(image::Args),
    /// Our tests and the upstream suite's on a real cluster
    ClusterTest(cluster_test::Args),
    /// The same object in a virtual machine of another kernel
    VmTest(vm_test::Args),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<sh::Unfit>() { 3 } else { 1 })
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Setup(args) => setup::verb(&args),
        Verb::Build(args) => build::verb(&args),
        Verb::Run(args) => run::verb(&args),
        Verb::Lab(args) => lab::verb(&args),
        Verb::Demo(args) => demo::verb(&args),
        Verb::Test(args) => test::verb(&args),
        Verb::Check(args) => check::verb(&args),
        Verb::Bench(args) => bench::verb(&args),
        Verb::Mutants(args) => mutants::verb(&args),
        Verb::Fuzz(args) => fuzz::verb(&args),
        Verb::Manifests(args) => manifests::verb(&args),
        Verb::Image(args) => image::verb(&args),
        Verb::ClusterTest(args) => cluster_test::verb(&args),
        Verb::VmTest(args) => vm_test::verb(&args),
    }
}
