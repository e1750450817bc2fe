//! What is written into postgresql.conf and pg_hba.conf.
//!
//! Both files lie in the node's home, beside the data directory and not in it: a base backup does not carry the primary's
//! over to a replica, and nobody but `provision` makes files there.

use std::path::Path;

use blockdev::Result;

use super::install::Programs;
use super::secret::REPLICATOR;
use super::steps::here;
use super::{Absent, Kind};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::doctor::Finding;
use crate::runtime::{Command, Network, quote};
use crate::topology::{Node, Role};

/// The parameters that make the cluster work, and are not to be set by hand.
const OWNED: [&str; 11] = [
    "cluster_name",
    "config_file",
    "data_directory",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "unix_socket_directories",
];

/// What postgresql.conf of `node` holds.
///
/// # Errors
/// When the node cannot be asked what it has.
pub(super) fn postgresql_conf(kind: &Kind, cluster: &Cluster, node: &Node, data: &Path) -> Result<String> {
    let mut text = for_any_node(kind, cluster, node, data);
    for absent in kind.where_absent {
        let looked = cluster.runtime().ask(node, &look_for(absent))?;
        if looked.is_some_and(|answer| !answer.status.success()) {
            text += &setting(absent.parameter, absent.value);
        }
    }
    Ok(text + &asked_for(&cluster.record.config))
}

/// The shell commands that print it.
pub(super) fn shell_postgresql_conf(kind: &Kind, cluster: &Cluster, node: &Node, data: &Path) -> String {
    let mut shown = here(&for_any_node(kind, cluster, node, data));
    for absent in kind.where_absent {
        let exists = cluster.runtime().shell(node, &look_for(absent));
        shown += &format!("{exists} || echo {}\n", quote(setting(absent.parameter, absent.value).trim_end()));
    }
    let last = asked_for(&cluster.record.config);
    if last.is_empty() { shown } else { shown + &here(&last) }
}

fn look_for(absent: &Absent) -> Command {
    Command::new("test").args(["-e", absent.path])
}

fn asked_for(config: &Config) -> String {
    config.parameters.iter().map(|(name, value)| setting(name, value)).collect()
}

fn for_any_node(kind: &Kind, cluster: &Cluster, node: &Node, data: &Path) -> String {
    let record = &cluster.record;
    let home = cluster.runtime().home(node);
    // Those that a cluster of this size needs, and as many to work with.
    let senders = 10.max(2 * record.topology.replicas().len() + 2).to_string();
    let mut settings = vec![
        ("cluster_name", format!("{}/{}", record.config.name, node.name)),
        ("listen_addresses", cluster.runtime().network(&record.topology).listen.to_owned()),
        ("port", node.port.to_string()),
        ("unix_socket_directories", cluster.runtime().sockets(node).to_string_lossy().into_owned()),
        ("hba_file", home.join("pg_hba.conf").to_string_lossy().into_owned()),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("max_wal_senders", senders.clone()),
        ("max_replication_slots", senders),
    ];
    if node.role == Role::Replica {
        settings.push(("primary_conninfo", conninfo(cluster, node)));
        settings.push(("primary_slot_name", node.name.to_string()));
    }
    let mut text =
        "# Written by provision, which writes it again: set parameters in cluster.toml or with --parameter.\n"
            .to_owned();
    // What initdb found out about this machine: time zone, locale, kind of shared memory.
    text += &setting("include", &data.join("postgresql.conf").to_string_lossy());
    for (name, value) in settings {
        text += &setting(name, &value);
    }
    for (name, value) in (kind.parameters)(node) {
        text += &setting(name, &value);
    }
    text
}

/// How a replica reaches the primary.
pub(super) fn conninfo(cluster: &Cluster, replica: &Node) -> String {
    let (host, port) = cluster.runtime().peer_address(cluster.record.topology.primary());
    let mut conninfo = format!("host={host} port={port} user={REPLICATOR} application_name={}", replica.name);
    if !cluster.record.config.trust {
        let passwords = cluster.runtime().home(replica).join("pgpass");
        conninfo += &format!(" passfile='{}'", passwords.to_string_lossy().replace('\\', r"\\").replace('\'', r"\'"));
    }
    conninfo
}

