//! The agent's end of the socket. Trusts nobody who can connect beyond what a verb needs: sizes, times and
//! numbers are bounded, so that a stuck client costs one place and nothing else.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use portcullis_policy::model::ObjectKey;
use serde::Serialize;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::cni::{CniAnswer, CniRequest, LONGEST_PATIENCE_MS};
use super::{Backend, CniAsk, Refusal, Request, observing, socket};
use crate::output::Exit;
use crate::verbs::wait::{WaitRequest, Waited};
use crate::verbs::{explain, matrix};
use crate::waiting::Outwaited;
use crate::world::AskKernel;

/// The longest request.
const MAX_REQUEST: u64 = 64 << 10;

/// The most clients at a time; more wait.
const MAX_CLIENTS: usize = 32;

/// The most of them that observe: they stay, and must not keep those out who ask how the node does.
const MAX_OBSERVERS: usize = 16;

/// The longest that a client may wait for something.
const MAX_WAIT: Duration = Duration::from_hours(1);
/// The most CNI plugins that wait: they must not keep those out who ask how the node does. A node has some hundreds of
/// pods at most.
const MAX_PLUGINS: usize = 1_024;

/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// How long a plugin waits for what needs no waiting.
const PLUGIN_TIME: Duration = Duration::from_secs(2);

/// How long a client may take to read a line.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// What the server is given.
pub(crate) type Shared = Arc<dyn Backend + Send + Sync>;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody answers on it.
    #[error("{}: another agent runs here: stop it, or choose another --run-dir", .0.display())]
    Busy(PathBuf),
    /// Something else is in its place.
    #[error("{}: is no socket: remove it, or choose another --run-dir", .0.display())]
    NotASocket(PathBuf),
    /// Others could put their own socket there.
    #[error(
        "{}: belongs to another user or others may write to it: choose another --run-dir, or make it root's with \
         mode 0700", .0.display()
    )]
    OpenDirectory(PathBuf),
    /// The system refused.
    #[error("{operation} {}: {cause}: run as root, or choose another --run-dir", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        cause: io::Error,
    },
}

/// Makes the run directory (mode 0700) and the socket (mode 0600) in it. To be called within a runtime.
pub fn bind(run_dir: &Path) -> Result<UnixListener, BindError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |cause| BindError::Io { operation, path, cause }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(failed("make the run directory", run_dir))?;
    let facts = fs::metadata(run_dir).map_err(failed("read", run_dir))?;
    if facts.uid() != geteuid().as_raw() || facts.mode() & 0o022 != 0 {
        return Err(BindError::OpenDirectory(run_dir.to_owned()));
    }
    let path = socket(run_dir);
    clear(&path)?;
    // A socket gets its mode when it is bound; to change it later would be too late.
    let before = umask(Mode::S_IRWXG | Mode::S_IRWXO | Mode::S_IXUSR);
    let bound = UnixListener::bind(&path);
    umask(before);
    let listener = bound.map_err(failed("bind", &path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed("chmod", &path))?;
    Ok(listener)
}

/// Takes a socket away on which nobody answers.
fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |operation, cause| BindError::Io { operation, path: path.to_owned(), cause };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", error)),
        Ok(facts) if !facts.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(BindError::Busy(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| failed("remove the stale socket", error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("connect to", error)),
    }
}

