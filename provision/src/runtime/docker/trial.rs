//! A container for one question: made of the nodes' image, and gone with the answer.

use std::fs;
use std::path::Path;
use std::process::Output;

use blockdev::{Context, Result};
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, LogsOptions, RemoveContainerOptions, StartContainerOptions};
use futures_util::StreamExt;

use super::client::Client;
use super::findings::is_this_machine;
use super::{BOOT_ID, Docker, exit_status};
use crate::runtime::{Command, Runtime};
use crate::topology::Node;

/// Runs its arguments with the database's programs on the path, as they are on that of a node. DIRECTORIES are patterns, for
/// the container's own shell to resolve.
const RUN: &str =
    "for directory in DIRECTORIES; do [ ! -d \"$directory\" ] || PATH=$directory:$PATH; done; exec \"$0\" \"$@\"";

impl Docker {
    /// Whether the kernel under `node` is the one that says of itself what is in the file `here`.
    pub(super) fn has_kernel(&self, node: &Node, here: &Path) -> Result<bool> {
        let client = self.client(node)?;
        let what = || "cannot ask Docker about its machine".to_owned();
        let info = client.call(what, async |docker| docker.info().await)?;
        let here = fs::read(here).context(|| format!("cannot read {}", here.display()))?;
        // Asked for only where something speaks against it: it takes a container.
        if is_this_machine(&info) && fs::read(BOOT_ID).is_ok_and(|own| own == here) {
            return Ok(true);
        }
        let asked = self.ask_beforehand(node, &Command::new("cat").arg(BOOT_ID))?;
        // Where nobody can be asked yet, it is found out when somebody can.
        Ok(asked.is_none_or(|answer| !answer.status.success() || answer.stdout == here))
    }

    /// What `command` prints in a container of the image; nothing if the image is not here.
    pub(super) fn try_image(&self, client: &Client, command: &Command) -> Result<Option<Output>> {
        if !self.has_image(client)? {
            return Ok(None);
        }
        // No node is called so: a name has no dot. Whoever was killed here has left it behind.
        let trial = Trial { client, name: format!("{}.trial", self.network_name()) };
        trial.remove()?;
        let script = RUN.replace("DIRECTORIES", &self.program_directories.join(" "));
        let mut words = vec!["sh".to_owned(), "-c".to_owned(), script, command.program.clone()];
        words.extend(command.args.iter().cloned());
        let body = ContainerCreateBody {
            user: Some(self.user_of(command).to_owned()),
            entrypoint: Some(words),
            cmd: Some(Vec::new()),
            image: Some(self.image.clone()),
            labels: Some(self.labels()),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions { name: Some(trial.name.clone()), ..CreateContainerOptions::default() };
        let what = || format!("cannot run `{command}` in a container of {}", self.image);
        client.call(what, async |docker| docker.create_container(Some(options), body).await.map(drop))?;
        let started = async |docker: bollard::Docker| {
            docker.start_container(&trial.name, None::<StartContainerOptions>).await?;
            let follow = LogsOptions { follow: true, stdout: true, stderr: true, ..LogsOptions::default() };
            let mut said = docker.logs(&trial.name, Some(follow));
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            while let Some(piece) = said.next().await {
                match piece? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    other => stdout.extend_from_slice(&other.into_bytes()),
                }
            }
            let seen = docker.inspect_container(&trial.name, None).await?;
            let code = seen.state.and_then(|state| state.exit_code).unwrap_or(-1);
            Ok(Output { status: exit_status(code), stdout, stderr })
        };
        let docker = client.docker();
        let outcome = client.wait(started(docker), "asking an image", &self.cancel)?;
        let output = outcome.map_err(|error| client.described(what(), error))?;
        trial.remove()?;
        Ok(Some(output))
    }
}

/// The container, if it is there, until this is dropped.
struct Trial<'a> {
    client: &'a Client,
    name: String,
}

impl Trial<'_> {
    fn remove(&self) -> Result<()> {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        let what = || format!("cannot remove the container {}", self.name);
        self.client.look(what, async |docker| docker.remove_container(&self.name, Some(options)).await).map(drop)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // On the way out with another error, which is the one to be told.
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Origin, Settings};
    use crate::engine::postgres::Postgres;
    use crate::state::{Record, StateDirectory};
    use crate::topology::{Role, Topology};

    #[test]
    fn another_kernel_is_known_by_its_boot() {
        let here = ::tests::needs_docker!();
        let root = tempfile::tempdir().unwrap();
        let mut layers = Layers::default();
        let text = format!(
            "name = \"trial_{}\"\nruntime = \"docker\"\ndocker = {:?}\nimage = {:?}",
            std::process::id(),
            here.host,
            ::tests::docker::IMAGE
        );
        layers.add(Settings::parse(&text, Path::new("t")).unwrap(), |_| Origin::File("t".into()));
        let node = Node::new("primary".parse().unwrap(), Role::Primary, 1);
        let record = Record::new(layers.config().unwrap(), Topology::new(vec![node.clone()]).unwrap()).unwrap();
        let directory = StateDirectory::find(Some(root.path())).unwrap().cluster(&record.config.name);
        let docker = Docker::new(&directory, &record, &Postgres::new(None), &blockdev::Cancel::new());
        assert!(docker.has_kernel(&node, Path::new(BOOT_ID)).unwrap());
        // As if this program ran under another one.
        let other = root.path().join("boot_id");
        fs::write(&other, "3f1b0c64-8d2e-4a55-9a9e-0f5a1c2b7d10\n").unwrap();
        assert!(!docker.has_kernel(&node, &other).unwrap());

        // What is asked leaves nothing behind, whatever it says.
        let client = docker.client(&node).unwrap();
        let ask = |command: Command| docker.try_image(&client, &command).unwrap().unwrap();
        let answer = ask(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 7"]));
        assert_eq!((answer.status.code(), &*answer.stdout, &*answer.stderr), (Some(7), &b"out\n"[..], &b"err\n"[..]));
        assert_eq!(ask(Command::new("no-such-program")).status.code(), Some(127));
        assert!(
            String::from_utf8(ask(Command::new("postgres").arg("--version")).stdout).unwrap().contains("PostgreSQL")
        );
        assert_eq!(
            here.output(&["ps", "--all", "--quiet", "--filter", &format!("name=onedisk-{}", record.config.name)]),
            ""
        );
    }
}
