//! Where Docker is: by its own rules, so that `provision` and `docker` speak to the same daemon.
//!
//! DOCKER_HOST, then DOCKER_CONTEXT, then `currentContext` of `~/.docker/config.json`, then the local socket
//! (<https://docs.docker.com/engine/manage-resources/contexts/>). What a context says lies in
//! `~/.docker/contexts/meta/ID/meta.json`, its certificates in `~/.docker/contexts/tls/ID/docker/`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use blockdev::{Context, Error, ErrorKind, Result};
use serde::Deserialize;

/// Where Docker listens unless somebody says otherwise.
const LOCAL: &str = if cfg!(windows) { "npipe:////./pipe/docker_engine" } else { "unix:///var/run/docker.sock" };
/// The context that stands for no context.
const DEFAULT_CONTEXT: &str = "default";

/// A Docker daemon, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its URL or the name of its context: what finds the same daemon again.
    name: String,
    /// How to reach it.
    pub transport: Transport,
}

/// How to reach a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Through a Unix socket.
    Socket(PathBuf),
    /// Through a named pipe of Windows.
    Pipe(String),
    /// Over TCP, in the clear or with the certificates `ca.pem`, `cert.pem` and `key.pem` in this directory.
    Tcp {
        /// Host and port.
        address: String,
        /// Where the certificates are.
        certificates: Option<PathBuf>,
    },
    /// Through SSH, as the user and to the host of this URL.
    Ssh(String),
}

/// What the environment says about Docker.
#[derive(Debug, Default)]
struct Surroundings {
    host: Option<String>,
    context: Option<String>,
    verify_tls: bool,
    certificates: Option<PathBuf>,
    configuration: Option<PathBuf>,
}

impl Surroundings {
    fn here() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
        Self {
            host: variable("DOCKER_HOST"),
            context: variable("DOCKER_CONTEXT"),
            verify_tls: variable("DOCKER_TLS_VERIFY").is_some(),
            certificates: variable("DOCKER_CERT_PATH").map(PathBuf::from),
            configuration: variable("DOCKER_CONFIG").map(PathBuf::from).or(home),
        }
    }

    fn configured_context(&self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Configuration {
            current_context: Option<String>,
        }
        let Some(path) = self.configuration.as_ref().map(|directory| directory.join("config.json")) else {
            return Ok(None);
        };
        let configuration: Option<Configuration> = read_json(&path)?;
        Ok(configuration.and_then(|configuration| configuration.current_context).filter(|name| !name.is_empty()))
    }

    /// The directory of certificates that the environment asks for.
    fn asked_certificates(&self) -> Option<PathBuf> {
        let asked = self.verify_tls || self.certificates.is_some();
        if asked { self.certificates.clone().or_else(|| self.configuration.clone()) } else { None }
    }
}

impl Endpoint {
    /// The one called `asked`, a URL or the name of a context; without it, the one that Docker's own client would use.
    ///
    /// # Errors
    /// When it is neither a URL nor a context, or Docker's configuration cannot be read.
    pub fn find(asked: Option<&str>) -> Result<Self> {
        Self::find_in(&Surroundings::here(), asked)
    }

    fn find_in(here: &Surroundings, asked: Option<&str>) -> Result<Self> {
        let name = match asked.map(str::to_owned).or_else(|| here.host.clone()).or_else(|| here.context.clone()) {
            Some(name) => name,
            None => here.configured_context()?.unwrap_or_else(|| DEFAULT_CONTEXT.to_owned()),
        };
        if name == DEFAULT_CONTEXT {
            return Self::at(here, LOCAL, here.asked_certificates());
        }
        if name.contains("://") {
            return Self::at(here, &name, here.asked_certificates());
        }
        let context = find_context(here.configuration.as_deref(), &name)?;
        Ok(Self { name, ..Self::at(here, &context.host, context.certificates)? })
    }

