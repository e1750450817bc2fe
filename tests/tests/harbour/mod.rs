//! A place for clusters in containers, which proves at its end that nothing of them is left there either.
#![allow(dead_code, reason = "every file of tests uses its own part of it")]

use serde_json::Value;
use tests::docker::Docker;

use crate::place::Place;

/// A place for clusters in containers.
pub struct Harbour {
    pub place: Place,
    pub docker: &'static Docker,
}

impl Harbour {
    pub fn new(docker: &'static Docker) -> Self {
        Self { place: Place::in_docker(docker), docker }
    }

    pub fn container(&self, node: &str) -> String {
        format!("onedisk-{}-{node}", self.place.name)
    }

    pub fn inspect(&self, node: &str) -> Value {
        let text = self.docker.output(&["container", "inspect", &self.container(node)]);
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    }

    /// Everything of this cluster in Docker: what has its name, and what has its label.
    pub fn objects(&self) -> Vec<String> {
        let filters = [format!("name=onedisk-{}", self.place.name), format!("label=onedisk.name={}", self.place.name)];
        let mut found = Vec::new();
        for filter in &filters {
            for (kind, list) in [
                ("container", &["container", "ls", "--all", "--format", "{{.Names}}"][..]),
                ("network", &["network", "ls", "--format", "{{.Name}}"]),
                ("volume", &["volume", "ls", "--format", "{{.Name}}"]),
            ] {
                let names = self.docker.output(&[list, &["--filter", filter]].concat());
                found.extend(names.lines().map(|name| format!("{kind} {name}")));
            }
        }
        found.sort();
        found.dedup();
        found
    }

    pub fn assert_nothing_left(&self) {
        assert_eq!(self.objects(), [""; 0]);
        self.place.assert_nothing_left();
    }

    pub fn gone(&self) {
        self.place.ok(&["down", "--purge", "--yes"]);
        self.assert_nothing_left();
    }
}
