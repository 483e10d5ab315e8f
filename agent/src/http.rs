//! The pages that probes and Prometheus read, over HTTP/1.1. Anybody who reaches the listener may ask, so
//! everything is bounded: connections, headers, times; there is no request body, and one request a connection.
//! Runs on a thread of its own. Knows no page.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 32;
/// Bytes of a request's head; the least that hyper takes.
const MAX_HEAD: usize = 8_192;
/// Headers of a request.
const MAX_HEADERS: usize = 32;
/// How long a client may take for its request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last.
const CONNECTION_TIME: Duration = Duration::from_secs(15);

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// 200 or 503.
    pub status: StatusCode,
    /// Media type.
    pub media: &'static str,
    /// What it says.
    pub body: String,
}

impl Page {
    /// Plain text.
    #[must_use]
    pub const fn text(status: StatusCode, body: String) -> Self {
        Self { status, media: "text/plain; charset=utf-8", body }
    }
}

/// What a listener answers.
pub trait Pages: Send + Sync {
    /// The page at a path; `None` where there is none.
    fn page(&self, path: &str) -> Option<Page>;
}

/// Answers on a listener for as long as the process lives.
pub fn serve(name: &str, listener: StdListener, pages: Arc<dyn Pages>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        runtime.block_on(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => accept(&listener, pages).await,
                Err(error) => tracing::error!("listening: {error}"),
            }
        });
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

async fn accept(listener: &TcpListener, pages: Arc<dyn Pages>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Probes of this host do not wait behind whoever else reaches the port.
    let own_places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let of_peer = if peer.ip().to_canonical().is_loopback() { &own_places } else { &places };
                let Ok(place) = Arc::clone(of_peer).try_acquire_owned() else { continue };
                let pages = Arc::clone(&pages);
                tokio::spawn(async move {
                    // A client that is too slow, or speaks no HTTP, is no matter of ours.
                    let _ = timeout(CONNECTION_TIME, connection(stream, pages)).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others need time to give some back.
                tracing::warn!(%error, "accepting a connection failed");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, pages: Arc<dyn Pages>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, pages.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer<B>(request: &Request<B>, pages: &dyn Pages) -> Response<Full<Bytes>> {
    let mut allow = None;
    let page = if request.method() != Method::GET && request.method() != Method::HEAD {
        allow = Some(HeaderValue::from_static("GET, HEAD"));
        Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned())
    } else {
        let missing = || Page::text(StatusCode::NOT_FOUND, "no such page\n".to_owned());
        pages.page(request.uri().path()).unwrap_or_else(missing)
    };
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.media));
    if let Some(allow) = allow {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    struct One;

    impl Pages for One {
        fn page(&self, path: &str) -> Option<Page> {
            (path == "/one").then(|| Page::text(StatusCode::OK, "fine\n".to_owned()))
        }
    }

    fn start() -> SocketAddr {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        serve("test", listener, Arc::new(One)).unwrap();
        address
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(CONNECTION_TIME * 2)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A refusal may come as a reset behind it.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn pages_are_found_and_the_connection_ends() {
        let address = start();
        let found = ask(address, "GET /one?x HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(found.starts_with("HTTP/1.1 200 OK\r\n") && found.ends_with("\r\n\r\nfine\n"), "{found}");
        let head = ask(address, "HEAD /one HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /one HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn too_much_of_a_head_is_refused() {
        let address = start();
        let long = format!("GET /one HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD * 2));
        assert!(!ask(address, &long).contains(" 200 "));
        let many = "X: x\r\n".repeat(MAX_HEADERS + 1);
        assert!(!ask(address, &format!("GET /one HTTP/1.1\r\nHost: x\r\n{many}\r\n")).contains(" 200 "));
    }

    #[test]
    fn those_who_say_nothing_take_no_place_from_others_for_long() {
        let address = start();
        let silent: Vec<TcpStream> =
            (0..MAX_CONNECTIONS * 2).map(|_| TcpStream::connect(address).unwrap()).collect();
        let begun = std::time::Instant::now();
        while !ask(address, "GET /one HTTP/1.1\r\nHost: x\r\n\r\n").contains(" 200 ") {
            assert!(begun.elapsed() < CONNECTION_TIME * 3, "still no place");
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(silent);
    }
}
