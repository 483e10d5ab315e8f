//! `ip -batch`: many changes to one namespace by one process.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::netns::Netns;
use crate::unfit::Unfit;

/// [`run`] inside a namespace.
pub(crate) fn batch(netns: &Netns, lines: &[String]) -> Result<()> {
    netns.run(|| run(lines))?.with_context(|| format!("setting up network namespace {}", netns.name()))
}

/// Runs the lines as one `ip -batch` inside this thread's namespace; the first that fails ends it, and is named.
pub fn run(lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return anyhow::Error::new(Unfit(
                    "`ip` is missing: apt-get install iproute2 (or its like)".into(),
                ));
            }
            anyhow::Error::new(error).context("starting `ip`")
        })?;
    // Dropped at the end of the statement: `ip` sees the end of its input. A broken pipe is its failure,
    // which its exit status tells better.
    if let Some(mut stdin) = child.stdin.take() {
        drop(stdin.write_all(lines.join("\n").as_bytes()));
        drop(stdin.write_all(b"\n"));
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let failed = stderr.rsplit_once("Command failed -:").and_then(|(_, number)| number.trim().parse().ok());
    let line = failed.and_then(|n: usize| lines.get(n.checked_sub(1)?)).map_or("?", String::as_str);
    bail!("`ip {line}`: {}", stderr.lines().next().unwrap_or("failed without a word"))
}