/// Answers until it is dropped; clients that are being answered then go with the runtime.
pub(crate) async fn serve(listener: UnixListener, shared: Shared) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let observers = Arc::new(Semaphore::new(MAX_OBSERVERS));
    let plugins = Arc::new(Semaphore::new(MAX_PLUGINS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, observers) = (Arc::clone(&shared), Arc::clone(&observers));
                let plugins = Arc::clone(&plugins);
                tokio::spawn(async move {
                    if let Err(error) = client(stream, shared, place, &observers, &plugins).await {
                        tracing::debug!(%error, "a client of the socket went");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others need time to give some back.
                tracing::warn!(%error, "accepting on agent.sock failed");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(
    stream: UnixStream,
    shared: Shared,
    place: OwnedSemaphorePermit,
    observers: &Semaphore,
    plugins: &Semaphore,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut bounded = (&mut reader).take(MAX_REQUEST);
    let read = bounded.read_until(b'\n', &mut line);
    timeout(REQUEST_TIME, read).await.map_err(io::Error::from)??;
    match serde_json::from_slice::<Request>(&line) {
        Err(error) => {
            let error =
                format!("the request is not understood ({error}): use a verb of the agent's own version");
            send(&mut writer, &Refusal { error, exit: Exit::Usage.code() }).await
        }
        Ok(Request::Observe(request)) => {
            let Ok(_place) = observers.try_acquire() else {
                let error = format!("{MAX_OBSERVERS} others observe already: end one of them");
                return send(&mut writer, &Refusal { error, exit: Exit::Unfit.code() }).await;
            };
            observing::observe(reader, writer, shared.as_ref(), &request).await
        }
        Ok(Request::Wait(request)) => wait(reader, writer, shared.as_ref(), &request).await,
        Ok(Request::Cni(request)) => {
            drop(place);
            let answer = match plugins.try_acquire() {
                Ok(_place) => plugin(shared.as_ref(), request).await,
                Err(_) => CniAnswer::waiting(format!("{MAX_PLUGINS} other pods wait already")),
            };
            send(&mut writer, &answer).await
        }
        Ok(
            request @ (Request::Explain(_)
            | Request::Matrix(_)
            | Request::Page(_)
            | Request::Status
            | Request::Endpoints(_)
            | Request::Policies(_)),
        ) => {
            let line = tokio::task::spawn_blocking(move || judge(&request, shared.as_ref()))
                .await
                .map_err(io::Error::other)??;
            write(&mut writer, &line).await
        }
    }
}

/// Waits until it is so, the time is over, or the client goes.
async fn wait(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    backend: &(dyn Backend + Send + Sync),
    request: &WaitRequest,
) -> io::Result<()> {
    let WaitRequest { policy, milliseconds } = request;
    let key = ObjectKey::new(policy.0.namespace.as_str(), policy.0.name.as_str());
    let time = Duration::from_millis(*milliseconds).min(MAX_WAIT);
    let mut nothing = [0];
    let outcome = tokio::select! {
        outcome = backend.waiter().policy(&key, time) => outcome,
        _ = reader.read(&mut nothing) => return Ok(()),
    };
    let why = match outcome {
        Ok(()) => return send(&mut writer, &Waited { node: backend.node() }).await,
        Err(Outwaited::Absent) => "the source does not show it: apply it, or mend its name",
        Err(Outwaited::NotInForce) => "`portcullis status` says what is wrong",
    };
    let error = format!("NetworkPolicy {policy} is not in force after {} s: {why}", time.as_secs_f64());
    send(&mut writer, &Refusal { error, exit: Exit::Negative.code() }).await
}

/// What the main loop says to a plugin; when the plugin's time is over, what it waited for.
async fn plugin(backend: &(dyn Backend + Send + Sync), request: CniRequest) -> CniAnswer {
    let Some(main_loop) = backend.cni() else { return CniAnswer::refused("this agent serves no pods") };
    let patience = match &request {
        CniRequest::Hold { patience_ms, .. } => {
            Duration::from_millis((*patience_ms).min(LONGEST_PATIENCE_MS))
        }
        CniRequest::Check(_) | CniRequest::Release(_) | CniRequest::Retain { .. } | CniRequest::Ready => {
            PLUGIN_TIME
        }
    };
    let (answer, mut said) = watch::channel(CniAnswer::waiting("the agent is busy with an earlier change"));
    let asked = async {
        main_loop.send(CniAsk { request, answer }).await.ok()?;
        let is_final = |answer: &CniAnswer| !matches!(answer, CniAnswer::Waiting { .. });
        said.wait_for(is_final).await.ok().map(|answer| answer.clone())
    };
    match timeout(patience, asked).await {
        Ok(Some(answer)) => answer,
        // The main loop let go of it, or did not come to it.
        Ok(None) | Err(_) => said.borrow().clone(),
    }
}

/// The answer's line.
fn judge(request: &Request, backend: &(dyn Backend + Send + Sync)) -> io::Result<Vec<u8>> {
    let kernel = || backend.kernel().map(|kernel| kernel as &dyn AskKernel);
    let answer = match request {
        Request::Explain(request) => {
            explain::explain(&backend.world(), kernel(), request).map(|reply| line_of(&reply))
        }
        Request::Matrix(request) => {
            matrix::matrix(&backend.world(), kernel(), request).map(|reply| line_of(&reply))
        }
        Request::Page(request) => {
            matrix::page::page(&backend.world(), kernel(), request).map(|reply| line_of(&reply))
        }
        Request::Status => Ok(line_of(&backend.status())),
        Request::Endpoints(scope) => Ok(line_of(&backend.endpoints(scope))),
        Request::Policies(request) => {
            Ok(backend.policies(request).map_or_else(|refusal| line_of(&refusal), |found| line_of(&found)))
        }
        Request::Observe(_) | Request::Wait(_) | Request::Cni(_) => {
            return Err(io::Error::other("this is no question"));
        }
    };
    answer.unwrap_or_else(|error| line_of(&Refusal { error: error.to_string(), exit: error.exit().code() }))
}

pub(super) fn line_of<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

pub(super) async fn send<T: Serialize>(writer: &mut OwnedWriteHalf, value: &T) -> io::Result<()> {
    write(writer, &line_of(value)?).await
}

pub(super) async fn write(writer: &mut OwnedWriteHalf, line: &[u8]) -> io::Result<()> {
    // In pieces, so that the time is one of standstill and not of a long answer.
    for piece in line.chunks(64 << 10) {
        timeout(WRITE_TIME, writer.write_all(piece)).await.map_err(io::Error::from)??;
    }
    Ok(())
}
