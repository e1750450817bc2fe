//! The disk over NBD: to other programs, virtual machines and other machines.
//!
//! Each client has a thread of its own, which has a [port](crate::emulate::Port) of its own: nothing is handed from one
//! thread to another on the way of a request. The thread takes requests as they come, up to a bound, and replies in the order
//! in which they are done. All exports are the same disk, each as another host sees it; so clients may use several
//! connections at once.

mod handshake;
mod stream;
mod tls;
mod transmission;
mod wire;

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::mailbox::lock;
use super::memory::Budget;
use crate::error::{Context, Error, Result};
use stream::{Socket, Stream};
use transmission::Transmission;

pub use tls::Certificates;

/// The port that IANA has for NBD.
pub const PORT: u16 = 10809;

/// How long a client may take until its first request can come.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Most clients at once, those that have not said who they are included.
const CLIENTS_MAX: usize = 4096;

/// The memory that data of large or many requests takes, of all clients together, in bytes.
const MEMORY_MAX: u64 = 512 << 20;

/// A thread of a client keeps its data elsewhere.
const STACK_BYTES: usize = 256 << 10;

/// How long clients have to take their last replies when the server ends.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// Where clients find the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A Unix socket, made with mode 0600.
    Unix(PathBuf),
    /// A host and port, as `ToSocketAddrs` takes them.
    Tcp(String),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!("{text:?} is no address for NBD: {why}"))
                .with_hint("unix:/run/disk.sock, tcp:127.0.0.1:10809, tcp:[::1]:10809, or tcp:HOST for port 10809")
        };
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", place)) if !place.is_empty() => {
                let has_port = place.rsplit_once(':').is_some_and(|(host, port)| {
                    port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
                });
                Ok(Self::Tcp(if has_port { place.to_owned() } else { format!("{place}:{PORT}") }))
            }
            _ => Err(bad("it starts neither with unix: nor with tcp:")),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

impl Address {
    /// The URI by which a client asks for the export of `host`
    /// (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).
    #[must_use]
    pub fn uri(&self, host: &str, encrypted: bool) -> String {
        let s = if encrypted { "s" } else { "" };
        match self {
            Self::Unix(path) => format!("nbd{s}+unix:///{host}?socket={}", path.display()),
            Self::Tcp(place) => format!("nbd{s}://{place}/{host}"),
        }
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `address`; returns where that is, with the port that the system chose for port 0.
    fn bind(address: &Address) -> Result<(Self, Address)> {
        let what = || format!("cannot listen at {address}");
        match address {
            Address::Unix(path) => {
                free_name(path)?;
                let listener = UnixListener::bind(path).context(what)?;
                fs::set_permissions(path, Permissions::from_mode(0o600)).context(what)?;
                listener.set_nonblocking(true).context(what)?;
                Ok((Self::Unix(listener), address.clone()))
            }
            Address::Tcp(place) => {
                let addresses: Vec<SocketAddr> = place.to_socket_addrs().context(what)?.collect();
                let listener = TcpListener::bind(&*addresses).context(what)?;
                listener.set_nonblocking(true).context(what)?;
                let bound = listener.local_addr().context(what)?;
                Ok((Self::Tcp(listener), Address::Tcp(bound.to_string())))
            }
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(listener) => Ok(Socket::new(OwnedFd::from(listener.accept()?.0))),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // Replies are sent when they are whole; to wait for more helps nobody. Without it, they are only slower.
                let _ = stream.set_nodelay(true);
                Ok(Socket::new(OwnedFd::from(stream)))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Removes a socket that nobody listens to any more.
fn free_name(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Error::refused(format!("{} is there already, and is no socket", path.display())));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).context(|| format!("cannot remove the old socket {}", path.display()))
        }
        _ => Err(Error::refused(format!("somebody listens at {} already", path.display()))
            .with_hint("choose another name, or end that server")),
    }
}

