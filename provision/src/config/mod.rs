//! The cluster file, and where each value comes from.
//!
//! One definition, [`Settings`], is the file, the flags and the environment variables at once. Layers of settings are
//! merged key by key (flag over environment over file over what an existing cluster was made with over default), and the
//! result is a [`Config`] that still knows where every value came from.

mod build;
mod heartbeat;
mod layers;
mod pfsd;
mod size;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use blockdev::image::Prealloc;
use blockdev::{ByteSize, Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::topology::{Name, NodeSpec};

pub use build::{Build, Source};
pub use heartbeat::Heartbeat;
pub use layers::{Layers, Origin, Wanted};
pub use pfsd::Pfsd;

/// A commented cluster file in which every key has its default.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The file that is read when none is named and it exists.
pub const FILE_NAME: &str = "cluster.toml";

/// Where the nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// As processes of this machine.
    Local,
    /// In Docker containers, one for each node.
    Docker,
}

/// What runs on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Stock PostgreSQL 14 or newer with physical streaming replication, a disk for each node.
    Postgres,
    /// PolarDB for PostgreSQL 15: all nodes on one shared disk, each through a pfsd of its own.
    Polardb,
}

/// What a node's files are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// A plain directory.
    Directory,
    /// A disk of the node's own: an image, a loop device on it and an ext4. Takes root.
    Image,
}

/// The settings of one layer; what it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What the cluster is called. Several stand side by side, each under its own name.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,

    /// Where the nodes run.
    #[arg(long, value_enum, env = "PROVISION_RUNTIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,

    /// What runs on the nodes.
    #[arg(long, value_enum, env = "PROVISION_ENGINE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,

    /// How many replicas follow the primary; they are called replica1, replica2, ...
    #[arg(long, value_name = "N", env = "PROVISION_REPLICAS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u16>,

    /// A node, as NAME=ROLE or NAME=ROLE:PORT; may be given several times. Instead of `replicas`.
    #[arg(long, value_name = "NAME=ROLE[:PORT]", env = "PROVISION_NODE", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Vec<NodeSpec>>,

    /// The primary's port on 127.0.0.1; the replicas take those after it. Free ones are picked where none is given.
    #[arg(long, env = "PROVISION_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,

    /// What a node's files are on.
    #[arg(long, value_enum, env = "PROVISION_STORAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// Where the nodes' files go; by default below the cluster's own directory.
    #[arg(long, value_name = "PATH", env = "PROVISION_DIRECTORY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,

    /// Where the database's programs are; by default the newest PostgreSQL that is installed.
    #[arg(long, value_name = "PATH", env = "PROVISION_BIN_DIRECTORY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin_directory: Option<PathBuf>,

    /// The container image of the nodes; by default one that holds the database. With `docker`.
    #[arg(long, env = "PROVISION_IMAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// Build PolarDB on the nodes instead of taking it from the image, which then holds what that needs; from this repository,
    /// such as a mirror, if one is named. With `polardb`.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "URL[#BRANCH]", env = "PROVISION_BUILD")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,

    /// Where Docker is: unix://PATH, tcp://HOST:PORT, ssh://USER@HOST, or the name of a Docker context; by default what
    /// DOCKER_HOST, DOCKER_CONTEXT and Docker's own configuration say. With `docker`.
    #[arg(long, value_name = "ENDPOINT", env = "PROVISION_DOCKER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,

    /// How large /dev/shm of a node is. With `docker`.
    #[arg(long, value_name = "SIZE", env = "PROVISION_SHM_SIZE")]
    #[serde(with = "size", skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,

    /// How much memory a node may use; by default all there is. With `docker`.
    #[arg(long, value_name = "SIZE", env = "PROVISION_MEMORY")]
    #[serde(with = "size", skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,

    /// How many CPUs a node may use, such as 1.5; by default all there are. With `docker`.
    #[arg(long, value_name = "N", env = "PROVISION_CPUS", value_parser = cpus)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,

    /// Whom the database runs as when root starts it; by default postgres, or nobody where there is no such user.
    #[arg(long, value_name = "NAME", env = "PROVISION_USER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,

    /// The image of the shared disk of PolarDB; by default below the cluster's own directory.
    #[arg(long, value_name = "PATH", env = "PROVISION_DISK")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,

    /// How large the image of the shared disk is: a multiple of 10 GiB; 20 GiB by default. With `--storage image`, how
    /// large the disk of each node is; 2 GiB by default.
    #[arg(long, value_name = "SIZE", env = "PROVISION_DISK_SIZE")]
    #[serde(with = "size", skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<ByteSize>,

    /// How the space of an image is set aside; written by default.
    #[arg(long, value_enum, env = "PROVISION_PREALLOC")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prealloc: Option<Prealloc>,

    /// A block device that is there already, as the shared disk instead of an image.
    #[arg(long, value_name = "PATH", env = "PROVISION_DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,

    /// How many requests the pfsd of a node serves at a time; 1 by default.
    #[arg(long, value_name = "N", env = "PROVISION_WORKERS", value_parser = clap::value_parser!(u16).range(1..=128))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,

    /// Which pfsd the nodes of PolarDB run: `image`, the one of their image, which is the default, or the path of one on this
    /// machine, which is brought to them.
    #[arg(long, value_name = "PATH", env = "PROVISION_PFSD")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pfsd: Option<Pfsd>,

    /// The primary writes something tiny so often, such as 10ms, so that no replica of PolarDB falls asleep; off by default.
    #[arg(long, value_name = "TIME", env = "PROVISION_HEARTBEAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,

    /// Let every local user in without a password.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", env = "PROVISION_TRUST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,

    /// A parameter of the database, as NAME=VALUE; may be given several times.
    #[arg(long = "parameter", value_name = "NAME=VALUE", env = "PROVISION_PARAMETERS", value_parser = parameter,
        value_delimiter = ';')]
    #[serde(skip)]
    pub parameter: Option<Vec<(String, String)>>,

    /// The database's parameters.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BTreeMap<String, String>>,
}

