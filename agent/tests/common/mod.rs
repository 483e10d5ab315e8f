//! The real binary, run by whoever a test wants, in a directory that everybody may read.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Nobody: the user of a container without rights.
const NOBODY: u32 = 65534;

/// A directory with the binary in it, gone when the test ends.
pub(crate) struct Sandbox(PathBuf);

impl Sandbox {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("portcullis-cli-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // Where the tests are built nobody else may look.
        let (built, here) = (Path::new(env!("CARGO_BIN_EXE_portcullis")), path.join("portcullis"));
        fs::hard_link(built, &here).or_else(|_| fs::copy(built, &here).map(drop)).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it, as a word of a command line.
    pub(crate) fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A program that starts in it, finds the binary, and inherits no configuration.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.current_dir(&self.0).env_clear().env("PATH", format!("{}:{path}", self.0.display()));
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command("portcullis").args(words).output().unwrap()
    }

    /// As nobody; where the test is somebody without rights already, as that.
    pub(crate) fn run_as_nobody(&self, words: &[&str]) -> Output {
        let mut command = self.command("portcullis");
        drop_rights(&mut command);
        command.args(words).output().unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn drop_rights(command: &mut Command) {
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
