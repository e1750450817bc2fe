//! From nodes on which nothing runs to a cluster whose replication is proven, in the order of the recipe.

use std::path::Path;
use std::process::Output;

use blockdev::{Error, ErrorKind, Result};

use super::conf::SHARED_DATA;
use super::explain::likely_cause;
use super::{PolarDb, build, pfsd};
use crate::cluster::Cluster;
use crate::config::{Build, Pfsd};
use crate::disk::SharedDisk;
use crate::engine::Loss;
use crate::engine::postgres::steps::{self as server, Initdb, unfinished};
use crate::engine::postgres::{Postgres, Programs, heartbeat, proof};
use crate::runtime::Command;
use crate::state::Note;
use crate::step::Step;
use crate::topology::Node;

/// [`SHARED_DATA`] without the name of the disk.
const SHARED_DATA_ON_DISK: &str = "/shared_data";
/// What is on the shared disk last of all that `polar-initdb.sh` copies there.
const COPIED_LAST: &str = "/shared_data/pg_multixact/members/0000";
/// The option with which PolarDB is built to use pfsd.
const PFSD_OPTION: &str = "--with-pfsd";
/// The file in a data directory that makes its server a replica.
pub(super) const SIGNAL: &str = "replica.signal";

pub(super) fn all<'a>(engine: &'a PolarDb, cluster: &'a Cluster, loss: Loss) -> Result<Vec<Step<'a>>> {
    let programs = &engine.postgres.programs(cluster)?;
    let disk = cluster.shared_disk()?;
    let topology = &cluster.record.topology;
    let primary = topology.primary();
    let try_out = || {
        let look = look_for_programs(engine, programs, cluster, primary);
        std::iter::once(look).chain(server::check_parameters(programs, cluster))
    };
    let mut steps = Vec::new();
    if engine.build == Build::No {
        steps.extend(try_out());
    }
    if !cluster.record.config.trust {
        steps.push(server::make_passwords(cluster));
    }
    steps.push(pfsd::format(cluster, disk, primary));
    for node in topology.nodes() {
        steps.push(pfsd::start(cluster, node, engine.pfsd_of(node), engine.workers)?);
    }
    if let Build::From(source) = &engine.build {
        steps.extend(build::steps(cluster, source));
        steps.extend(try_out());
    }
    steps.push(make_shared_data(cluster, disk, primary));
    steps.push(initialize(programs, cluster, disk, primary));
    steps.push(server::configure(&engine.postgres, cluster, primary));
    steps.push(server::start_node(&engine.postgres, programs, cluster, primary));
    steps.push(server::make_replicator(cluster, primary));
    for replica in topology.replicas() {
        steps.push(server::make_slot(cluster, replica));
        steps.push(make_replica(programs, cluster, replica, loss));
        steps.push(server::configure(&engine.postgres, cluster, replica));
        steps.push(server::start_node(&engine.postgres, programs, cluster, replica));
    }
    steps.extend(heartbeat::step(cluster));
    steps.push(proof::step(cluster));
    Ok(steps)
}

pub(super) fn start<'a>(engine: &'a PolarDb, cluster: &'a Cluster, nodes: &[&'a Node]) -> Result<Vec<Step<'a>>> {
    let pfsds = nodes.iter().map(|node| pfsd::start(cluster, node, engine.pfsd_of(node), engine.workers));
    let mut steps = pfsds.collect::<Result<Vec<_>>>()?;
    steps.extend(server::start(&engine.postgres, cluster, nodes)?);
    Ok(steps)
}

fn look_for_programs<'a>(engine: &'a PolarDb, programs: &Programs, cluster: &'a Cluster, node: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let programs = programs.clone();
    let shown = [
        runtime.shell(node, &list_programs(engine.pfsd_of(node))),
        format!("{} | grep -e {PFSD_OPTION}", runtime.shell(node, &ask_for_options(&programs))),
    ];
    Step::new(
        "look for PolarDB and PolarFS in the image",
        // They have made the database, then.
        move || Ok(cluster.directory.was_complete(&node.name)),
        move || match missing_program(engine.pfsd_of(node), &programs, |command| runtime.ask(node, command))? {
            None => Ok(()),
            Some(what) => Err(Error::new(ErrorKind::Unsupported, what).with_hint("name another --image")),
        },
    )
    .verify(|| Ok(()))
    .shell(shown)
}

fn list_programs(pfsd: &Pfsd) -> Command {
    Command::new("ls").args(pfsd::programs(pfsd).iter().copied())
}

fn ask_for_options(programs: &Programs) -> Command {
    Command::new(programs.program("pg_config")).arg("--configure")
}

/// What the image lacks, if it can be asked. A PolarDB without pfsd would mount the shared disk, say so, and die of a
/// segmentation fault.
pub(super) fn missing_program(
    pfsd: &Pfsd,
    programs: &Programs,
    ask: impl Fn(&Command) -> Result<Option<Output>>,
) -> Result<Option<String>> {
    if let Some(what) = missing_polarfs(pfsd, &ask)? {
        return Ok(Some(what));
    }
    let Some(asked) = ask(&ask_for_options(programs))? else { return Ok(None) };
    let options = String::from_utf8_lossy(&asked.stdout);
    let without = !asked.status.success() || !options.contains(PFSD_OPTION);
    Ok(without.then(|| format!("the image's PolarDB was built without {PFSD_OPTION}: {}", options.trim())))
}