fn cpus(text: &str) -> Result<f64> {
    text.parse().ok().filter(|cpus| (0.01..=1e6).contains(cpus)).ok_or_else(|| {
        Error::invalid(format!("{text:?} is no number of CPUs")).with_hint("write a number such as 2 or 0.5")
    })
}

fn parameter(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.trim().is_empty())
        .ok_or_else(|| Error::invalid(format!("{text:?} is no parameter: write NAME=VALUE")))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl Settings {
    /// What is taken where nothing else is said.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            // A literal that is a name.
            name: "default".parse().ok(),
            runtime: Some(RuntimeKind::Local),
            engine: Some(EngineKind::Postgres),
            replicas: Some(1),
            storage: Some(Storage::Directory),
            pfsd: Some(Pfsd::Image),
            build: Some(Build::No),
            heartbeat: Some(Heartbeat::Off),
            trust: Some(false),
            ..Self::default()
        }
    }

    /// The settings in the cluster file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, or has a key or a value that does not exist.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .context(|| format!("cannot read the cluster file {}", path.display()))
            .map_err(|error| {
                let missing = error.kind() == ErrorKind::NotFound;
                let error = error.with_hint("`provision config example` prints one to start from");
                if missing { error.with_kind(ErrorKind::InvalidInput) } else { error }
            })?;
        Self::parse(&text, path)
    }

    /// The settings in `text`, which was read from `path`.
    ///
    /// # Errors
    /// When it is no TOML, or has a key or a value that does not exist; the message shows the place.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            Error::invalid(format!("{} is no cluster file:\n{}", path.display(), error.to_string().trim_end()))
                .with_hint("`provision config example` prints every key with its default")
        })
    }

    /// Parameters given one by one on the command line become those of the file's table.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        if let Some(given) = self.parameter.take() {
            self.parameters.get_or_insert_default().extend(given);
        }
        self
    }
}

/// What a cluster is made of, once all layers are merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the cluster is called.
    pub name: Name,
    /// Where the nodes run.
    pub runtime: RuntimeKind,
    /// What runs on the nodes.
    pub engine: EngineKind,
    /// What a node's files are on.
    pub storage: Storage,
    /// The primary's port, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where the nodes' files go, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Where the database's programs are, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_directory: Option<PathBuf>,
    /// The container image of the nodes, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether PolarDB is built on the nodes, and from what.
    #[serde(default)]
    pub build: Build,
    /// Where Docker is, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<String>,
    /// How large /dev/shm of a container is.
    #[serde(default, with = "size", skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<ByteSize>,
    /// How much memory a container may use, where that is limited.
    #[serde(default, with = "size", skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// How many CPUs a container may use, where that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Whom the database runs as, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The image of the shared disk, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,
    /// How large the image of the shared disk is.
    #[serde(default, with = "size", skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<ByteSize>,
    /// How the space of the image is set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prealloc: Option<Prealloc>,
    /// The block device that is the shared disk instead of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
    /// How many requests the pfsd of a node serves at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// Which pfsd the nodes run.
    #[serde(default)]
    pub pfsd: Pfsd,
    /// How often the primary writes something tiny.
    #[serde(default)]
    pub heartbeat: Heartbeat,
    /// Whether every local user is let in without a password.
    pub trust: bool,
    /// The database's parameters.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

