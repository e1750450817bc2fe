//! Settings from several places, merged key by key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use blockdev::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Config, Settings};
use crate::topology::{NodeSpec, check_specs};

/// Where a value comes from; later ones win.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The cluster exists and was made with it.
    Made,
    /// This file says so.
    File(PathBuf),
    /// An environment variable of this name says so.
    Environment(String),
    /// This flag says so.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.pad("default"),
            Self::Made => f.pad("made with it"),
            Self::File(path) => f.pad(&path.display().to_string()),
            Self::Environment(name) => f.pad(&format!("${name}")),
            Self::Flag(name) => f.pad(name),
        }
    }
}

/// Merged settings: for each key its value and where that comes from. A table's entries are keys of their own
/// (`parameters.work_mem`).
#[derive(Debug, Clone)]
pub struct Layers(BTreeMap<String, (Value, Origin)>);

impl Default for Layers {
    fn default() -> Self {
        let mut layers = Self(BTreeMap::new());
        layers.add(Settings::defaults(), |_| Origin::Default);
        layers
    }
}

impl Layers {
    /// Puts `settings` over what is there; `origin` says for each key where its value comes from. A value of a lower
    /// origin never replaces one of a higher.
    pub fn add(&mut self, settings: Settings, origin: impl Fn(&str) -> Origin) {
        // `Settings` holds nothing that JSON cannot.
        let Ok(Value::Object(keys)) = serde_json::to_value(settings.normalized()) else { return };
        for (key, value) in keys {
            let origin = origin(&key);
            match value {
                Value::Object(entries) => {
                    for (entry, value) in entries {
                        self.set(format!("{key}.{entry}"), value, origin.clone());
                    }
                }
                value => self.set(key, value, origin),
            }
        }
    }

    fn set(&mut self, key: String, value: Value, origin: Origin) {
        if self.0.get(&key).is_none_or(|(_, known)| *known <= origin) {
            let runtime = (key == "engine").then(|| default_runtime(&value));
            self.0.insert(key, (value, origin));
            if let Some(runtime) = runtime {
                self.set("runtime".to_owned(), runtime, Origin::Default);
            }
        }
    }

    /// Puts what a cluster was made with under what is asked for now. Its parameters count only if none are given now, so
    /// that taking one out of the file takes it out of the cluster.
    pub fn add_made(&mut self, made: &Config) {
        let given = self.0.keys().any(|key| key.starts_with("parameters."));
        let settings = Settings {
            name: Some(made.name.clone()),
            runtime: Some(made.runtime),
            engine: Some(made.engine),
            storage: Some(made.storage),
            port: made.port,
            directory: made.directory.clone(),
            bin_directory: made.bin_directory.clone(),
            image: made.image.clone(),
            build: Some(made.build.clone()),
            docker: made.docker.clone(),
            shm_size: made.shm_size,
            memory: made.memory,
            cpus: made.cpus,
            user: made.user.clone(),
            disk: made.disk.clone(),
            disk_size: made.disk_size,
            prealloc: made.prealloc,
            device: made.device.clone(),
            workers: made.workers,
            pfsd: Some(made.pfsd.clone()),
            heartbeat: Some(made.heartbeat),
            trust: Some(made.trust),
            parameters: (!given).then(|| made.parameters.clone()),
            ..Settings::default()
        };
        self.add(settings, |_| Origin::Made);
    }

    /// Each key with its value and where that comes from.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value, &Origin)> {
        self.0.iter().map(|(key, (value, origin))| (key.as_str(), value, origin))
    }

    /// Where the value of `key` comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.0.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// What the cluster is to be.
    ///
    /// # Errors
    /// When two settings contradict each other.
    pub fn config(&self) -> Result<Config> {
        self.nodes()?;
        let mut map = Map::new();
        for (key, (value, _)) in &self.0 {
            match key.split_once('.') {
                Some((table, entry)) => {
                    let table = map.entry(table).or_insert_with(|| Value::Object(Map::new()));
                    if let Value::Object(entries) = table {
                        entries.insert(entry.to_owned(), value.clone());
                    }
                }
                None if key == "replicas" || key == "node" => {}
                None => {
                    map.insert(key.clone(), value.clone());
                }
            }
        }
        from_json(Value::Object(map))
    }

    /// The nodes that are asked for; none if nobody asks for any, and the default is meant.
    ///
    /// # Errors
    /// When `node` and `replicas` are both given, or the nodes cannot be a cluster.
    pub fn nodes(&self) -> Result<Wanted> {
        let replicas = self.0.get("replicas").filter(|(_, origin)| *origin != Origin::Default);
        match (self.0.get("node"), replicas) {
            (Some((_, node)), Some((_, replicas))) => {
                Err(Error::invalid(format!("the nodes are given twice: node by {node}, replicas by {replicas}"))
                    .with_hint("name every node, or give the number of replicas, not both"))
            }
            (Some((nodes, _)), None) => {
                let nodes: Vec<NodeSpec> = from_json(nodes.clone())?;
                check_specs(nodes.iter().map(|spec| (&spec.name, spec.role, spec.port)))?;
                Ok(Wanted::Nodes(nodes))
            }
            (None, Some((replicas, _))) => from_json(replicas.clone()).map(Wanted::Replicas),
            (None, None) => Ok(Wanted::Unsaid),
        }
    }
}

