//! What a cluster has in Docker: an image, a network, and for each node a volume and a container. Each carries the
//! cluster's label; what does not is somebody else's, whatever it is called.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

use blockdev::{ByteSize, Error, ErrorKind, Result};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, DeviceMapping, EndpointSettings, HostConfig, Mount, MountType,
    NetworkCreateRequest, NetworkingConfig, PortBinding, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, RemoveContainerOptions, RemoveVolumeOptions, StartContainerOptions,
    StopContainerOptions,
};
use futures_util::StreamExt;

use super::client::Client;
use super::{Docker, HOME, LOOPBACK};
use crate::runtime::local::ports;
use crate::runtime::{Device, quote};
use crate::topology::Node;

/// The label that says whose something is: the cluster's id.
pub(super) const CLUSTER_LABEL: &str = "onedisk.cluster";
/// The label that says what the cluster is called.
pub(super) const NAME_LABEL: &str = "onedisk.name";
/// The label that says which node of the cluster something belongs to.
pub(super) const NODE_LABEL: &str = "onedisk.node";

/// The first process of a container: it does nothing but reap what is left to it, and ends when it is told to.
const SLEEPER: &str = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";

/// What a container may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) shm_size: ByteSize,
    pub(super) memory: Option<ByteSize>,
    pub(super) cpus: Option<f64>,
}

impl Limits {
    fn nano_cpus(&self) -> Option<i64> {
        #[allow(clippy::cast_possible_truncation, reason = "a number of CPUs, checked when it was read")]
        self.cpus.map(|cpus| (cpus * 1e9) as i64)
    }
}

/// A container of ours.
#[derive(Debug)]
pub(super) struct Container {
    pub running: bool,
    /// The commands that run in it, as Docker counts them.
    pub commands: Vec<String>,
    /// The disks it was made with.
    pub devices: Vec<Device>,
    /// The port it was made with.
    pub port: Option<u16>,
}

impl Container {
    /// Whether it was made with the port of `node`, and these disks.
    pub(super) fn is_as_wanted(&self, node: &Node, devices: &[Device]) -> bool {
        self.port == Some(node.port) && self.devices == devices
    }
}

type Labels = Option<HashMap<String, String>>;

impl Docker {
    /// The name of a node's container, and of its volume.
    pub(super) fn container_name(&self, node: &Node) -> String {
        format!("onedisk-{}-{}", self.name, node.name)
    }

    pub(super) fn network_name(&self) -> String {
        format!("onedisk-{}", self.name)
    }

    /// The name of the volume that all nodes of a daemon share. No node is called so: it would have a name behind it.
    pub(super) fn shared_volume(&self) -> String {
        format!("onedisk-{}", self.name)
    }

    pub(super) fn labels(&self) -> HashMap<String, String> {
        [(CLUSTER_LABEL.to_owned(), self.id.clone()), (NAME_LABEL.to_owned(), self.name.to_string())].into()
    }

    fn node_labels(&self, node: &Node) -> HashMap<String, String> {
        let mut labels = self.labels();
        labels.insert(NODE_LABEL.to_owned(), node.name.to_string());
        labels
    }

    /// Refuses what this cluster did not make. `what` is a command of docker, such as "volume".
    fn check_ours(&self, what: &str, name: &str, labels: &Labels) -> Result<()> {
        let maker = labels.as_ref().and_then(|labels| labels.get(CLUSTER_LABEL));
        if maker == Some(&self.id) {
            return Ok(());
        }
        let message = match maker {
            Some(_) => format!("the {what} {name} belongs to another cluster called {}, or is left of one", self.name),
            None => format!("the {what} {name} exists, and this cluster did not make it"),
        };
        Err(Error::refused(message).with_hint(format!(
            "remove it (docker {what} rm {name}) if nobody needs it, or give this cluster another name with --name"
        )))
    }

