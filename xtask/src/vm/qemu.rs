//! QEMU without KVM: boots, shows the serial console, and ends the machine when its time is over.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::sh;

/// Boots, and hands every line of the console to `line` until the machine is off. Past `limit` it is killed,
/// which is an error.
pub(crate) fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<()> {
    let mut command = command(kernel, initramfs);
    let mut child = command.spawn().context("starting qemu-system-x86_64")?;
    let stdout = child.stdout.take().context("qemu without stdout")?;
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut console = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while console.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            if sender.send(readable(&bytes)).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let deadline = Instant::now() + limit;
    let in_time = loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !in_time {
        child.kill().context("ending qemu")?;
    }
    let status = child.wait().context("waiting for qemu")?;
    drop(reader.join());
    if !in_time {
        bail!("the machine was not off after {} s, and was ended", limit.as_secs());
    }
    if !status.success() {
        bail!("qemu failed: {status}");
    }
    Ok(())
}

fn command(kernel: &Kernel, initramfs: &Path) -> Command {
    let mut command = sh::command("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024", "-no-reboot", "-nic", "none"]);
    command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    // A panic restarts at once, which -no-reboot turns into the end. A kernel that can preempts itself: it is the harder case.
    command.args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1 preempt=full"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A line of the console without its end and without the escape sequences that a BIOS draws with.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut readable = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // ESC [ parameters letter, or ESC and one character.
                if chars.next() == Some('[') {
                    chars.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            '\r' | '\n' => {}
            c => readable.push(c),
        }
    }
    readable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_are_made_readable() {
        assert_eq!(readable(b"\x1bc\x1b[?7l\x1b[2JSeaBIOS\r\n"), "SeaBIOS");
        assert_eq!(readable(b"vmtest: 1 passed, 0 failed\r\n"), "vmtest: 1 passed, 0 failed");
    }
}
