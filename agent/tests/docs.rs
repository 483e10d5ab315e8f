//! What the documents show is what the program prints: every command of `docs/verbs.md` that works offline is run,
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

/// The directory of documents.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs")
}

/// A sandbox with the examples in it.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let examples = ["example/pods.yaml", "example/services.yaml", "example/policies.yaml"];
    for name in examples.into_iter().chain(["example-broken/policies.yaml", "agent.yaml"]) {
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
fn the_document_shows_what_the_program_prints() {
    let path = docs().join("verbs.md");
    let written = fs::read_to_string(&path).unwrap();
    let (printed, commands) = present(&sandbox(), &written);
    assert!(commands > 0, "there is nothing to compare");
    if std::env::var_os("PORTCULLIS_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, printed).unwrap();
        return;
    }
    for (number, (was, is)) in (1..).zip(written.lines().zip(printed.lines())) {
        assert_eq!(was, is, "docs/verbs.md:{number}: PORTCULLIS_BLESS=1 writes what is printed now");
    }
    assert_eq!(written, printed, "PORTCULLIS_BLESS=1 writes what is printed now");
    println!("{commands} commands of docs/verbs.md print what it shows");
}

#[test]
fn a_block_of_roots_is_left_alone_and_another_is_not() {
    let text = "a\n```console\n# portcullis observe\nold\n```\n```text\n$ x\n```\n```console\n$ echo new\n# old\n$ echo $((1+1))\n```\nb\n";
    let (printed, commands) = present(&sandbox(), text);
    let expected = "a\n```console\n# portcullis observe\nold\n```\n```text\n$ x\n```\n```console\n$ echo new\nnew\n$ echo $((1+1))\n2\n```\nb\n";
    assert_eq!((printed.as_str(), commands), (expected, 2));
}