    /// The container of `node`, if there is one.
    ///
    /// # Errors
    /// When one of that name is not ours, or Docker cannot be asked.
    pub(super) fn container(&self, client: &Client, node: &Node) -> Result<Option<Container>> {
        let name = self.container_name(node);
        let what = || format!("cannot look at the container {name}");
        let Some(seen) = client.look(what, async |docker| docker.inspect_container(&name, None).await)? else {
            return Ok(None);
        };
        let ContainerInspectResponse { config, state, exec_ids, host_config, .. } = seen;
        self.check_ours("container", &name, &config.and_then(|config| config.labels))?;
        let HostConfig { devices, port_bindings, .. } = host_config.unwrap_or_default();
        let devices = devices.unwrap_or_default();
        let port = |bindings: HashMap<String, _>| bindings.keys().find_map(|port| port.split_once('/')?.0.parse().ok());
        let device = |device: DeviceMapping| {
            Some(Device { path: device.path_on_host?.into(), on_node: device.path_in_container?.into() })
        };
        Ok(Some(Container {
            running: state.and_then(|state| state.running).unwrap_or(false),
            commands: exec_ids.unwrap_or_default(),
            devices: devices.into_iter().filter_map(device).collect(),
            port: port_bindings.and_then(port),
        }))
    }

    /// Whether the port of `node`, whose container is `container`, is somebody else's. On another machine nobody knows.
    pub(super) fn is_port_of_another(&self, client: &Client, node: &Node, container: Option<&Container>) -> bool {
        let ours = container.is_some_and(|container| container.running && container.port == Some(node.port));
        client.endpoint.is_here() && node.address.is_none() && !ours && !ports::is_free(node.port)
    }

    /// The volumes of a node, and where it sees them.
    fn volumes(&self, node: &Node) -> impl Iterator<Item = (String, &'static str)> {
        let shared = self.shared_directory.map(|directory| (self.shared_volume(), directory));
        std::iter::once((self.container_name(node), HOME)).chain(shared)
    }

