//! PolarDB built from its source, as the recipe does it: in an image that has what that takes, once on each machine, in a
//! directory that the nodes there share.

use std::path::{Path, PathBuf};
use std::process::Output;

use blockdev::Result;

use super::explain::likely_cause;
use super::steps::missing_polarfs;
use crate::cluster::Cluster;
use crate::config::{Pfsd, Source};
use crate::runtime::Command;
use crate::step::Step;
use crate::topology::{Node, Topology};

/// The image that has what building takes, and PolarFS.
pub(super) const IMAGE: &str = "polardb/polardb_pg_devel:ubuntu22.04";
/// The directory that the nodes of a machine share, as in the recipe.
pub(super) const DIRECTORY: &str = "/data";
/// Where the programs are in the end.
pub(super) const PROGRAMS: &str = "/data/polardb/tmp_polardb_pg_15_base/bin";
/// The source.
const SOURCE: &str = "/data/PolarDB-for-PostgreSQL";
/// What is built. The name of a directory in it is PolarDB's own.
const PREFIX: &str = "/data/polardb";
/// Is there once all of it is.
const COMPLETE: &str = "/data/polardb/onedisk-complete";
/// Where a program of every container is looked for first.
const ON_PATH: &str = "/usr/local/bin";
/// What is typed in the source: the recipe's own line, but with as many jobs as there are CPUs, and without assertions, which
/// it has for debugging alone.
const BUILD: &str = "cd /data/PolarDB-for-PostgreSQL && \
     ./build.sh --prefix=/data/polardb --jobs=\"$(nproc)\" --debug=off --port=5432 --ni --ec=\"--with-pfsd\"";

/// A node on each machine.
fn builders(topology: &Topology) -> Vec<&Node> {
    let mut builders: Vec<&Node> = Vec::new();
    for node in topology.nodes() {
        if builders.iter().all(|builder| builder.docker != node.docker) {
            builders.push(node);
        }
    }
    builders
}

/// Whether PolarDB is there, as far as it is built at all.
pub(super) fn is_complete(cluster: &Cluster, node: &Node) -> Result<bool> {
    Ok(cluster.runtime().modified(node, Path::new(COMPLETE))?.is_some())
}

/// What the image lacks that building takes, if it can be asked.
pub(super) fn missing_program(pfsd: &Pfsd, ask: impl Fn(&Command) -> Result<Option<Output>>) -> Result<Option<String>> {
    if let Some(what) = missing_polarfs(pfsd, &ask)? {
        return Ok(Some(what));
    }
    let Some(git) = ask(&Command::new("git").arg("--version"))? else { return Ok(None) };
    let lacks = || format!("the image has no git: {}", String::from_utf8_lossy(&git.stderr).trim());
    Ok((!git.status.success()).then(lacks))
}

/// The steps that build it, and put its programs on the path of every node.
pub(super) fn steps<'a>(cluster: &'a Cluster, source: &'a Source) -> Vec<Step<'a>> {
    let builders = builders(&cluster.record.topology);
    let several = builders.len() > 1;
    let place = |node: &Node| if several { format!(" on the machine of {}", node.name) } else { String::new() };
    let mut steps = Vec::new();
    for node in builders {
        steps.push(clone(cluster, node, source, &place(node)));
        steps.push(build(cluster, node, &place(node)));
    }
    steps.extend(cluster.record.topology.nodes().iter().map(|node| use_it(cluster, node)));
    steps
}

fn clone<'a>(cluster: &'a Cluster, node: &'a Node, source: &Source, place: &str) -> Step<'a> {
    let runtime = cluster.runtime();
    let new = format!("{SOURCE}.new");
    // The database's user builds it, whose directory this is, too.
    let like = format!("--reference={}", runtime.sockets(node).display());
    let give = Command::new("chown").args([like.as_str(), DIRECTORY]).as_root();
    let clear = Command::new("rm").args(["-rf", &new]);
    let Source { url, branch } = source;
    let clone = Command::new("git").args(["clone", "--depth", "1", "-b", branch, "--", url, &new]);
    let name = Command::new("mv").args(["-T", &new, SOURCE]);
    let commands = [give, clear, clone, name];
    let shown: Vec<String> = commands.iter().map(|command| runtime.shell(node, command)).collect();
    Step::new(
        format!("clone PolarDB{place}"),
        move || Ok(runtime.modified(node, Path::new(SOURCE))?.is_some()),
        move || commands.iter().try_for_each(|command| runtime.run(node, command)),
    )
    .shell(shown)
    .log(runtime.setup_log(node), likely_cause)
    .follow(runtime.setup_log(node))
}

fn build<'a>(cluster: &'a Cluster, node: &'a Node, place: &str) -> Step<'a> {
    let runtime = cluster.runtime();
    // What was begun and cut short is begun anew.
    let clear = Command::new("rm").args(["-rf", PREFIX]);
    let build = Command::new("sh").args(["-c", BUILD]);
    let list = Command::new("test").args(["-x", &program("postgres")]);
    let mark = Command::new("touch").arg(COMPLETE);
    let commands = [clear, build, list, mark];
    let shown: Vec<String> = commands.iter().map(|command| runtime.shell(node, command)).collect();
    Step::new(
        format!("build PolarDB{place}, which takes some ten minutes"),
        move || is_complete(cluster, node),
        move || commands.iter().try_for_each(|command| runtime.run(node, command)),
    )
    .shell(shown)
    .log(runtime.setup_log(node), likely_cause)
    .follow(runtime.setup_log(node))
}

/// Puts the programs on the path of a node that was made before they were.
fn use_it<'a>(cluster: &'a Cluster, node: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let link = Command::new("sh").args(["-c".to_owned(), format!("ln -sf {PROGRAMS}/* {ON_PATH}/")]).as_root();
    let shown = runtime.shell(node, &link);
    Step::new(
        format!("put PolarDB on the path of {}", node.name),
        move || {
            let linked = PathBuf::from(ON_PATH).join("postgres");
            let ask = Command::new("readlink").arg(linked.to_string_lossy());
            let answer = runtime.ask(node, &ask)?.map(|answer| answer.stdout).unwrap_or_default();
            Ok(String::from_utf8_lossy(&answer).trim_end() == program("postgres"))
        },
        move || runtime.run(node, &link),
    )
    .shell([shown])
    .log(runtime.setup_log(node), likely_cause)
}

fn program(name: &str) -> String {
    format!("{PROGRAMS}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Role;

    #[test]
    fn it_is_built_once_on_each_machine() {
        let node = |name: &str, role, port, docker: Option<&str>| Node {
            docker: docker.map(str::to_owned),
            ..Node::new(name.parse().unwrap(), role, port)
        };
        let far = Some("ssh://far");
        let topology = Topology::new(vec![
            node("a", Role::Primary, 1, None),
            node("b", Role::Replica, 2, far),
            node("c", Role::Replica, 3, None),
            node("d", Role::Replica, 4, far),
        ])
        .unwrap();
        let names: Vec<&str> = builders(&topology).into_iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn the_places_are_below_what_is_shared() {
        for place in [PROGRAMS, SOURCE, PREFIX, COMPLETE] {
            assert!(Path::new(place).starts_with(DIRECTORY), "{place}");
        }
        assert!(BUILD.contains(SOURCE) && BUILD.contains(&format!("--prefix={PREFIX} ")));
    }
}