/// The disk over NBD, until this is dropped.
#[derive(Debug)]
pub struct Server {
    address: Address,
    encrypted: bool,
    clients: Arc<Clients>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `disk` at `address`, to each host as the export of its name. With `certificates`, only through TLS.
    ///
    /// # Errors
    /// When nobody can listen there, or the certificates are no good.
    pub fn start(disk: &Arc<Disk>, address: &Address, certificates: Option<&Certificates>) -> Result<Self> {
        let tls = certificates.map(Certificates::load).transpose()?;
        let (listener, address) = Listener::bind(address)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context(|| "cannot make an event counter")?;
        let (clients, stop) = (Arc::new(Clients::default()), Arc::new(stop));
        let encrypted = tls.is_some();
        let serve =
            Serve { disk: Arc::clone(disk), tls, clients: Arc::clone(&clients), budget: Budget::new(MEMORY_MAX) };
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("nbd".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || serve.listen(&listener, &stopped))
            .context(|| "cannot start a thread")?;
        Ok(Self { address, encrypted, clients, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The URI of the export of `host`.
    #[must_use]
    pub fn uri(&self, host: &str) -> String {
        self.address.uri(host, self.encrypted)
    }

    /// How many clients are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        lock(&self.clients.0).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its counter cannot overflow.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A listener that panicked listens no more.
            let _ = thread.join();
        }
        if let Address::Unix(path) = &self.address {
            // Somebody may have removed it.
            let _ = fs::remove_file(path);
        }
        self.clients.end();
    }
}

/// Everybody who is connected.
#[derive(Debug, Default)]
struct Clients(Mutex<Vec<Client>>);

#[derive(Debug)]
struct Client {
    socket: Arc<Socket>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    fn gone(&self, socket: &Arc<Socket>) {
        lock(&self.0).retain(|client| !Arc::ptr_eq(&client.socket, socket));
    }

    /// Lets no more requests come, and waits until those that are there are answered, or nobody takes the answers.
    fn end(&self) {
        lock(&self.0).iter().for_each(|client| client.socket.shutdown(Shutdown::Read));
        let started = Instant::now();
        while !lock(&self.0).is_empty() && started.elapsed() < GOODBYE_MAX {
            thread::sleep(Duration::from_millis(1));
        }
        lock(&self.0).iter().for_each(|client| client.socket.shutdown(Shutdown::Both));
        let threads: Vec<_> = lock(&self.0).iter_mut().filter_map(|client| client.thread.take()).collect();
        for thread in threads {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What a listener knows.
struct Serve {
    disk: Arc<Disk>,
    tls: Option<Arc<ServerConfig>>,
    clients: Arc<Clients>,
    budget: Arc<Budget>,
}

impl Serve {
    fn listen(&self, listener: &Listener, stop: &EventFd) {
        loop {
            let mut fds =
                [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
            // A signal is none of our business.
            let _ = poll(&mut fds, PollTimeout::NONE);
            if fds[1].any() == Some(true) {
                return;
            }
            match listener.accept() {
                Ok(socket) => self.admit(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Short of descriptors or memory, or the client has gone again: others may fare better, later.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn admit(&self, socket: Socket) {
        let socket = Arc::new(socket);
        let mut clients = lock(&self.clients.0);
        if clients.len() >= CLIENTS_MAX {
            return;
        }
        let (theirs, all) = (Arc::clone(&socket), Arc::clone(&self.clients));
        let (disk, tls, budget) = (Arc::clone(&self.disk), self.tls.clone(), Arc::clone(&self.budget));
        let work = move || {
            // A client that goes without a goodbye, or talks nonsense, is no failure of ours, and there is nobody to tell.
            let _ = serve(&disk, Stream::new(Arc::clone(&theirs)), tls.as_ref(), budget);
            theirs.shutdown(Shutdown::Both);
            all.gone(&theirs);
        };
        let thread = thread::Builder::new().name("nbd-client".to_owned()).stack_size(STACK_BYTES).spawn(work);
        // It looks for itself in the list when it ends, and finds it: the list is locked until it is in there.
        if let Ok(thread) = thread {
            clients.push(Client { socket, thread: Some(thread) });
        }
    }
}

/// One client, from its first byte to its last.
fn serve(disk: &Arc<Disk>, mut stream: Stream, tls: Option<&Arc<ServerConfig>>, budget: Arc<Budget>) -> Result<()> {
    let what = || "a client did not come to an agreement";
    let agreed = handshake::negotiate(&mut stream, disk, tls, Instant::now() + HANDSHAKE_MAX).context(what)?;
    let Some(agreement) = agreed else { return Ok(()) };
    let port = disk.open_port(transmission::IN_FLIGHT_MAX)?;
    Transmission::new(port, stream, agreement, budget).run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, shown, uri) in [
            ("unix:/run/a.sock", "unix:/run/a.sock", "nbd+unix:///h?socket=/run/a.sock"),
            ("tcp:127.0.0.1", "tcp:127.0.0.1:10809", "nbd://127.0.0.1:10809/h"),
            ("tcp:[::1]:99", "tcp:[::1]:99", "nbd://[::1]:99/h"),
            ("tcp:host:0", "tcp:host:0", "nbd://host:0/h"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.uri("h", false).as_str()), (shown, uri));
        }
        for bad in ["", "unix:", "tcp:", "/run/a.sock", "127.0.0.1:10809"] {
            assert_eq!(bad.parse::<Address>().unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