    pub(super) fn make_container(&self, client: &Client, node: &Node, devices: &[Device]) -> Result<()> {
        let name = self.container_name(node);
        let port = format!("{}/tcp", node.port);
        let binding = PortBinding {
            host_ip: Some(node.address.unwrap_or(LOOPBACK).to_string()),
            host_port: Some(node.port.to_string()),
        };
        let mapping = |device: &Device| DeviceMapping {
            path_on_host: Some(text(&device.path)),
            path_in_container: Some(text(&device.on_node)),
            cgroup_permissions: Some("rw".to_owned()),
        };
        let mount = |(source, target): (String, &str)| Mount {
            target: Some(target.to_owned()),
            source: Some(source),
            typ: Some(MountType::VOLUME),
            ..Mount::default()
        };
        let host = HostConfig {
            mounts: Some(self.volumes(node).map(mount).collect()),
            shm_size: Some(signed(self.limits.shm_size.bytes())),
            memory: self.limits.memory.map(|size| signed(size.bytes())),
            nano_cpus: self.limits.nano_cpus(),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            port_bindings: Some([(port.clone(), Some(vec![binding]))].into()),
            devices: Some(devices.iter().map(mapping).collect()),
            network_mode: Some(self.network_name()),
            ..HostConfig::default()
        };
        let settings = EndpointSettings { aliases: Some(vec![node.name.to_string()]), ..EndpointSettings::default() };
        let body = ContainerCreateBody {
            hostname: Some(node.name.to_string()),
            user: Some("root".to_owned()),
            entrypoint: Some(vec!["sh".to_owned(), "-c".to_owned(), SLEEPER.to_owned()]),
            cmd: Some(Vec::new()),
            image: Some(self.image.clone()),
            labels: Some(self.node_labels(node)),
            exposed_ports: Some(vec![port]),
            host_config: Some(host),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some([(self.network_name(), settings)].into()),
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
        client.call(
            || format!("cannot make the container {name}"),
            async |docker| docker.create_container(Some(options), body).await.map(drop),
        )
    }

    pub(super) fn start_container(&self, client: &Client, node: &Node) -> Result<()> {
        let name = self.container_name(node);
        client
            .call(
                || format!("cannot start the container {name}"),
                async |docker| docker.start_container(&name, None::<StartContainerOptions>).await,
            )
            .map_err(|error| {
                let taken =
                    error.to_string().contains("already allocated") || error.to_string().contains("already in use");
                if taken {
                    error.with_hint(format!("stop what has port {} of {}", node.port, node.address.unwrap_or(LOOPBACK)))
                } else {
                    error
                }
            })
    }

    /// Stops the container of `node` if it is ours.
    pub(super) fn stop_container(&self, client: &Client, node: &Node) -> Result<()> {
        const PATIENCE_S: i32 = 10;
        let name = self.container_name(node);
        if !self.container(client, node)?.is_some_and(|container| container.running) {
            return Ok(());
        }
        let options = StopContainerOptions { t: Some(PATIENCE_S), ..StopContainerOptions::default() };
        client.call(
            || format!("cannot stop the container {name}"),
            async |docker| docker.stop_container(&name, Some(options)).await,
        )
    }

    /// Removes the container of `node`, with all that runs in it.
    pub(super) fn remove_container(&self, client: &Client, node: &Node) -> Result<()> {
        let name = self.container_name(node);
        if self.container(client, node)?.is_none() {
            return Ok(());
        }
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        client
            .look(
                || format!("cannot remove the container {name}"),
                async |docker| docker.remove_container(&name, Some(options)).await,
            )
            .map(drop)
    }

    /// Whether there is the volume called `name`.
    ///
    /// # Errors
    /// When it is not ours, or Docker cannot be asked.
    pub(super) fn has_volume(&self, client: &Client, name: &str) -> Result<bool> {
        let what = || format!("cannot look at the volume {name}");
        match client.look(what, async |docker| docker.inspect_volume(name).await)? {
            Some(volume) => self.check_ours("volume", name, &Some(volume.labels)).map(|()| true),
            None => Ok(false),
        }
    }

    pub(super) fn make_volume(&self, client: &Client, node: &Node) -> Result<()> {
        make_volume(client, self.container_name(node), self.node_labels(node))
    }

    pub(super) fn make_shared_volume(&self, client: &Client) -> Result<()> {
        make_volume(client, self.shared_volume(), self.labels())
    }

    pub(super) fn remove_volume(&self, client: &Client, name: &str) -> Result<()> {
        if !self.has_volume(client, name)? {
            return Ok(());
        }
        client
            .look(
                || format!("cannot remove the volume {name}"),
                async |docker| docker.remove_volume(name, None::<RemoveVolumeOptions>).await,
            )
            .map(drop)
    }

    pub(super) fn has_network(&self, client: &Client) -> Result<bool> {
        let name = self.network_name();
        let what = || format!("cannot look at the network {name}");
        match client.look(what, async |docker| docker.inspect_network(&name, None).await)? {
            Some(network) => self.check_ours("network", &name, &network.labels).map(|()| true),
            None => Ok(false),
        }
    }

    /// Docker finds a subnet that is free.
    pub(super) fn make_network(&self, client: &Client) -> Result<()> {
        let name = self.network_name();
        let request =
            NetworkCreateRequest { name: name.clone(), labels: Some(self.labels()), ..NetworkCreateRequest::default() };
        client.call(
            || format!("cannot make the network {name}"),
            async |docker| docker.create_network(request).await.map(drop),
        )
    }

    pub(super) fn remove_network(&self, client: &Client) -> Result<()> {
        let name = self.network_name();
        if !self.has_network(client)? {
            return Ok(());
        }
        client
            .look(|| format!("cannot remove the network {name}"), async |docker| docker.remove_network(&name).await)
            .map(drop)
    }

    pub(super) fn has_image(&self, client: &Client) -> Result<bool> {
        let what = || format!("cannot look at the image {}", self.image);
        Ok(client.look(what, async |docker| docker.inspect_image(&self.image).await)?.is_some())
    }

    pub(super) fn fetch_image(&self, client: &Client) -> Result<()> {
        let what = || format!("cannot fetch the image {}", self.image);
        let options = CreateImageOptions { from_image: Some(self.image.clone()), ..CreateImageOptions::default() };
        let docker = client.docker();
        let fetch = async {
            let mut progress = docker.create_image(Some(options), None, None);
            while let Some(line) = progress.next().await {
                line?;
            }
            Ok(())
        };
        client
            .wait(fetch, "fetching the image", &self.cancel)?
            .map_err(|error| self.no_image(client.described(what(), error)))
    }

    /// Asks the image's registry, by way of Docker, whether it has it.
    pub(super) fn ask_registry(&self, client: &Client) -> Result<()> {
        let docker = client.docker();
        let what = || format!("the image {} is not here, and its registry cannot be asked for it", self.image);
        let asking = async { docker.inspect_registry_image(&self.image, None).await };
        let outcome = client.wait(asking, "asking for the image", &self.cancel)?;
        outcome.map(drop).map_err(|error| self.no_image(client.described(what(), error)))
    }

    fn no_image(&self, error: Error) -> Error {
        let hint =
            "name an image that is here (docker image ls) with --image, or bring this one: docker load, docker import";
        error.with_kind(ErrorKind::NotFound).with_hint(hint)
    }

    /// What makes the network, as one would type it.
    pub(super) fn shell_make_network(&self, docker: &str) -> String {
        format!("{docker} network create {} {}", options("--label", &self.labels()), self.network_name())
    }

    /// What makes the volume that all nodes share, as one would type it.
    pub(super) fn shell_make_shared_volume(&self, docker: &str) -> String {
        format!("{docker} volume create {} {}", options("--label", &self.labels()), self.shared_volume())
    }

    /// What makes the volume and the container of `node`, as one would type it.
    pub(super) fn shell_make_container(&self, docker: &str, node: &Node, devices: &[String]) -> [String; 2] {
        let name = self.container_name(node);
        let labels = options("--label", &self.node_labels(node));
        let mut words = vec![
            format!("{docker} run --detach --name {name} --hostname {} {labels} --user root", node.name),
            format!("--network {} --network-alias {}", self.network_name(), node.name),
            format!("--publish {}:{}", SocketAddr::new(node.address.unwrap_or(LOOPBACK), node.port), node.port),
            format!("--shm-size {}", self.limits.shm_size.bytes()),
            "--security-opt no-new-privileges".to_owned(),
        ];
        let mount = |(source, target)| format!("--mount type=volume,src={source},dst={target}");
        words.extend(self.volumes(node).map(mount));
        words.extend(self.limits.memory.map(|size| format!("--memory {}", size.bytes())));
        words.extend(self.limits.cpus.map(|cpus| format!("--cpus {cpus}")));
        words.extend(devices.iter().map(|device| format!("--device {device}")));
        words.push(format!("--entrypoint sh {} -c {}", quote(&self.image), quote(SLEEPER)));
        [format!("{docker} volume create {labels} {name}"), words.join(" ")]
    }
}

fn make_volume(client: &Client, name: String, labels: HashMap<String, String>) -> Result<()> {
    let what = format!("cannot make the volume {name}");
    let request = VolumeCreateRequest { name: Some(name), labels: Some(labels), ..VolumeCreateRequest::default() };
    client.call(|| what, async |docker| docker.create_volume(request).await.map(drop))
}

fn options(option: &str, labels: &HashMap<String, String>) -> String {
    let mut words: Vec<String> = labels.iter().map(|(name, value)| format!("{option} {name}={value}")).collect();
    words.sort();
    words.join(" ")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Docker counts bytes with a sign.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