/// What pg_hba.conf holds: the node itself and those who may reach it, by password unless everybody is trusted.
pub(super) fn pg_hba_conf(config: &Config, network: Network) -> String {
    let clients = network.clients;
    let method = if config.trust { "trust" } else { "scram-sha-256" };
    format!(
        "# Written by provision, which writes it again.\n\
         local all all {method}\n\
         host all all {clients} {method}\n\
         host replication {REPLICATOR} {clients} {method}\n"
    )
}

fn setting(name: &str, value: &str) -> String {
    // "include" is a directive, not a parameter; both take a quoted string.
    format!("{name} = '{}'\n", value.replace('\\', r"\\").replace('\'', "''"))
}

/// Parameters that are not to be set by hand, or are none.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let names = config.parameters.keys();
    names
        .filter_map(|name| {
            if OWNED.contains(&name.as_str()) {
                Some(Finding::error(
                    "owned-parameter",
                    format!("the parameter {name} is set by provision itself"),
                    format!("take {name} out of the parameters"),
                ))
            } else if !is_parameter_name(name) {
                Some(Finding::error(
                    "no-parameter",
                    format!("{name:?} is no name of a parameter"),
                    "write NAME=VALUE, such as work_mem=64MB",
                ))
            } else {
                None
            }
        })
        .chain(config.parameters.iter().filter(|(name, value)| is_unsafe(name, value)).map(|(name, value)| {
            Finding::warning(
                "not-durable",
                format!("with {name} = {value} a crash of this machine may lose or damage the database"),
                format!("leave {name} alone unless the data are worth nothing"),
            )
        }))
        .collect()
}

/// A parameter that this PostgreSQL does not have, or not with that value. It is asked before anything is changed, as far as
/// there is anybody to ask: in a container there is not before it is made.
pub(super) fn rejected(programs: &Programs, cluster: &Cluster) -> Option<Finding> {
    let answer = cluster.runtime().ask(cluster.record.topology.primary(), &try_out(programs, cluster)).ok()??;
    if answer.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&answer.stderr).into_owned();
    let why = text.lines().find_map(|line| line.split_once("FATAL:")).map_or(text.trim(), |(_, why)| why.trim());
    Some(Finding::error("bad-parameter", format!("PostgreSQL says: {why}"), "mend it in the parameters"))
}

/// What says whether this PostgreSQL takes the parameters, and starts nothing.
pub(super) fn try_out(programs: &Programs, cluster: &Cluster) -> Command {
    let options = cluster.record.config.parameters.iter().map(|(name, value)| format!("-c{name}={value}"));
    // `-C` first: only then may root ask, too. It prints a setting.
    let ask = Command::new(programs.program("postgres")).args(["-C", "port", "-D", "/", "--config-file=/dev/null"]);
    ask.args(options)
}

fn is_parameter_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        && !name.starts_with("include")
}

fn is_unsafe(name: &str, value: &str) -> bool {
    matches!(name, "fsync" | "full_page_writes")
        && matches!(value.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Settings};

    fn config(parameters: &str) -> Config {
        let mut layers = Layers::default();
        let text = format!("parameters = {{ {parameters} }}");
        layers.add(Settings::parse(&text, Path::new("t")).unwrap(), |_| crate::config::Origin::File("t".into()));
        layers.config().unwrap()
    }

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        assert_eq!(setting("a", r"it's \ 'b'"), "a = 'it''s \\\\ ''b'''\n");
    }

    #[test]
    fn what_provision_sets_is_not_set_by_hand() {
        let ids = |parameters: &str| findings(&config(parameters)).iter().map(|f| f.id).collect::<Vec<_>>();
        assert_eq!(ids("port = \"1\""), ["owned-parameter"]);
        assert_eq!(ids("\"a b\" = \"1\""), ["no-parameter"]);
        assert_eq!(ids("include_dir = \"/tmp\""), ["no-parameter"]);
        assert_eq!(ids("fsync = \"off\""), ["not-durable"]);
        assert_eq!(ids("work_mem = \"1MB\", \"auto_explain.log_min_duration\" = \"1\""), [""; 0]);
    }

    #[test]
    fn nobody_comes_in_from_elsewhere_or_without_a_password() {
        let text = pg_hba_conf(&config(""), Network { listen: "*", clients: "samenet" });
        assert!(!text.contains("0.0.0.0") && !text.contains("trust"), "{text}");
        assert_eq!(text.matches("scram-sha-256").count(), 3);
    }
}