/// Where an engine runs if nobody says: PolarDB runs in containers alone.
fn default_runtime(engine: &Value) -> Value {
    Value::from(if engine == "polardb" { "docker" } else { "local" })
}

/// Which nodes are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody says: those that there are, or a primary and one replica.
    Unsaid,
    /// A primary and so many replicas.
    Replicas(u16),
    /// These.
    Nodes(Vec<NodeSpec>),
}

fn from_json<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|source| Error::invalid("the settings make no cluster").with_source(source))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::RuntimeKind;
    use crate::topology::Role;

    fn settings(text: &str) -> Settings {
        Settings::parse(text, Path::new("test.toml")).unwrap()
    }

    fn file() -> Origin {
        Origin::File("cluster.toml".into())
    }

    #[test]
    fn flag_over_environment_over_file_over_made_over_default() {
        let flag = || Origin::Flag("--user".to_owned());
        let environment = || Origin::Environment("PROVISION_USER".to_owned());
        let mut layers = Layers::default();
        assert_eq!(layers.config().unwrap().user, None);
        // Whatever the order in which they come.
        for (text, origin, user) in [
            ("user = \"env\"", environment(), "env"),
            ("user = \"file\"", file(), "env"),
            ("user = \"flag\"", flag(), "flag"),
            ("user = \"env2\"", environment(), "flag"),
        ] {
            layers.add(settings(text), |_| origin.clone());
            assert_eq!(layers.config().unwrap().user.as_deref(), Some(user));
        }
        assert_eq!(layers.origin("user"), flag());
        assert_eq!(layers.origin("trust"), Origin::Default);
    }

    #[test]
    fn what_a_cluster_was_made_with_holds_until_somebody_says_otherwise() {
        let mut first = Layers::default();
        first.add(settings("trust = true\nparameters = { work_mem = \"1MB\" }"), |_| file());
        let made = first.config().unwrap();

        let mut later = Layers::default();
        later.add_made(&made);
        assert_eq!(later.config().unwrap(), made);
        assert_eq!(later.origin("trust"), Origin::Made);

        let mut changed = Layers::default();
        changed.add(settings("trust = false\nparameters = { wal_level = \"logical\" }"), |_| file());
        changed.add_made(&made);
        let config = changed.config().unwrap();
        assert_eq!(config.parameters.keys().collect::<Vec<_>>(), ["wal_level"]);
        let error = config.check_unchanged(&made, |key| changed.origin(key).to_string()).unwrap_err();
        assert_eq!(error.to_string(), "cluster default exists with another trust, and cluster.toml asks to change it");
    }

    #[test]
    fn where_an_engine_runs_by_default_is_its_own() {
        let mut layers = Layers::default();
        layers.add(settings("engine = \"polardb\""), |_| file());
        assert_eq!(layers.config().unwrap().runtime, RuntimeKind::Docker);
        layers.add(settings("runtime = \"local\""), |_| file());
        layers.add(settings("engine = \"polardb\""), |_| Origin::Flag("--engine".to_owned()));
        assert_eq!(layers.config().unwrap().runtime, RuntimeKind::Local);
        let mut layers = Layers::default();
        layers.add(settings("engine = \"polardb\""), |_| file());
        layers.add(settings("engine = \"postgres\""), |_| Origin::Flag("--engine".to_owned()));
        assert_eq!(layers.config().unwrap().runtime, RuntimeKind::Local);
    }

    #[test]
    fn parameters_merge_one_by_one() {
        let mut layers = Layers::default();
        layers.add(settings("parameters = { work_mem = \"1MB\", wal_level = \"replica\" }"), |_| file());
        layers.add(settings("parameters = { work_mem = \"2MB\" }"), |_| Origin::Flag("--parameter".to_owned()));
        let parameters = layers.config().unwrap().parameters;
        assert_eq!(parameters["work_mem"], "2MB");
        assert_eq!(parameters["wal_level"], "replica");
        assert_eq!(layers.origin("parameters.wal_level"), file());
    }

    #[test]
    fn nodes_are_given_once() {
        let mut layers = Layers::default();
        assert_eq!(layers.nodes().unwrap(), Wanted::Unsaid);
        layers.add(settings("node = [{ name = \"w\", role = \"primary\" }]"), |_| file());
        let Wanted::Nodes(nodes) = layers.nodes().unwrap() else { panic!("nodes are given") };
        assert_eq!((nodes[0].name.as_str(), nodes[0].role), ("w", Role::Primary));
        layers.add(settings("replicas = 2"), |_| Origin::Flag("--replicas".to_owned()));
        assert_eq!(
            layers.config().unwrap_err().to_string(),
            "the nodes are given twice: node by cluster.toml, replicas by --replicas"
        );
    }

    #[test]
    fn a_name_used_twice_is_refused_before_anything_is_made() {
        let mut layers = Layers::default();
        layers.add(
            settings("node = [{ name = \"w\", role = \"primary\" }, { name = \"w\", role = \"replica\" }]"),
            |_| file(),
        );
        assert_eq!(layers.config().unwrap_err().to_string(), "two nodes are called w");
    }
}
