//! How the API server is reached: whose credentials, which times, and when each watch was last heard. Knows no
//! object.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Bytes};
use kube::Client;
use kube::client::{Body, ClientBuilder};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use thiserror::Error;
use tower::{BoxError, Service};

use super::object::Kind;
use crate::clock::monotonic;

/// How long a connection may take to come about.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long an open connection may be silent: the API server sends each watch a bookmark about once a minute, unless
/// nothing changed. Then the watch is opened anew.
pub const SILENCE: Duration = Duration::from_secs(90);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The file of `--kubeconfig`.
    #[error("--kubeconfig {}: {cause}: name a file that kubectl can use", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: kube::config::KubeconfigError,
    },
    /// Neither in a pod nor beside a kubeconfig.
    #[error(
        "--source kube: no API server is known ({0}): run in a pod with a service account, or give --kubeconfig FILE"
    )]
    Nowhere(kube::config::InferConfigError),
    /// What was found cannot be used.
    #[error("--source kube: the credentials cannot be used: {0}: mend the kubeconfig or the service account")]
    Unusable(#[from] kube::Error),
}

/// Where the API server is, and how to speak to it.
pub async fn config(kubeconfig: Option<&Path>) -> Result<Config, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |cause| ClientError::Kubeconfig { path: path.to_owned(), cause };
            let read = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(failed)?
        }
        None => match Config::incluster() {
            Ok(config) => config,
            Err(_) => Config::infer().await.map_err(ClientError::Nowhere)?,
        },
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // Or the time in which a connection waited for its next request would count.
    config.reset_reader_on_write = true;
    Ok(config)
}

/// A client that notes when it heard of each kind.
pub fn client(config: Config, heard: &Arc<Heard>) -> Result<Client, ClientError> {
    let heard = Arc::clone(heard);
    let listening = tower::layer::layer_fn(move |inner| Listening { inner, heard: Arc::clone(&heard) });
    Ok(ClientBuilder::try_from(config)?.with_layer(&listening).build())
}

/// When each kind was last heard of, in nanoseconds of the monotonic clock; 0: never. Every byte of an answer
/// counts, bookmarks too, which the watcher keeps to itself.
#[derive(Debug, Default)]
pub struct Heard([AtomicU64; Kind::ALL.len()]);

impl Heard {
    /// When.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Option<u64> {
        let at = self.0.get(kind.index()).map_or(0, |at| at.load(Ordering::Relaxed));
        (at != 0).then_some(at)
    }

    fn now(&self, kind: Kind) {
        if let Some(at) = self.0.get(kind.index()) {
            at.store(monotonic(), Ordering::Relaxed);
        }
    }
}

/// The kind that a request lists or watches.
fn asks_for(method: &Method, uri: &Uri) -> Option<Kind> {
    if method != Method::GET {
        return None;
    }
    let last = uri.path().rsplit('/').next()?;
    Kind::ALL.into_iter().find(|kind| kind.plural() == last)
}

/// A streaming list that begins at version 0 may show any state that the server once had, and another server's may
/// be behind what was heard: policies would go and come again. Without a version it shows the newest.
fn newest(uri: &Uri) -> Option<Uri> {
    let query = uri.query()?;
    if !query.split('&').any(|pair| pair == "sendInitialEvents=true") {
        return None;
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| *pair != "resourceVersion=0").collect();
    let mut parts = uri.clone().into_parts();
    let text = format!("{}?{}", uri.path(), kept.join("&"));
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

/// Listens to what passes.
#[derive(Clone, Debug)]
struct Listening<S> {
    inner: S,
    heard: Arc<Heard>,
}

impl<S, B> Service<Request<Body>> for Listening<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let kind = asks_for(request.method(), request.uri());
        if kind.is_some()
            && let Some(uri) = newest(request.uri())
        {
            *request.uri_mut() = uri;
        }
        let heard = Arc::clone(&self.heard);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let kind = kind.filter(|_| answer.status().is_success());
            if let Some(kind) = kind {
                heard.now(kind);
            }
            Ok(answer.map(|body| {
                body.map_frame(move |frame| {
                    if let Some(kind) = kind {
                        heard.now(kind);
                    }
                    frame
                })
                .map_err(Into::into)
                .boxed_unsync()
            }))
        })
    }
}
