//! A Docker daemon as the rest of this runtime sees it: one call at a time, and errors that say what to do.

use std::future::Future;
use std::io;
use std::time::Duration;

use blockdev::{Cancel, Error, ErrorKind, Result};
use bollard::API_DEFAULT_VERSION;
use bollard::errors::Error as DockerError;

use super::endpoint::{Endpoint, Transport};
use super::transport;

/// The oldest API that has what is used here: that of Docker 20.10.
pub(super) const API_MIN: (u32, u32) = (1, 41);
/// How long a request may take: the daemon makes containers one after the other.
const TIMEOUT_S: u64 = 120;

/// A daemon that answers, and speaks a version that both know.
pub(super) struct Client {
    pub(super) endpoint: Endpoint,
    docker: bollard::Docker,
    // Of this thread alone: the calls are made one after the other, as the steps are.
    tokio: tokio::runtime::Runtime,
}

impl Client {
    /// Connects to the daemon at `endpoint`.
    ///
    /// # Errors
    /// When nobody answers there, this user may not ask, or the daemon is too old.
    pub(super) fn connect(endpoint: &Endpoint) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::io("cannot set up what talks to Docker", source))?;
        let docker = connect(endpoint)?;
        let docker = tokio.block_on(docker.negotiate_version()).map_err(|source| unreachable(endpoint, source))?;
        let version = docker.client_version();
        let (major, minor) = (version.major_version, version.minor_version);
        if (major as u32, minor as u32) < API_MIN {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "Docker at {endpoint} speaks version {major}.{minor} of its API; {}.{} is needed",
                    API_MIN.0, API_MIN.1
                ),
            )
            .with_hint("update it: Docker 20.10 is new enough"));
        }
        Ok(Self { endpoint: endpoint.clone(), docker, tokio })
    }

    /// What `call` asks of the daemon; `what` says what is tried, such as "cannot make the network x".
    pub(super) fn call<T, F>(&self, what: impl FnOnce() -> String, call: impl FnOnce(bollard::Docker) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, DockerError>>,
    {
        self.tokio.block_on(call(self.docker.clone())).map_err(|error| self.described(what(), error))
    }

    /// The same; nothing when what it is about does not exist.
    pub(super) fn look<T, F>(
        &self,
        what: impl FnOnce() -> String,
        call: impl FnOnce(bollard::Docker) -> F,
    ) -> Result<Option<T>>
    where
        F: Future<Output = Result<T, DockerError>>,
    {
        match self.tokio.block_on(call(self.docker.clone())) {
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            outcome => outcome.map(Some).map_err(|error| self.described(what(), error)),
        }
    }

    /// Waits for what takes long, unless somebody asks to stop.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>, what: &str, cancel: &Cancel) -> Result<T> {
        const INTERVAL: Duration = Duration::from_millis(20);
        self.tokio.block_on(async {
            tokio::pin!(future);
            loop {
                match tokio::time::timeout(INTERVAL, &mut future).await {
                    Ok(outcome) => return Ok(outcome),
                    Err(_) => cancel.check(what)?,
                }
            }
        })
    }

    /// Waits for `future`.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.tokio.block_on(future)
    }

    pub(super) fn docker(&self) -> bollard::Docker {
        self.docker.clone()
    }

    /// `error` of this daemon while doing `what`.
    pub(super) fn described(&self, what: String, error: DockerError) -> Error {
        match error {
            DockerError::DockerResponseServerError { status_code, message } => {
                let kind = match status_code {
                    404 => ErrorKind::NotFound,
                    409 => ErrorKind::Refused,
                    _ if message.contains("no space left on device") => ErrorKind::NoSpace,
                    _ => ErrorKind::Io,
                };
                Error::new(kind, format!("{what}: Docker says: {}", message.trim()))
            }
            error if io_error(&error).is_some() => unreachable(&self.endpoint, error),
            error => Error::new(ErrorKind::Io, what).with_source(error),
        }
    }
}

fn connect(endpoint: &Endpoint) -> Result<bollard::Docker> {
    use bollard::Docker;
    let connected = match &endpoint.transport {
        Transport::Socket(path) => Docker::connect_with_unix(&path.to_string_lossy(), TIMEOUT_S, API_DEFAULT_VERSION),
        #[cfg(windows)]
        Transport::Pipe(url) => Docker::connect_with_named_pipe(url, TIMEOUT_S, API_DEFAULT_VERSION),
        #[cfg(not(windows))]
        Transport::Pipe(url) => Err(DockerError::UnsupportedURISchemeError { uri: url.clone() }),
        Transport::Tcp { address, certificates: None } => transport::tcp(address, TIMEOUT_S),
        Transport::Tcp { address, certificates: Some(directory) } => {
            transport::tls(address, transport::tls_configuration(directory)?, TIMEOUT_S)
        }
        Transport::Ssh(url) => transport::ssh(url, TIMEOUT_S),
    };
    connected.map_err(|source| unreachable(endpoint, source))
}

/// Why nobody answers, and what to do about it.
fn unreachable(endpoint: &Endpoint, source: DockerError) -> Error {
    let kind = match &source {
        DockerError::SocketNotFoundError(_) => Some(io::ErrorKind::NotFound),
        source => io_error(source).map(io::Error::kind),
    };
    let other = "name another one with --docker, or do without: --runtime local";
    let (kind, message, hint) = match (&endpoint.transport, kind) {
        (Transport::Socket(path), Some(io::ErrorKind::PermissionDenied)) => (
            ErrorKind::Permission,
            format!("this user may not use Docker at {}", path.display()),
            "sudo usermod -aG docker $USER, then log in again; or run this as root".to_owned(),
        ),
        (Transport::Socket(_), Some(io::ErrorKind::NotFound)) => (
            ErrorKind::NotFound,
            format!("there is no Docker at {endpoint}"),
            format!("start it (systemctl start docker) or install it (apt-get install docker.io); {other}"),
        ),
        (Transport::Socket(_), Some(io::ErrorKind::ConnectionRefused)) => (
            ErrorKind::Io,
            format!("Docker at {endpoint} does not run"),
            format!("start it: systemctl start docker; {other}"),
        ),
        _ => (
            ErrorKind::Io,
            format!("Docker at {endpoint} does not answer: {}", root(&source).to_string().trim_end()),
            format!("is it running, and reachable from here? {other}"),
        ),
    };
    Error::new(kind, message).with_source(source).with_hint(hint)
}

/// What `error` comes from in the end.
fn root(error: &DockerError) -> &dyn std::error::Error {
    let mut root: &dyn std::error::Error = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root
}

/// The system call's error below `error`, if that is what it comes from.
fn io_error(error: &DockerError) -> Option<&io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(found) = current.downcast_ref::<io::Error>() {
            return Some(found);
        }
        cause = current.source();
    }
    None
}