impl Config {
    /// Refuses what would make another cluster of the one that `made` describes: the nodes are on disk already.
    ///
    /// # Errors
    /// When a setting that is fixed at the first `up` differs; `origin_of` says who asks for it.
    pub fn check_unchanged(&self, made: &Self, origin_of: impl Fn(&str) -> String) -> Result<()> {
        let fixed = |config: &Self| {
            [
                ("runtime", format!("{:?}", config.runtime)),
                ("engine", format!("{:?}", config.engine)),
                ("storage", format!("{:?}", config.storage)),
                ("port", format!("{:?}", config.port)),
                ("directory", format!("{:?}", config.directory)),
                ("bin_directory", format!("{:?}", config.bin_directory)),
                ("image", format!("{:?}", config.image)),
                ("build", format!("{:?}", config.build)),
                ("docker", format!("{:?}", config.docker)),
                ("shm_size", format!("{:?}", config.shm_size)),
                ("memory", format!("{:?}", config.memory)),
                ("cpus", format!("{:?}", config.cpus)),
                ("user", format!("{:?}", config.user)),
                ("disk", format!("{:?}", config.disk)),
                ("disk_size", format!("{:?}", config.disk_size)),
                ("prealloc", format!("{:?}", config.prealloc)),
                ("device", format!("{:?}", config.device)),
                ("trust", config.trust.to_string()),
            ]
        };
        for ((key, now), (_, then)) in fixed(self).into_iter().zip(fixed(made)) {
            if now != then {
                return Err(Error::refused(format!(
                    "cluster {} exists with another {key}, and {} asks to change it",
                    self.name,
                    origin_of(key)
                ))
                .with_hint(format!(
                    "`provision config show --name {}` shows what it was made with; \
                     give the new one another name, or take this one down with --purge first",
                    self.name
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Docker => "docker",
        })
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Postgres => "postgres",
            Self::Polardb => "polardb",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, Path::new("cluster.toml"))
    }

    #[test]
    fn the_example_says_the_defaults() {
        assert_eq!(parse(EXAMPLE).unwrap(), Settings::defaults());
    }

    #[test]
    fn the_example_names_every_key() {
        let every_key = parse(
            r#"
            name = "a"
            runtime = "local"
            engine = "postgres"
            replicas = 2
            port = 1
            storage = "directory"
            directory = "/d"
            bin_directory = "/b"
            image = "i"
            build = true
            docker = "unix:///d"
            shm_size = "1GiB"
            memory = "2GiB"
            cpus = 1.5
            user = "u"
            disk = "/i"
            disk_size = "20GiB"
            prealloc = "sparse"
            device = "/dev/x"
            workers = 2
            pfsd = "/p"
            heartbeat = "10ms"
            trust = true
            parameters = { work_mem = "1MB" }
            node = [{ name = "w", role = "primary" }]
            "#,
        )
        .unwrap();
        let every_key = serde_json::to_value(every_key).unwrap();
        let defaults = serde_json::to_value(Settings::defaults()).unwrap();
        for key in every_key.as_object().unwrap().keys() {
            assert!(
                EXAMPLE.contains(&format!("{key} = "))
                    || EXAMPLE.contains(&format!("[{key}]"))
                    || EXAMPLE.contains(&format!("[[{key}]]")),
                "{key}"
            );
        }
        assert!(defaults.as_object().unwrap().keys().all(|key| every_key.get(key).is_some()));
    }

    #[test]
    fn a_typo_is_shown_where_it_stands() {
        let error = parse("name = \"a\"\nreplcas = 2\n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let message = error.to_string();
        assert!(message.starts_with("cluster.toml is no cluster file:\n") && message.contains("line 2"), "{message}");
        assert!(message.contains("unknown field `replcas`") && message.contains("`replicas`"), "{message}");
        for (text, part) in [
            ("name = \"My cluster\"", "is no name for a cluster or a node"),
            ("runtime = \"dcker\"", "unknown variant `dcker`"),
            ("[[node]]\nname = \"a\"\nrole = \"primary\"\nprot = 1", "unknown field `prot`"),
            ("replicas = -1", "invalid value"),
            ("replicas = ", "line 1"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn parameters_one_by_one_join_the_table() {
        let settings = Settings { parameter: Some(vec![parameter("a = 1").unwrap()]), ..Settings::default() };
        assert_eq!(settings.normalized().parameters, Some([("a".to_owned(), "1".to_owned())].into()));
        assert_eq!(parameter("=1").unwrap_err().to_string(), "\"=1\" is no parameter: write NAME=VALUE");
    }
}
