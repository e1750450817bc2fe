//! What runs in a container for a long time.

use std::time::{Duration, Instant};

use blockdev::{Error, ErrorKind, Result};
use nix::sys::signal::Signal;

use super::exec::{self, Exec};
use super::{Docker, HOME, INTERVAL};
use crate::runtime::{Command, Runtime, Service, words};

impl Docker {
    /// Starts a service, which outlives this process.
    pub(super) fn start_service(&self, service: Service<'_>, command: &Command) -> Result<()> {
        let client = self.client(service.node)?;
        let (container, label) = (self.container_name(service.node), self.label(service.node, service.name));
        let exec = Exec { container: &container, label: &label, user: self.user_of(command), home: HOME, command };
        exec.start(&client, &self.log(service).to_string_lossy())
    }

    /// The process id of a service, and whom it runs as.
    pub(super) fn find_service(&self, service: Service<'_>) -> Result<Option<(u32, String)>> {
        let client = self.client(service.node)?;
        let Some(container) = self.container(&client, service.node)?.filter(|container| container.running) else {
            return Ok(None);
        };
        let (name, label) = (self.container_name(service.node), self.label(service.node, service.name));
        for running in exec::running(&client, &name, &container.commands)? {
            if running.label == label
                && let Some(process_id) = running.process_id
            {
                return Ok(Some((process_id, running.user)));
            }
        }
        for user in [self.user.as_str(), "root"] {
            if let Some(process_id) = exec::find(&client, &name, &label, user)?.first() {
                return Ok(Some((*process_id, user.to_owned())));
            }
        }
        Ok(None)
    }

    /// The words of the command that a service runs as, if it runs.
    pub(super) fn words_of_service(&self, service: Service<'_>) -> Result<Option<Vec<String>>> {
        let Some((_, user)) = self.find_service(service)? else { return Ok(None) };
        let client = self.client(service.node)?;
        let (name, label) = (self.container_name(service.node), self.label(service.node, service.name));
        // It may have ended meanwhile.
        let cmdline = exec::cmdline(&client, &name, &label, &user)?;
        Ok((!cmdline.is_empty()).then(|| words(&cmdline)))
    }

    /// Sends `signal` to a service and waits until it is gone.
    pub(super) fn stop_service(&self, service: Service<'_>, signal: Signal, patience: Duration) -> Result<()> {
        let Some((_, user)) = self.find_service(service)? else { return Ok(()) };
        let client = self.client(service.node)?;
        let (container, label) = (self.container_name(service.node), self.label(service.node, service.name));
        exec::signal(&client, &container, &label, &user, signal.as_str().trim_start_matches("SIG"))?;
        let deadline = Instant::now() + patience;
        while let Some((process_id, _)) = self.find_service(service)? {
            self.cancel.check("waiting for a process to end")?;
            if Instant::now() >= deadline {
                let (name, node) = (service.name, &service.node.name);
                let patience = patience.as_secs();
                return Err(Error::new(
                    ErrorKind::Io,
                    format!("{name} of {node} (process {process_id}) still runs {patience} s after {signal}"),
                )
                .with_hint(format!("see {} in {container}", self.log(service).display())));
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }
}
