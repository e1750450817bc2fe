//! Which pfsd is measured: ours, another program, or the one in a container.

use std::convert::Infallible;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use blockdev::{Context, Error, ErrorKind, Result};

use super::{Options, needs_root};

/// What a container is named by.
const CONTAINER: &str = "container:";

/// Our own program.
const OURS: &str = "pfsd";

/// Where the original is in an installation.
const IN_INSTALLATION: &str = "bin/pfsdaemon";

/// Which pfsd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Ours, the one that was built with this program.
    Ours,
    /// A program, ours if it is called `pfsd`, otherwise the original; or the directory in which the original is installed.
    Program(PathBuf),
    /// The one in this container.
    Container(String),
}

impl FromStr for Which {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix(CONTAINER) {
            Some(name) => Self::Container(name.to_owned()),
            None if text == "ours" => Self::Ours,
            None => Self::Program(text.into()),
        })
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.pad("ours"),
            Self::Program(path) => path.display().fmt(f),
            Self::Container(name) => write!(f, "{CONTAINER}{name}"),
        }
    }
}

/// A pfsd that can be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pfsd {
    /// What it is called in the report.
    pub(super) label: String,
    /// How it is had.
    pub(super) kind: Kind,
}

/// How a pfsd is had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// This program of ours is started.
    Ours(PathBuf),
    /// This program of the original is started.
    Original(PathBuf),
    /// The one in this container is started anew.
    Container(String),
}

/// All that are to be measured, the one that others are held against first.
///
/// # Errors
/// When one is missing, needs what this user may not do, or cannot be compared.
pub(super) fn all(options: &Options) -> Result<Vec<Pfsd>> {
    let mut all = Vec::new();
    for which in std::iter::once(&options.pfsd).chain(&options.against) {
        all.push(Pfsd { label: which.to_string(), kind: find(which, options)? });
    }
    let in_container = |pfsd: &Pfsd| matches!(pfsd.kind, Kind::Container(_));
    if all.len() > 1 && all.iter().any(in_container) {
        return Err(Error::invalid(
            "a pfsd in a container serves the disk of that container: nothing else can serve the same",
        )
        .with_hint("compare two on this machine, or two runs with `bench compare`"));
    }
    if !all.iter().any(in_container) && (options.disk.is_some() || options.docker.is_some()) {
        return Err(Error::invalid("--disk and --docker are for a pfsd in a container")
            .with_hint("--pfsd container:NAME, or leave them out: the disk is one of our own"));
    }
    let name = |pfsd: &Pfsd| match &pfsd.kind {
        Kind::Ours(program) | Kind::Original(program) => {
            program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        }
        Kind::Container(container) => format!("pfsd of {container}"),
    };
    let names: Vec<String> = all.iter().map(name).collect();
    // Two of one name are told apart by where they are.
    if names.len() < 2 || names[0] != names[1] {
        all.iter_mut().zip(names).for_each(|(pfsd, name)| pfsd.label = name);
    } else if all[0] == all[1] {
        return Err(Error::invalid(format!("{} against itself has nothing to compare", options.pfsd)));
    }
    Ok(all)
}

fn find(which: &Which, options: &Options) -> Result<Kind> {
    match which {
        Which::Ours => {
            let program = options.program.with_file_name(OURS);
            is_program(&program).map_err(|error| {
                error.with_hint(
                    "it is built with the other programs: cargo build --release; or --pfsd PATH names another",
                )
            })?;
            Ok(Kind::Ours(program))
        }
        Which::Program(path) => {
            let installed = path.join(IN_INSTALLATION);
            let program = if path.is_dir() && installed.is_file() { installed } else { path.clone() };
            is_program(&program)?;
            let program = std::path::absolute(&program).context(|| format!("cannot find {}", program.display()))?;
            if program.file_name().is_some_and(|name| name == OURS) {
                return Ok(Kind::Ours(program));
            }
            if !nix::unistd::geteuid().is_root() {
                return Err(needs_root(&format!(
                    "the original's pfsd, {}, serves block devices alone: that",
                    path.display()
                )));
            }
            Ok(Kind::Original(program))
        }
        Which::Container(name) if name.is_empty() => {
            Err(Error::invalid(format!("{which} names no container"))
                .with_hint("container:NAME, as `docker ps` lists it"))
        }
        Which::Container(name) => Ok(Kind::Container(name.clone())),
    }
}

/// Whether there is a program at `path`.
fn is_program(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).context(|| format!("there is no pfsd at {}", path.display()))?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, format!("{} is no program", path.display()))
        .with_hint("--pfsd takes ours, the path of a pfsd or pfsdaemon, or container:NAME"))
}
