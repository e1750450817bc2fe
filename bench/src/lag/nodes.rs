//! Whom it is about: the writer, its readers, and how to reach them.

use std::collections::HashSet;
use std::time::Duration;

use blockdev::{Error, ErrorKind, Result};
use serde_json::json;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::dsn;
use crate::report::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One database server.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// The name of the node, or host and port.
    pub(super) name: String,
    config: Config,
}

/// A writer, and the readers that follow it.
#[derive(Debug, Clone)]
pub struct Nodes {
    pub(super) subject: String,
    pub(super) writer: Endpoint,
    pub(super) readers: Vec<Endpoint>,
}

/// What a server says of itself.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// Whether it follows another.
    in_recovery: bool,
    /// The same for all servers of one cluster.
    system: i64,
    version: String,
    /// How long it waits on purpose before it replays a commit, in milliseconds.
    pub(super) delay_ms: i64,
    /// Whether `provision` keeps a heartbeat of it.
    pub(super) has_heartbeat: bool,
    settings: serde_json::Value,
}

impl Endpoint {
    fn new(name: Option<String>, mut config: Config) -> Self {
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.application_name("bench lag");
        let name = name.unwrap_or_else(|| {
            let host = match config.get_hosts().first() {
                Some(Host::Tcp(host)) => host.clone(),
                Some(Host::Unix(path)) => path.display().to_string(),
                None => config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
            };
            format!("{host}:{}", config.get_ports().first().unwrap_or(&5432))
        });
        Self { name, config }
    }

