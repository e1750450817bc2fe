//! Talking to a node.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use super::secret::{Passwords, REPLICATOR, SUPERUSER};
use crate::cluster::Cluster;
use crate::topology::Node;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long to wait until one is logged in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// The parameters of a connection to `node` as its superuser, for any client in this process.
///
/// # Errors
/// When the password cannot be read.
pub fn connection(cluster: &Cluster, node: &Node) -> Result<postgres::Config> {
    connection_as(cluster, node, SUPERUSER)
}

fn connection_as(cluster: &Cluster, node: &Node, user: &str) -> Result<postgres::Config> {
    let (host, port) = cluster.runtime().address(node);
    let mut config = postgres::Config::new();
    config
        .host(&host)
        .port(port)
        .user(user)
        .dbname("postgres")
        .application_name("provision")
        .connect_timeout(CONNECT_TIMEOUT)
        // Nothing here takes long; what hangs is better told than waited for.
        .options("-c statement_timeout=30s");
    if !cluster.record.config.trust {
        let passwords = Passwords::read(&cluster.directory.passwords())?;
        config.password(if user == REPLICATOR { passwords.replicator } else { passwords.superuser });
    }
    Ok(config)
}

/// Connects, if that takes no longer than `patience`. A server may take a connection and then say nothing for ever, as a PolarDB
/// does whose pfsd is gone; the time limit of a connection is over by then.
fn connect_within(
    config: postgres::Config,
    patience: Duration,
) -> Option<std::result::Result<Client, postgres::Error>> {
    let (tell, told) = mpsc::channel();
    // Where nothing comes of it, it ends with this process at the latest; and nobody may wait for the outcome any more.
    thread::spawn(move || drop(tell.send(Box::new(config.connect(NoTls)))));
    told.recv_timeout(patience).ok().map(|outcome| *outcome)
}

/// Connects to `node` as its superuser.
pub(super) fn connect(cluster: &Cluster, node: &Node) -> Result<Client> {
    match connect_within(connection(cluster, node)?, LOGIN_TIMEOUT) {
        Some(outcome) => outcome.map_err(|error| failed(node, "cannot connect to", error)),
        None => Err(silent(node)),
    }
}

/// Whether [`REPLICATOR`] can log in with its password.
pub(super) fn replicator_can_log_in(cluster: &Cluster, node: &Node) -> Result<bool> {
    match connect_within(connection_as(cluster, node, REPLICATOR)?, LOGIN_TIMEOUT) {
        Some(Ok(_)) => Ok(true),
        Some(Err(error)) if refused_login(&error) => Ok(false),
        Some(Err(error)) => Err(failed(node, "cannot connect to", error)),
        None => Err(silent(node)),
    }
}

/// Connects to `node` if it answers; nothing while it starts up, hangs, or does not run.
pub(super) fn try_connect(cluster: &Cluster, node: &Node) -> Result<Option<Client>> {
    match connect_within(connection(cluster, node)?, LOGIN_TIMEOUT) {
        Some(Ok(client)) => Ok(Some(client)),
        Some(Err(error)) if refused_login(&error) => Err(failed(node, "cannot connect to", error)),
        Some(Err(_)) | None => Ok(None),
    }
}

fn silent(node: &Node) -> Error {
    let seconds = LOGIN_TIMEOUT.as_secs();
    let message = format!("{} (port {}) takes a connection and says nothing for {seconds} s", node.name, node.port);
    Error::new(ErrorKind::Io, message).with_hint("see `provision status`, and go on with `provision repair`")
}

fn refused_login(error: &postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(code) if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
    )
}

/// An error of the database or of the connection to it. `what` is what was tried, such as "cannot connect to".
pub(super) fn failed(node: &Node, what: &str, error: postgres::Error) -> Error {
    let login = refused_login(&error);
    let described = Error::new(ErrorKind::Io, format!("{what} {} (port {})", node.name, node.port)).with_source(error);
    if login {
        described.with_hint("the passwords in the cluster's pgpass file are not those of the database")
    } else {
        described
    }
}

/// Adds what was being tried to an error of the database.
pub(super) trait OnNode<T> {
    fn on(self, node: &Node, what: &str) -> Result<T>;
}

impl<T> OnNode<T> for std::result::Result<T, postgres::Error> {
    fn on(self, node: &Node, what: &str) -> Result<T> {
        self.map_err(|error| failed(node, what, error))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(listener.local_addr().unwrap().port()).user("x");
        assert!(connect_within(config.clone(), Duration::from_millis(200)).is_none());
        drop(listener);
        assert!(connect_within(config, Duration::from_secs(60)).unwrap().is_err());
    }
}
