//! Tests of the configuration file. Given a file, the environment and a command line, the strongest wins.

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::*;
use crate::scratch::Scratch;

#[derive(Parser)]
#[command(name = "portcullis")]
struct Cli {
    #[command(subcommand)]
    #[allow(dead_code)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Agent(Box<Flags>),
    Other,
}

#[derive(Args)]
#[allow(dead_code)]
struct Flags {
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    print_config: bool,
    #[arg(long)]
    source: PathBuf,
    #[arg(long, env = "PORTCULLIS_TEST_RUN_DIR", default_value = "/run/portcullis")]
    run_dir: PathBuf,
    #[arg(long, default_value = "auto")]
    hook: crate::attach::HookChoice,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    flows: u32,
    #[arg(long, value_delimiter = ',')]
    pod_cidr: Vec<ipnet::IpNet>,
    #[arg(long)]
    node_name: Option<String>,
    #[arg(long)]
    force: bool,
}

fn words(dir: &Scratch, file: &str, more: &[&str]) -> Vec<OsString> {
    dir.write("agent.yaml", file);
    let config = dir.path().join("agent.yaml");
    let first = [OsString::from("portcullis"), "agent".into(), "--config".into(), config.into()];
    first.into_iter().chain(more.iter().map(OsString::from)).collect()
}

fn read_file(file: &str, more: &[&str]) -> Result<Read, ConfigError> {
    read(Cli::command(), &words(&Scratch::new(), file, more))
}

fn refused(file: &str) -> String {
    let error = read_file(file, &[]).expect_err("it is refused");
    assert_eq!(error.exit(), Exit::Usage);
    let text = error.to_string();
    text.split_once("/agent.yaml").expect("it names the file").1.to_owned()
}

#[test]
fn a_file_gives_what_the_command_line_leaves_out() {
    let file =
        "source: from-file\nflows: 20\nhook: clsact\nforce: true\npodCidr: [10.0.0.0/8, 'fd00::/64']\n";
    let read = read_file(file, &["--flows", "30"]).expect("it is good");
    let agent = read.matches.subcommand_matches("agent").expect("the verb");
    assert_eq!(agent.get_one::<PathBuf>("source"), Some(&PathBuf::from("from-file")));
    assert_eq!(agent.get_one::<u32>("flows"), Some(&30), "a flag is stronger");
    assert_eq!(agent.get_one::<PathBuf>("run_dir"), Some(&PathBuf::from("/run/portcullis")));
    assert!(agent.get_flag("force"));
    assert_eq!(agent.get_many::<ipnet::IpNet>("pod_cidr").map(Iterator::count), Some(2));
    assert_eq!(read.shown, None);
}

#[test]
fn what_is_in_force_is_shown_with_its_origin_and_can_be_read_again() {
    let file = "source: from-file\nnodeName: '5'\npodCidr: 10.0.0.0/8\n";
    let shown =
        read_file(file, &["--flows", "30", "--print-config"]).expect("it is good").shown.expect("shown");
    let expected = "\
flows: 30                # flag
force: false             # default
hook: auto               # default
nodeName: \"5\"            # file
podCidr: [\"10.0.0.0/8\"]  # file
runDir: /run/portcullis  # default
source: from-file        # file
";
    assert_eq!(shown, expected);
    let again = read_file(&shown, &["--print-config"]).expect("it is good").shown.expect("shown");
    assert!(again.lines().all(|line| line.ends_with("# file")), "{again}");
    let unset = read_file("", &["--print-config"]).expect("it is good").shown.expect("shown");
    assert!(unset.contains("# source:") && unset.contains("# nodeName:"), "{unset}");
}

#[test]
fn an_empty_file_is_fine_and_other_verbs_read_none() {
    assert!(read_file("", &["--source", "x"]).is_ok());
    assert!(read_file("# nothing\n", &["--source", "x"]).is_ok());
    assert!(read(Cli::command(), &["portcullis".into(), "other".into()]).is_ok());
}

#[test]
fn what_is_wrong_is_told_with_file_line_and_key() {
    assert_eq!(
        refused("source: x\nhoook: tcx\n"),
        ":2: hoook is unknown: mend its spelling or take it out (known are flows, force, hook, nodeName, podCidr, \
         runDir, source)"
    );
    assert_eq!(refused("hook: 5\n"), ":1: hook is a number and must be a string: write a string");
    assert_eq!(refused("flows: many\n"), ":1: flows is a string and must be a number: write a number");
    assert_eq!(
        refused("force: 'yes'\n"),
        ":1: force is a string and must be true or false: write true or false"
    );
    assert_eq!(refused("source:\n"), ":1: source is null and must be a string: write a string");
    assert_eq!(refused("source: {a: b}\n"), ":1: source is a mapping and must be a string: write a string");
    assert_eq!(refused("\nhook: xdp\n"), ":2: hook: \"xdp\" is not known: write one of auto, tcx, clsact");
    assert!(
        refused("flows: 1000\n").starts_with(":1: flows: \"1000\" cannot be used (1000 is not in 1..=100)")
    );
    assert!(refused("podCidr: [10.0.0.0/8, x]\n").starts_with(":1: podCidr: \"x\" cannot be used"));
    assert_eq!(
        refused("podCidr: [5]\n"),
        ":1: podCidr is a list and must be a list of strings: write a list of strings"
    );
    assert!(refused("a: [\n").contains("is no configuration"));
    assert!(refused("- a\n").contains("is no configuration"));
    assert!(refused("hook: tcx\nhook: auto\n").contains("duplicate"));
    assert!(refused("config: x\n").contains("config is unknown"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let words: Vec<OsString> =
        ["portcullis", "agent", "--config", "/nonexistent/portcullis.yaml"].map(OsString::from).to_vec();
    let error = read(Cli::command(), &words).expect_err("it is not there");
    assert_eq!(error.exit(), Exit::Unfit);
    assert!(
        error.to_string().starts_with("--config /nonexistent/portcullis.yaml: cannot be read"),
        "{error}"
    );
}
