//! An agent beside a file that it cannot read: what was never read keeps the node from being ready.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::is_root;

const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: x}}\n";
const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: x}\nspec: {podSelector: {}}\n";

/// An agent in namespaces of its own, without a pod. It ends with this.
struct Running {
    dir: PathBuf,
    child: Child,
}

impl Running {
    fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("bpf")).unwrap();
        let words = "mount -t bpf bpf \"$1/bpf\" && exec \"$0\" agent --source \"$1/source\" --run-dir \"$1/run\" \
                     --bpffs \"$1/bpf\"";
        let child = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", words])
            .arg(agent())
            .arg(dir)
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { dir: dir.to_owned(), child }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    fn wait(&mut self, what: &str, until: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !until(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{what}: {ended:?}: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        self.dir.join("run/ready").exists()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_is_ready_once_every_file_has_been_read_whole() {
    if !is_root("an agent in namespaces of its own") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("portcullis-broken-{}", std::process::id()));
    fs::create_dir_all(dir.join("source")).unwrap();
    fs::write(dir.join("source/ns.yaml"), NAMESPACE).unwrap();
    let file = dir.join("source/policy.yaml");
    for broken in ["a: [", &POLICY.replace("kind: NetworkPolicy", "kind: NetworkPolcy")] {
        fs::write(&file, broken).unwrap();
        let mut running = Running::start(&dir);
        running.wait("it enforces the rest", |running| running.log().contains("enforcing"));
        let told = "ERROR portcullis_agent::daemon: policy.yaml: has not been read whole";
        assert!(running.log().contains(told), "{}", running.log());
        assert!(!running.is_ready(), "{}", running.log());
        fs::write(&file, POLICY).unwrap();
        running.wait("it is ready once the file is mended", Running::is_ready);
        // From here on it knows what the file said.
        fs::write(&file, broken).unwrap();
        running.wait("it says what is wrong", |running| running.log().matches("policy.yaml").count() > 2);
        assert!(running.is_ready());
        drop(running);
        fs::remove_dir_all(dir.join("run")).unwrap();
    }
    fs::remove_dir_all(&dir).unwrap();
}