    /// A connection of the runtime that this is called in.
    ///
    /// # Errors
    /// When the server does not answer, or does not let us in.
    pub(super) async fn connect(&self) -> Result<Client> {
        let (client, connection) = self.config.connect(NoTls).await.map_err(|source| {
            let login = matches!(source.code(), Some(code) if *code == SqlState::INVALID_PASSWORD
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
            let error = self.failed("cannot connect to", source);
            if login {
                error
                    .with_kind(ErrorKind::Permission)
                    .with_hint("look at the user and the password, or its pg_hba.conf")
            } else {
                error.with_hint("does it run? `provision status` tells")
            }
        })?;
        // Its errors are those of the client, too.
        tokio::spawn(connection);
        Ok(client)
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    async fn about(&self) -> Result<About> {
        let client = self.connect().await?;
        let failed = |error| self.failed("cannot ask for the state of", error);
        let row = client
            .query_one(
                "SELECT pg_is_in_recovery(), (pg_control_system()).system_identifier, current_setting('server_version')",
                &[],
            )
            .await
            .map_err(failed)?;
        let rows = client
            .query(
                "SELECT name, setting, current_setting(name) FROM pg_settings WHERE name IN ('fsync', 'shared_buffers', \
                 'synchronous_commit', 'synchronous_standby_names', 'recovery_min_apply_delay', 'polar_version')",
                &[],
            )
            .await
            .map_err(failed)?;
        let application = provision::engine::postgres::HEARTBEAT_APPLICATION;
        let heartbeat = client
            .query_opt("SELECT FROM pg_stat_activity WHERE application_name = $1 LIMIT 1", &[&application])
            .await
            .map_err(failed)?;
        let mut about = About {
            in_recovery: row.get(0),
            system: row.get(1),
            version: row.get(2),
            delay_ms: 0,
            has_heartbeat: heartbeat.is_some(),
            settings: json!({}),
        };
        for row in rows {
            let (name, raw, shown): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
            if name == "recovery_min_apply_delay" {
                about.delay_ms = raw.parse().unwrap_or(0);
            }
            about.settings[name] = shown.into();
        }
        Ok(about)
    }

    /// That `what`, such as "cannot connect to", failed.
    pub(super) fn failed(&self, what: &str, source: tokio_postgres::Error) -> Error {
        Error::new(ErrorKind::Io, format!("{what} {}", self.name)).with_source(source)
    }
}

impl Nodes {
    /// The nodes of a cluster that `provision` made.
    ///
    /// # Errors
    /// When it has no replica, or its passwords cannot be read.
    pub fn of_cluster(cluster: &provision::Cluster) -> Result<Self> {
        let topology = &cluster.record.topology;
        let endpoint = |node: &provision::topology::Node| -> Result<Endpoint> {
            let config = provision::engine::postgres::connection(cluster, node)?;
            Ok(Endpoint::new(Some(node.name.to_string()), asynchronous(&config)))
        };
        if topology.replicas().is_empty() {
            return Err(Error::refused(format!(
                "cluster {} has no replica that could lag",
                cluster.record.config.name
            ))
            .with_hint("`provision replica add` adds one"));
        }
        Ok(Self {
            subject: format!("cluster {}", cluster.record.config.name),
            writer: endpoint(topology.primary())?,
            readers: topology.replicas().iter().map(endpoint).collect::<Result<_>>()?,
        })
    }

    /// The servers at these connection strings of libpq, the writer first.
    ///
    /// # Errors
    /// When there are fewer than two, one is no connection string, or one is there twice.
    pub fn of_connection_strings(strings: &[String]) -> Result<Self> {
        let mut endpoints = Vec::new();
        for (index, text) in strings.iter().enumerate() {
            let config = dsn::parse(text).map_err(|error| {
                // The string itself may hold a password.
                Error::invalid(format!("connection string {} cannot be used", index + 1)).with_source(error)
            })?;
            endpoints.push(Endpoint::new(None, config));
        }
        let mut names = HashSet::new();
        if let Some(twice) = endpoints.iter().find(|endpoint| !names.insert(endpoint.name.clone())) {
            return Err(Error::invalid(format!("{} is given twice", twice.name))
                .with_hint("give the writer first, then each of its replicas once"));
        }
        let mut endpoints = endpoints.into_iter();
        match (endpoints.next(), endpoints.collect::<Vec<_>>()) {
            (Some(writer), readers) if !readers.is_empty() => {
                Ok(Self { subject: format!("{} and what follows it", writer.name), writer, readers })
            }
            _ => Err(Error::invalid("one connection string is not enough").with_hint(
                "give the writer first, then each of its replicas; or none, for the cluster of `provision`",
            )),
        }
    }

    /// Looks whether the writer writes and the readers follow it; returns what each says of itself, the writer first.
    ///
    /// # Errors
    /// When one does not answer, or is not what it should be.
    pub(super) async fn check(&self) -> Result<Vec<About>> {
        let writer = self.writer.about().await?;
        if writer.in_recovery {
            return Err(Error::invalid(format!("{} is a replica: it cannot be written to", self.writer.name))
                .with_hint("give the primary first, then its replicas"));
        }
        let mut all = vec![writer];
        for reader in &self.readers {
            let about = reader.about().await?;
            if about.system != all[0].system {
                return Err(Error::invalid(format!(
                    "{} and {} are of different clusters (system identifiers {} and {})",
                    self.writer.name, reader.name, all[0].system, about.system
                ))
                .with_hint("a replica is a copy of its primary; give the primary of this one"));
            }
            if !about.in_recovery {
                return Err(Error::invalid(format!("{} is no replica: it follows nobody", reader.name))
                    .with_hint("one writer, and after it its replicas; was it promoted?"));
            }
            all.push(about);
        }
        Ok(all)
    }

    /// What was measured, for the report.
    pub(super) fn targets(&self, about: &[About]) -> Vec<Target> {
        let endpoints = std::iter::once(&self.writer).chain(&self.readers);
        endpoints
            .zip(about)
            .map(|(endpoint, about)| Target {
                name: endpoint.name.clone(),
                facts: json!({
                    "role": if about.in_recovery { "replica" } else { "primary" },
                    "version": about.version,
                    "settings": about.settings,
                }),
            })
            .collect()
    }
}

/// The same parameters for a client that does not block.
fn asynchronous(config: &postgres::Config) -> Config {
    let mut same = Config::new();
    for host in config.get_hosts() {
        match host {
            Host::Tcp(name) => same.host(name),
            Host::Unix(path) => same.host_path(path),
        };
    }
    config.get_ports().iter().for_each(|port| {
        same.port(*port);
    });
    config.get_user().map(|user| same.user(user));
    config.get_password().map(|password| same.password(password));
    config.get_dbname().map(|name| same.dbname(name));
    config.get_connect_timeout().map(|timeout| same.connect_timeout(*timeout));
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(strings: &[&str]) -> (String, String) {
        let strings: Vec<String> = strings.iter().map(|text| (*text).to_owned()).collect();
        let error = Nodes::of_connection_strings(&strings).unwrap_err();
        (error.to_string(), error.hint().unwrap_or_default().to_owned())
    }

    #[test]
    fn bad_connection_strings_say_why_and_tell_no_secret() {
        let (message, hint) = refused(&["host=a"]);
        assert_eq!(message, "one connection string is not enough");
        assert!(hint.starts_with("give the writer first"), "{hint}");
        assert_eq!(refused(&["host=a port=1", "host=a port=1 user=b"]).0, "a:1 is given twice");
        let (message, _) = refused(&["host=a", "host=b pasword=secret"]);
        assert_eq!(message, "connection string 2 cannot be used");
    }

    #[test]
    fn what_provision_says_is_what_the_client_gets() {
        let mut config = postgres::Config::new();
        config.host("/run/p").host("db").port(5501).port(5502).user("u").password("p").dbname("d");
        let same = asynchronous(&config);
        let expected: Config = "host=/run/p,db port=5501,5502 user=u password=p dbname=d".parse().unwrap();
        assert_eq!(same, expected);
    }
}
