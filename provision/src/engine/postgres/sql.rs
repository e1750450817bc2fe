//! Talking to a node.

use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

use super::secret::{Passwords, REPLICATOR, SUPERUSER};
use crate::cluster::Cluster;
use crate::topology::Node;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Connects to `node` as its superuser.
pub(super) fn connect(cluster: &Cluster, node: &Node) -> Result<Client> {
    connection(cluster, node)?.connect(NoTls).map_err(|error| failed(node, "cannot connect to", error))
}

/// Whether [`REPLICATOR`] can log in with its password.
pub(super) fn replicator_can_log_in(cluster: &Cluster, node: &Node) -> Result<bool> {
    match connection_as(cluster, node, REPLICATOR)?.connect(NoTls) {
        Ok(_) => Ok(true),
        Err(error) if refused_login(&error) => Ok(false),
        Err(error) => Err(failed(node, "cannot connect to", error)),
    }
}

/// Connects to `node` if it answers; nothing while it starts up, or does not run.
pub(super) fn try_connect(cluster: &Cluster, node: &Node) -> Result<Option<Client>> {
    match connection(cluster, node)?.connect(NoTls) {
        Ok(client) => Ok(Some(client)),
        Err(error) if refused_login(&error) => Err(failed(node, "cannot connect to", error)),
        Err(_) => Ok(None),
    }
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
