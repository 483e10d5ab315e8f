//! What the documents show is what the program prints: every command of the [`DOCUMENTS`] that works offline is run,
//! as nobody, and its output compared. `PORTCULLIS_BLESS=1` writes what it prints into the document instead.
//!
//! A fenced block of `console` holds commands (`$ ...`) and under each what it prints, errors included. A block that
//! begins with a command of root's (`# ...`) is left as it is: it needs an agent.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Sandbox, drop_rights};

const FENCE: &str = "```console";
const DOCUMENTS: [&str; 2] = ["verbs.md", "host-firewall.md"];
/// What a reader of them has beside them.
const EXAMPLES: [&str; 9] = [
    "example/pods.yaml",
    "example/services.yaml",
    "example/policies.yaml",
    "example-broken/policies.yaml",
    "example-hosts/cluster.yaml",
    "example-hosts/pods.yaml",
    "example-hosts/nodes.yaml",
    "example-hosts/audit.yaml",
    "agent.yaml",
];

/// The directory of documents.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs")
}

/// A sandbox with the examples in it.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    for name in EXAMPLES {
        sandbox.write(name, &fs::read_to_string(docs().join(name)).unwrap());
    }
    sandbox
}

/// What a command prints, both streams as a terminal shows them.
fn run(sandbox: &Sandbox, command: &str) -> String {
    let mut shell = sandbox.command("sh");
    drop_rights(&mut shell);
    let output = shell.args(["-c", &format!("exec 2>&1; {command}")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The document with every offline block's output replaced by the present one.
fn present(sandbox: &Sandbox, text: &str) -> (String, usize) {
    let mut out = String::new();
    let mut commands = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out.extend([line, "\n"]);
        if line != FENCE {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if block.first().is_some_and(|line| line.starts_with("# ")) {
            out += &block.iter().map(|line| (*line).to_owned() + "\n").collect::<String>();
        } else {
            for command in block.iter().filter_map(|line| line.strip_prefix("$ ")) {
                out.extend(["$ ", command, "\n", &run(sandbox, command)]);
                commands += 1;
            }
        }
        out += "```\n";
    }
    (out, commands)
}

#[test]
fn the_documents_show_what_the_program_prints() {
    for name in DOCUMENTS {
        let path = docs().join(name);
        let written = fs::read_to_string(&path).unwrap();
        let (printed, commands) = present(&sandbox(), &written);
        assert!(commands > 0, "there is nothing to compare in {name}");
        if std::env::var_os("PORTCULLIS_BLESS").is_some_and(|value| value == "1") {
            fs::write(&path, printed).unwrap();
            continue;
        }
        for (number, (was, is)) in (1..).zip(written.lines().zip(printed.lines())) {
            assert_eq!(was, is, "docs/{name}:{number}: PORTCULLIS_BLESS=1 writes what is printed now");
        }
        assert_eq!(written, printed, "PORTCULLIS_BLESS=1 writes what is printed now");
        println!("{commands} commands of docs/{name} print what it shows");
    }
}

/// What a document quotes of an example is in it.
#[test]
fn policies_that_are_quoted_are_the_examples() {
    let text = fs::read_to_string(docs().join("host-firewall.md")).unwrap();
    let examples: Vec<String> =
        EXAMPLES.iter().map(|name| fs::read_to_string(docs().join(name)).unwrap()).collect();
    let quoted: Vec<&str> =
        text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(quoted.len(), 3);
    for block in quoted {
        assert!(examples.iter().any(|example| example.contains(block)), "no example has\n{block}");
    }
}

#[test]
fn a_block_of_roots_is_left_alone_and_another_is_not() {
    let text = "a\n```console\n# portcullis observe\nold\n```\n```text\n$ x\n```\n```console\n$ echo new\n# old\n$ echo $((1+1))\n```\nb\n";
    let (printed, commands) = present(&sandbox(), text);
    let expected = "a\n```console\n# portcullis observe\nold\n```\n```text\n$ x\n```\n```console\n$ echo new\nnew\n$ echo $((1+1))\n2\n```\nb\n";
    assert_eq!((printed.as_str(), commands), (expected, 2));
}
