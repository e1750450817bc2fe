//! Connections to a daemon at the other end of TCP, TLS or SSH.
//!
//! A connection is kept and used again: bollard's own clients make one for each request, which is a handshake, or a whole
//! `ssh`, each time.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use blockdev::{Error, Result};
use bollard::errors::Error as DockerError;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::{Connect, Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tower_service::Service;

/// How long a connection is kept that nobody uses: shorter than any daemon keeps it.
const IDLE: Duration = Duration::from_secs(60);

/// A daemon that listens on `address`, in the clear.
pub(super) fn tcp(address: &str, timeout_s: u64) -> std::result::Result<Docker, DockerError> {
    connect(http_connector(), &format!("http://{address}"), timeout_s)
}

/// A daemon that listens on `address` and speaks TLS.
pub(super) fn tls(address: &str, tls: ClientConfig, timeout_s: u64) -> std::result::Result<Docker, DockerError> {
    connect(HttpsConnector::from((http_connector(), tls)), &format!("https://{address}"), timeout_s)
}

/// A daemon that the `docker` program reaches at the other end of `url`, such as `ssh://me@there:22`.
pub(super) fn ssh(url: &str, timeout_s: u64) -> std::result::Result<Docker, DockerError> {
    // It speaks through ssh, to whomever: the host is a form only.
    connect(Ssh(url.trim_end_matches('/').into()), "http://docker", timeout_s)
}

fn connect<C>(connector: C, url: &str, timeout_s: u64) -> std::result::Result<Docker, DockerError>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector);
    let transport = move |request: BollardRequest| {
        let answer: legacy::ResponseFuture = client.request(request);
        async { answer.await.map_err(DockerError::from) }
    };
    Docker::connect_with_custom_transport(transport, Some(url), timeout_s, API_DEFAULT_VERSION)
}

fn http_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    // Otherwise the kernel keeps every second packet for 40 ms.
    connector.set_nodelay(true);
    connector
}

/// What the certificates in `directory` prove: `ca.pem` who the daemon is, `cert.pem` and `key.pem` who we are.
///
/// # Errors
/// When one of them cannot be used.
pub(super) fn tls_configuration(directory: &Path) -> Result<ClientConfig> {
    let failed = |name: &str, source: Box<dyn std::error::Error + Send + Sync>| {
        Error::invalid(format!("cannot use {} for TLS", directory.join(name).display())).with_source(source).with_hint(
            "DOCKER_CERT_PATH names a directory with ca.pem, cert.pem and key.pem, and so does a Docker context",
        )
    };
    let certificates = |name: &'static str| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(directory.join(name)).and_then(Iterator::collect);
        read.map_err(|source| failed(name, source.into()))
    };
    let mut authorities = RootCertStore::empty();
    for certificate in certificates("ca.pem")? {
        authorities.add(certificate).map_err(|source| failed("ca.pem", source.into()))?;
    }
    let key =
        PrivateKeyDer::from_pem_file(directory.join("key.pem")).map_err(|source| failed("key.pem", source.into()))?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|source| failed("", source.into()))?
        .with_root_certificates(authorities)
        .with_client_auth_cert(certificates("cert.pem")?, key)
        .map_err(|source| failed("cert.pem", source.into()))
}

/// Makes connections through the `ssh` that is installed, with whatever its own configuration says of the host.
#[derive(Debug, Clone)]
struct Ssh(Arc<str>);

impl Service<Uri> for Ssh {
    type Response = TokioIo<SshStream>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _form: Uri) -> Self::Future {
        std::future::ready(SshStream::open(&self.0).map(TokioIo::new))
    }
}

/// What the daemon at the other end of an `ssh` says, and what it hears.
struct SshStream {
    output: ChildStdout,
    /// Closed when nothing more is said.
    input: Option<ChildStdin>,
    /// What `ssh` says of itself, until the daemon has said anything.
    last_words: Option<LastWords>,
    /// It ends with this.
    _child: Child,
}

type LastWords = Pin<Box<dyn Future<Output = String> + Send>>;

impl SshStream {
    fn open(url: &str) -> io::Result<Self> {
        let mut child = Command::new("ssh")
            // There is nobody to answer a question once for each connection.
            .args(["-T", "-o", "BatchMode=yes", "--", url, "docker", "system", "dial-stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C for us is not for it: what we take back then goes through it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot run ssh: {error}")))?;
        let (Some(input), Some(output), Some(mut errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let last_words: LastWords = Box::pin(async move {
            let mut text = Vec::new();
            // As much as can be had of it.
            let _ = errors.read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Self { output, input: Some(input), last_words: Some(last_words), _child: child })
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.output).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.last_words = None;
        } else if let Some(last_words) = &mut self.last_words {
            let text = ready!(last_words.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, format!("ssh says: {text}"))));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().map_or(Poll::Ready(Ok(())), |input| Pin::new(input).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input = None;
        Poll::Ready(Ok(()))
    }
}

impl Connection for SshStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
