//! The API server by `kubectl proxy` on a socket: a kubectl for each of many changes would be a program of 60 MB for each.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Cluster, DEADLINE, until};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy, which ends with this value.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    proxy: Child,
}

impl Api {
    /// Starts one.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("portcullis-api-{}.sock", std::process::id()));
        let flag = format!("--unix-socket={}", socket.display());
        // A group of its own: what is called kubectl may be a script.
        let mut command = cluster.kubectl_command(&["proxy", &flag]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let proxy = quiet.process_group(0).spawn().context("starting kubectl proxy")?;
        let api = Self { socket, proxy };
        let up = until(DEADLINE, || Ok(api.call("GET", "/readyz", None).ok().map(drop)))?;
        up.context("kubectl proxy does not answer")?;
        Ok(api)
    }

    /// A request; the status and the body of its answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = UnixStream::connect(&self.socket).context("connecting to kubectl proxy")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let status = head.split_whitespace().nth(1).context("an answer has a status")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// A request that has to succeed, or be answered by this status.
    pub fn done(&self, method: &str, path: &str, body: Option<&Value>, or: u16) -> Result<()> {
        let (status, said) = self.call(method, path, body)?;
        if (200..300).contains(&status) || status == or {
            return Ok(());
        }
        bail!("{method} {path}: {status} {said}")
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let group = i32::try_from(self.proxy.id()).map(Pid::from_raw);
        // Nothing to be done about one that has ended by itself.
        let _ = group.map(|group| killpg(group, Signal::SIGKILL));
        let _ = self.proxy.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
