//! Which cluster a command is about, and what is asked of it: the flags that every command has, and the cluster file.

use std::path::{Path, PathBuf};

use blockdev::{Cancel, Result, ui};
use clap::ArgMatches;
use clap::parser::ValueSource;
use provision::Cluster;
use provision::config::{FILE_NAME, Layers, Origin, Settings};
use provision::plan::{JsonLines, Lines, Observer};
use provision::state::{Lock, StateDirectory};
use provision::topology::Name;

/// Which cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// The cluster; without it the one that the cluster file names, or `default`.
    #[arg(long, global = true, value_name = "NAME", env = "PROVISION_NAME")]
    name: Option<Name>,

    /// The cluster file; without it `cluster.toml` in this directory, if there is one.
    #[arg(long = "config", id = "cluster_file", global = true, value_name = "FILE", env = "PROVISION_CONFIG")]
    file: Option<PathBuf>,

    /// Where clusters are noted; without it $XDG_STATE_HOME/onedisk, for root /var/lib/onedisk.
    #[arg(long, global = true, value_name = "PATH", env = "PROVISION_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl Selection {
    pub(crate) fn state(&self) -> Result<StateDirectory> {
        StateDirectory::find(self.state_dir.as_deref())
    }

    /// Everything that is asked for: flags, environment, file and defaults. `matches` knows which flag was given how.
    pub(crate) fn layers(&self, settings: &Settings, matches: &ArgMatches) -> Result<Layers> {
        let mut layers = self.file_layers()?;
        let mut settings = settings.clone();
        settings.name.clone_from(&self.name);
        layers.add(settings, |key| origin_on_command_line(key, matches));
        Ok(layers)
    }

    fn file_layers(&self) -> Result<Layers> {
        let mut layers = Layers::default();
        let default = Path::new(FILE_NAME);
        if let Some(path) = self.file.as_deref().or_else(|| default.exists().then_some(default)) {
            layers.add(Settings::read(path)?, |_| Origin::File(path.to_owned()));
        }
        Ok(layers)
    }

    fn name(&self) -> Result<Name> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => Ok(self.file_layers()?.config()?.name),
        }
    }

    pub(crate) fn open(&self, cancel: &Cancel) -> Result<Cluster> {
        Cluster::open(&self.state()?, &self.name()?, cancel)
    }

    pub(crate) fn open_to_change(&self, cancel: &Cancel) -> Result<(Cluster, Lock)> {
        Cluster::open_to_change(&self.state()?, &self.name()?, cancel)
    }

    pub(crate) fn exists(&self, name: &Name) -> Result<bool> {
        Ok(self.state()?.cluster(name).record()?.is_some())
    }
}

fn origin_on_command_line(key: &str, matches: &ArgMatches) -> Origin {
    // The table is filled one by one.
    let id = if key == "parameters" { "parameter" } else { key };
    // A subcommand's matches know their own flags, and the global ones.
    let mut innermost = matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    match innermost.try_contains_id(id).ok().and_then(|_| innermost.value_source(id)) {
        Some(ValueSource::EnvVariable) => Origin::Environment(format!("PROVISION_{}", key.to_uppercase())),
        _ => Origin::Flag(format!("--{}", id.replace('_', "-"))),
    }
}

/// Who is told of the steps.
pub(crate) fn observer(output: ui::Output) -> Box<dyn Observer> {
    match output {
        ui::Output::Text => Box::new(Lines::default()),
        ui::Output::Json => Box::new(JsonLines),
    }
}

/// Directories and logs that the database's user has to pass or others may read are made with the modes that the code
/// says, not with those that a strict umask leaves of them; secrets have their own.
pub(crate) fn make_files_with_their_own_modes() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}