    fn at(here: &Surroundings, url: &str, certificates: Option<PathBuf>) -> Result<Self> {
        let bad = |why: &str| {
            Error::invalid(format!("{url:?} is no place of Docker: {why}")).with_hint(
                "write unix:///var/run/docker.sock, tcp://HOST:PORT, ssh://USER@HOST, or the name of a Docker context",
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        if rest.is_empty() {
            return Err(bad("it says no place"));
        }
        let transport = match scheme {
            "unix" => Transport::Socket(rest.into()),
            "npipe" if cfg!(windows) => Transport::Pipe(url.to_owned()),
            "npipe" => return Err(bad("only Windows has such pipes")),
            "tcp" | "http" => Transport::Tcp { address: rest.trim_end_matches('/').to_owned(), certificates },
            "https" => {
                let certificates = certificates.or_else(|| here.configuration.clone());
                Transport::Tcp { address: rest.trim_end_matches('/').to_owned(), certificates }
            }
            "ssh" => Transport::Ssh(url.to_owned()),
            _ => return Err(bad("there is no such scheme")),
        };
        Ok(Self { name: url.to_owned(), transport })
    }

    /// Whether its ports on 127.0.0.1 are those of this machine.
    #[must_use]
    pub fn is_here(&self) -> bool {
        match &self.transport {
            Transport::Socket(_) | Transport::Pipe(_) => true,
            Transport::Tcp { address, .. } => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                ["localhost", "127.0.0.1", "[::1]"].contains(&host)
            }
            Transport::Ssh(_) => false,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

struct DockerContext {
    host: String,
    certificates: Option<PathBuf>,
}

fn find_context(configuration: Option<&Path>, name: &str) -> Result<DockerContext> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Meta {
        name: String,
        #[serde(default)]
        endpoints: Endpoints,
    }
    #[derive(Deserialize, Default)]
    struct Endpoints {
        docker: Option<Host>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Host {
        host: String,
    }
    let contexts = configuration.map(|directory| directory.join("contexts")).unwrap_or_default();
    let mut others = Vec::new();
    for entry in fs::read_dir(contexts.join("meta")).into_iter().flatten().flatten() {
        let Some(meta): Option<Meta> = read_json(&entry.path().join("meta.json"))? else { continue };
        if meta.name != name {
            others.push(meta.name);
            continue;
        }
        let host = meta.endpoints.docker.map(|docker| docker.host).ok_or_else(|| {
            Error::invalid(format!("the Docker context {name} does not say where its Docker is"))
                .with_hint("`docker context inspect` shows what it says")
        })?;
        let certificates = contexts.join("tls").join(entry.file_name()).join("docker");
        return Ok(DockerContext { host, certificates: certificates.is_dir().then_some(certificates) });
    }
    others.sort();
    let hint = if others.is_empty() {
        "`docker context create` makes one; a URL such as unix:///var/run/docker.sock does without".to_owned()
    } else {
        format!("there is: {}", others.join(", "))
    };
    Err(Error::new(ErrorKind::InvalidInput, format!("there is no Docker context called {name:?}")).with_hint(hint))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.context(|| format!("cannot read Docker's configuration {}", path.display()))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| {
        Error::invalid(format!("Docker's configuration {} is damaged", path.display())).with_source(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(current: Option<&str>) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        if let Some(current) = current {
            fs::write(directory.path().join("config.json"), format!("{{\"currentContext\": {current:?}}}")).unwrap();
        }
        for (id, text) in [
            ("aa", r#"{"Name": "far", "Endpoints": {"docker": {"Host": "ssh://me@far", "SkipTLSVerify": false}}}"#),
            ("bb", r#"{"Name": "safe", "Metadata": {}, "Endpoints": {"docker": {"Host": "tcp://safe:2376"}}}"#),
            ("cc", r#"{"Name": "empty", "Endpoints": {}}"#),
        ] {
            let meta = directory.path().join("contexts/meta").join(id);
            fs::create_dir_all(&meta).unwrap();
            fs::write(meta.join("meta.json"), text).unwrap();
        }
        fs::create_dir_all(directory.path().join("contexts/tls/bb/docker")).unwrap();
        directory
    }

    #[test]
    fn it_is_where_docker_itself_would_look() {
        let directory = configuration(Some("far"));
        let mut here = Surroundings { configuration: Some(directory.path().to_owned()), ..Surroundings::default() };
        let find = |here: &Surroundings| Endpoint::find_in(here, None).unwrap();
        assert_eq!(
            (find(&here).to_string().as_str(), find(&here).transport),
            ("far", Transport::Ssh("ssh://me@far".into()))
        );
        here.context = Some("safe".to_owned());
        let certificates = directory.path().join("contexts/tls/bb/docker");
        let safe = Transport::Tcp { address: "safe:2376".to_owned(), certificates: Some(certificates) };
        assert_eq!(find(&here).transport, safe);
        here.host = Some("tcp://plain:2375".to_owned());
        assert_eq!(find(&here).transport, Transport::Tcp { address: "plain:2375".to_owned(), certificates: None });
        here.verify_tls = true;
        let certificates = Some(directory.path().to_owned());
        assert_eq!(find(&here).transport, Transport::Tcp { address: "plain:2375".to_owned(), certificates });
        let asked = Endpoint::find_in(&here, Some("unix:///s")).unwrap();
        assert_eq!(asked.transport, Transport::Socket("/s".into()));
        assert!(asked.is_here() && !find(&here).is_here());
        assert!(Endpoint::find_in(&here, Some("tcp://127.0.0.1:2375")).unwrap().is_here());
    }

    #[test]
    fn without_a_word_it_is_the_local_one() {
        for here in [
            Surroundings::default(),
            Surroundings { context: Some("default".to_owned()), ..Surroundings::default() },
            Surroundings { configuration: Some("/nonexistent".into()), ..Surroundings::default() },
        ] {
            assert_eq!(Endpoint::find_in(&here, None).unwrap().to_string(), LOCAL);
        }
    }

    #[test]
    fn what_is_no_place_says_why() {
        let directory = configuration(None);
        let here = Surroundings { configuration: Some(directory.path().to_owned()), ..Surroundings::default() };
        let error = |asked: &str| Endpoint::find_in(&here, Some(asked)).unwrap_err();
        assert_eq!(error("fra").to_string(), "there is no Docker context called \"fra\"");
        assert_eq!(error("fra").hint(), Some("there is: empty, far, safe"));
        assert_eq!(error("empty").to_string(), "the Docker context empty does not say where its Docker is");
        assert_eq!(error("ftp://x").to_string(), "\"ftp://x\" is no place of Docker: there is no such scheme");
        assert_eq!(error("unix://").to_string(), "\"unix://\" is no place of Docker: it says no place");
        fs::write(directory.path().join("config.json"), "{").unwrap();
        assert!(Endpoint::find_in(&here, None).unwrap_err().to_string().ends_with("config.json is damaged"));
    }
}