/// What the image lacks of PolarFS, if it can be asked.
pub(super) fn missing_polarfs(pfsd: &Pfsd, ask: impl Fn(&Command) -> Result<Option<Output>>) -> Result<Option<String>> {
    let Some(found) = ask(&list_programs(pfsd))? else { return Ok(None) };
    let lacks = || format!("the image has no PolarFS: {}", String::from_utf8_lossy(&found.stderr).trim());
    Ok((!found.status.success()).then(lacks))
}

/// The directory of the database on the shared disk, empty.
fn make_shared_data<'a>(cluster: &'a Cluster, disk: &'a SharedDisk, primary: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let make = pfsd::pfs(["mkdir", SHARED_DATA]);
    let remove = pfsd::pfs(["rm", "-r", SHARED_DATA.trim_end_matches('/')]);
    let shown = runtime.shell(primary, &make);
    Step::new(
        "make the database's directory on the shared disk",
        move || {
            if cluster.directory.was_complete(&primary.name) {
                return Ok(true);
            }
            // What a copy that was cut short has left is begun anew.
            Ok(disk.has(SHARED_DATA_ON_DISK)? && !cluster.directory.is_noted(Note::Copying))
        },
        move || {
            if disk.has(SHARED_DATA_ON_DISK)? {
                runtime.run(primary, &remove)?;
            }
            runtime.run(primary, &make)?;
            cluster.directory.forget_note(Note::Copying)
        },
    )
    .shell([shown])
    .log(runtime.setup_log(primary), likely_cause)
}

fn polar_initdb(programs: &Programs, local: &Path, role: &str) -> Command {
    let local = format!("{}/", local.display());
    // As root: it calls the pfs tool.
    Command::new(programs.program("polar-initdb.sh")).args([local.as_str(), SHARED_DATA, role, pfsd::STORAGE]).as_root()
}

/// The database: what is the node's own stays in its data directory, the rest goes to the shared disk.
fn initialize<'a>(programs: &Programs, cluster: &'a Cluster, disk: &'a SharedDisk, primary: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let data = Postgres::data(cluster, primary);
    let new = unfinished(&data);
    let initdb = Initdb::new(programs, cluster, primary, &new);
    let share = polar_initdb(programs, &new, "primary");
    let mut shown = vec![runtime.shell_make_directory(primary, &new)];
    shown.extend(initdb.shell());
    shown.push(runtime.shell(primary, &share));
    shown.push(server::completing(cluster, primary, &data));
    Step::new(
        format!("initialize the database of {}", primary.name),
        move || server::has_noted_data(cluster, primary, Loss::Refuse),
        move || {
            if !server::has_data(cluster, primary)? {
                runtime.make_directory(primary, &new)?;
                initdb.run()?;
                cluster.directory.note(Note::Copying)?;
                runtime.run(primary, &share)?;
                if !disk.has(COPIED_LAST)? {
                    return Err(Error::new(
                        ErrorKind::VerifyFailed,
                        format!("polar-initdb.sh succeeded, and {COPIED_LAST} is not on the shared disk"),
                    ));
                }
                runtime.complete(primary, &new, &data)?;
            }
            cluster.directory.note_complete(&primary.name)
        },
    )
    .shell(shown)
    .log(runtime.setup_log(primary), likely_cause)
}

/// What is a replica's own: empty directories, and the primary's configuration. All else is on the shared disk already.
fn make_replica<'a>(programs: &Programs, cluster: &'a Cluster, replica: &'a Node, loss: Loss) -> Step<'a> {
    let runtime = cluster.runtime();
    let primary = cluster.record.topology.primary();
    let data = Postgres::data(cluster, replica);
    let new = unfinished(&data);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let share = polar_initdb(programs, &new, "replica");
    // Made by root, it is the database's from here on.
    let give = Command::new("chown").args(["-R", &format!("--reference={}", text(&new)), &text(&new)]).as_root();
    let close = Command::new("chmod").args(["-R", "u=rwX,go=", &text(&new)]).as_root();
    let mark = Command::new("touch").arg(text(&new.join(SIGNAL)));
    let model = Postgres::data(cluster, primary).join("postgresql.conf");
    let conf = new.join("postgresql.conf");
    let shown = vec![
        runtime.shell_make_directory(replica, &new),
        runtime.shell(replica, &share),
        runtime.shell(replica, &give),
        runtime.shell(replica, &close),
        runtime.shell_write(replica, &conf, &runtime.shell(primary, &Command::new("cat").arg(text(&model)))),
        runtime.shell(replica, &mark),
        server::completing(cluster, replica, &data),
    ];
    Step::new(
        format!("make {} a replica on the shared disk", replica.name),
        move || server::has_noted_data(cluster, replica, loss),
        move || {
            if !server::has_data(cluster, replica)? {
                runtime.make_directory(replica, &new)?;
                runtime.run(replica, &share)?;
                runtime.run(replica, &give)?;
                runtime.run(replica, &close)?;
                let model = runtime.read(primary, &model)?.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("there is no {} on {}", model.display(), primary.name))
                })?;
                runtime.write(replica, &conf, &model)?;
                runtime.run(replica, &mark)?;
                runtime.remove(replica, &data)?;
                runtime.complete(replica, &new, &data)?;
            }
            cluster.directory.note_complete(&replica.name)
        },
    )
    .shell(shown)
    .log(runtime.setup_log(replica), likely_cause)
}
