//! From nodes on which nothing runs to a cluster whose replication is proven, in the order of the recipe.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blockdev::{Error, ErrorKind, Result};
use postgres_protocol::password::scram_sha_256;

use super::explain::likely_cause;
use super::install::{Programs, supported_version};
use super::secret::{Passwords, REPLICATOR, SUPERUSER};
use super::sql::OnNode;
use super::{Postgres, STOCK, client_slot_active, conf, heartbeat, proof, sql};
use crate::cluster::Cluster;
use crate::doctor::Finding;
use crate::engine::{Engine, Loss, wait_for};
use crate::runtime::{Command, NodeLog, quote};
use crate::step::Step;
use crate::topology::{Node, Role};

pub(super) fn all<'a>(engine: &'a Postgres, cluster: &'a Cluster, loss: Loss) -> Result<Vec<Step<'a>>> {
    let programs = &engine.programs(cluster)?;
    let primary = cluster.record.topology.primary();
    let mut steps: Vec<Step<'a>> = check_parameters(programs, cluster).into_iter().collect();
    if !cluster.record.config.trust {
        steps.push(make_passwords(cluster));
    }
    steps.push(initialize(programs, cluster, primary));
    steps.push(configure(engine, cluster, primary));
    steps.push(start_node(engine, programs, cluster, primary));
    steps.push(make_replicator(cluster, primary));
    for replica in cluster.record.topology.replicas() {
        steps.push(make_slot(cluster, replica));
        steps.push(copy(programs, cluster, replica, loss));
        steps.push(configure(engine, cluster, replica));
        steps.push(start_node(engine, programs, cluster, replica));
    }
    steps.extend(heartbeat::step(cluster));
    steps.push(proof::step(cluster));
    Ok(steps)
}

pub(in crate::engine) fn start<'a>(
    engine: &'a Postgres,
    cluster: &'a Cluster,
    nodes: &[&'a Node],
) -> Result<Vec<Step<'a>>> {
    let programs = &engine.programs(cluster)?;
    for node in nodes {
        if !has_data(cluster, node)? {
            return Err(Error::refused(format!("{} is not complete: it has no data yet", node.name))
                .with_hint("`provision up` makes them, or goes on where it was interrupted"));
        }
    }
    let mut steps: Vec<Step<'a>> = nodes
        .iter()
        .flat_map(|node| [configure(engine, cluster, node), start_node(engine, programs, cluster, node)])
        .collect();
    if nodes.iter().any(|node| node.role == Role::Primary) {
        steps.extend(heartbeat::step(cluster));
    }
    Ok(steps)
}

/// Looks whether the database takes the parameters, where nobody could be asked before the nodes were there.
pub(in crate::engine) fn check_parameters<'a>(programs: &Programs, cluster: &'a Cluster) -> Option<Step<'a>> {
    let primary = cluster.record.topology.primary();
    if cluster.runtime().is_this_machine() || cluster.record.config.parameters.is_empty() {
        return None;
    }
    let shown = cluster.runtime().shell(primary, &conf::try_out(programs, cluster));
    let programs = programs.clone();
    let step = Step::new(
        "try out the database's parameters",
        // Later on they are tried out before anything is done.
        move || Ok(cluster.directory.was_complete(&primary.name)),
        move || match conf::rejected(&programs, cluster) {
            None => Ok(()),
            Some(Finding { message, remedy, .. }) => Err(Error::refused(message).with_hint(remedy)),
        },
    );
    Some(step.verify(|| Ok(())).shell([shown]))
}

pub(in crate::engine) fn make_passwords(cluster: &Cluster) -> Step<'_> {
    let path = cluster.directory.passwords();
    let shown = quote(&path.to_string_lossy());
    let (checked, made) = (path.clone(), path);
    Step::new(
        "make the passwords",
        move || if checked.exists() { Passwords::read(&checked).map(|_| true) } else { Ok(false) },
        move || Passwords::make(&made),
    )
    .shell([
        format!("(umask 077; for user in {SUPERUSER} {REPLICATOR}; do echo \"*:*:*:$user:$(openssl rand -hex 24)\"; done >{shown})"),
    ])
}

/// Whether the data of `node` are complete: they get their name once they are.
pub(in crate::engine) fn has_data(cluster: &Cluster, node: &Node) -> Result<bool> {
    Ok(cluster.runtime().modified(node, &Postgres::data(cluster, node).join("PG_VERSION"))?.is_some())
}

/// Whether the data of `node` are complete and noted as such. What was noted and is gone was lost.
pub(in crate::engine) fn has_noted_data(cluster: &Cluster, node: &Node, loss: Loss) -> Result<bool> {
    let (has, noted) = (has_data(cluster, node)?, cluster.directory.was_complete(&node.name));
    if noted && !has {
        let data = Postgres::data(cluster, node);
        let lost = Error::new(
            ErrorKind::VerifyFailed,
            format!("the data of {} were complete once, and are gone: {}", node.name, data.display()),
        );
        match (node.role, loss) {
            (Role::Replica, Loss::CopyReplicas) => return Ok(false),
            (Role::Replica, Loss::Refuse) => {
                return Err(lost.with_hint("`provision repair` copies them from the primary anew"));
            }
            (Role::Primary, _) => {
                return Err(lost.with_hint(
                    "bring them back; or give them up with `provision down --purge`, and begin with an empty database",
                ));
            }
        }
    }
    Ok(has && noted)
}

/// The directory in which data come to be, before they get their name.
pub(in crate::engine) fn unfinished(data: &Path) -> PathBuf {
    data.with_extension("new")
}

/// What [`complete`](crate::runtime::Runtime::complete) does with unfinished data, as one would type it.
pub(in crate::engine) fn completing(cluster: &Cluster, node: &Node, data: &Path) -> String {
    let (new, data) = (unfinished(data).to_string_lossy().into_owned(), data.to_string_lossy().into_owned());
    let sync = Command::new("sync").args(["-f", &new]).as_root();
    let rename = Command::new("mv").args([new, data]).as_root();
    let runtime = cluster.runtime();
    format!("{} && {}", runtime.shell(node, &sync), runtime.shell(node, &rename))
}

/// The shell command that removes a file of a node.
fn removing(cluster: &Cluster, node: &Node, path: &Path) -> String {
    cluster.runtime().shell(node, &Command::new("rm").arg(path.to_string_lossy()).as_root())
}

/// How a node's database is made from nothing.
pub(in crate::engine) struct Initdb<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
    version: Command,
    initdb: Command,
    password_file: PathBuf,
}

impl<'a> Initdb<'a> {
    /// In the directory `new` of `node`.
    pub(in crate::engine) fn new(programs: &Programs, cluster: &'a Cluster, node: &'a Node, new: &Path) -> Self {
        let password_file = cluster.runtime().home(node).join("initdb.password");
        // Not synced file by file: everything is brought to stable storage at once before it gets its name.
        let initdb = Command::new(programs.program("initdb")).args([
            "--no-sync",
            "--no-instructions",
            "--encoding=UTF8",
            "--locale=C",
            "--data-checksums",
        ]);
        let initdb = initdb.args([format!("--username={SUPERUSER}"), format!("--pgdata={}", new.display())]);
        let initdb = if cluster.record.config.trust {
            initdb.arg("--auth=trust")
        } else {
            initdb.arg("--auth=scram-sha-256").arg(format!("--pwfile={}", password_file.display()))
        };
        let version = Command::new(programs.program("postgres")).arg("--version");
        Self { cluster, node, version, initdb, password_file }
    }

    /// What it runs, as one would type it.
    pub(in crate::engine) fn shell(&self) -> Vec<String> {
        let Self { cluster, node, .. } = self;
        let initdb = cluster.runtime().shell(node, &self.initdb);
        if cluster.record.config.trust {
            return vec![initdb];
        }
        let password = password_from_file(cluster, SUPERUSER);
        let give = cluster.runtime().shell_write(node, &self.password_file, &password);
        vec![give, initdb, removing(cluster, node, &self.password_file)]
    }

    /// Makes it.
    pub(in crate::engine) fn run(&self) -> Result<()> {
        let (runtime, node) = (self.cluster.runtime(), self.node);
        if let Some(answer) = runtime.ask(node, &self.version)? {
            supported_version(&String::from_utf8_lossy(&answer.stdout), &self.version.program)?;
        }
        if self.cluster.record.config.trust {
            return runtime.run(node, &self.initdb);
        }
        let password = Passwords::read(&self.cluster.directory.passwords())?.superuser;
        runtime.write(node, &self.password_file, password.as_bytes())?;
        let outcome = runtime.run(node, &self.initdb);
        runtime.remove(node, &self.password_file)?;
        outcome
    }
}

fn initialize<'a>(programs: &Programs, cluster: &'a Cluster, node: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let data = Postgres::data(cluster, node);
    let new = unfinished(&data);
    let initdb = Initdb::new(programs, cluster, node, &new);
    let mut shown = vec![runtime.shell_make_directory(node, &new)];
    shown.extend(initdb.shell());
    shown.push(completing(cluster, node, &data));
    Step::new(
        format!("initialize the database of {}", node.name),
        move || has_noted_data(cluster, node, Loss::Refuse),
        move || {
            if !has_data(cluster, node)? {
                runtime.make_directory(node, &new)?;
                initdb.run()?;
                runtime.complete(node, &new, &data)?;
            }
            cluster.directory.note_complete(&node.name)
        },
    )
    .shell(shown)
    .log(runtime.setup_log(node), likely_cause)
}

/// The shell command that prints the password of `user`.
fn password_from_file(cluster: &Cluster, user: &str) -> String {
    format!("sed -n 's/^\\*:\\*:\\*:{user}://p' {}", quote(&cluster.directory.passwords().to_string_lossy()))
}

pub(in crate::engine) fn configure<'a>(engine: &'a Postgres, cluster: &'a Cluster, node: &'a Node) -> Step<'a> {
    let runtime = cluster.runtime();
    let home = runtime.home(node);
    let data = Postgres::data(cluster, node);
    let (hba, conf, passwords) = (home.join("pg_hba.conf"), home.join("postgresql.conf"), home.join("pgpass"));
    let hba_text = conf::pg_hba_conf(&cluster.record.config, runtime.network(&cluster.record.topology));
    let mut shown = vec![
        runtime.shell_write(node, &hba, &here(&hba_text)),
        runtime.shell_write(node, &conf, &conf::shell_postgresql_conf(engine.kind, cluster, node, &data)),
    ];
    if !cluster.record.config.trust {
        let passwords = quote(&cluster.directory.passwords().to_string_lossy());
        shown.push(runtime.shell_write(node, &home.join("pgpass"), &format!("cat {passwords}")));
    }
    let files = move || -> Result<Vec<(PathBuf, String)>> {
        let mut files = vec![
            (hba.clone(), hba_text.clone()),
            (conf.clone(), conf::postgresql_conf(engine.kind, cluster, node, &data)?),
        ];
        if !cluster.record.config.trust {
            files.push((passwords.clone(), Passwords::read(&cluster.directory.passwords())?.as_file()));
        }
        Ok(files)
    };
    let files_again = files.clone();
    Step::new(
        format!("configure {}", node.name),
        move || {
            let files = files()?;
            let paths: Vec<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
            let written = runtime.read_all(node, &paths)?;
            Ok(files.iter().zip(written).all(|((_, content), written)| written.as_deref() == Some(content.as_bytes())))
        },
        move || {
            for (path, content) in files_again()? {
                runtime.write(node, &path, content.as_bytes())?;
            }
            Ok(())
        },
    )
    .shell(shown)
}

/// The shell command that prints `text`.
pub(super) fn here(text: &str) -> String {
    format!("cat <<'END'\n{text}END\n")
}

fn postgres(programs: &Programs, data: &Path, config_file: &Path) -> Command {
    Command::new(programs.program("postgres")).args([
        "-D".to_owned(),
        data.to_string_lossy().into_owned(),
        format!("--config-file={}", config_file.display()),
    ])
}

pub(in crate::engine) fn start_node<'a>(
    engine: &'a Postgres,
    programs: &Programs,
    cluster: &'a Cluster,
    node: &'a Node,
) -> Step<'a> {
    let runtime = cluster.runtime();
    let service = engine.service(node);
    let data = Postgres::data(cluster, node);
    let conf = runtime.home(node).join("postgresql.conf");
    let command = postgres(programs, &data, &conf);
    let shown = runtime.shell_start(service, &command);
    let sockets = runtime.sockets(node);
    let ready = Command::new(programs.program("pg_isready")).args([
        "-q",
        "-h",
        &sockets.to_string_lossy(),
        "-p",
        &node.port.to_string(),
    ]);
    let waiting = format!("until {}; do sleep 0.1; done", runtime.shell(node, &ready));
    Step::new(
        format!("start {}", node.name),
        move || {
            check_role(engine, cluster, node)?;
            if runtime.process_id(service)?.is_none() {
                return Ok(false);
            }
            let Some(mut client) = sql::try_connect(cluster, node)? else { return Ok(false) };
            Ok(has_loaded_its_configuration(cluster, node, &mut client)? && !pending_restart(node, &mut client)?)
        },
        move || {
            if runtime.process_id(service)?.is_some() {
                let mut client = engine.wait_until_it_answers(cluster, node)?;
                if !has_loaded_its_configuration(cluster, node, &mut client)? {
                    reload(cluster, node, &mut client)?;
                }
                if !pending_restart(node, &mut client)? {
                    return Ok(());
                }
                if node.role == Role::Replica {
                    catch_up(cluster, node, client)?;
                }
                engine.stop(cluster, node)?;
            }
            clear_the_way(cluster, node)?;
            runtime.start(service, &command)?;
            engine.wait_until_it_answers(cluster, node).map(drop)
        },
    )
    .shell([shown, waiting])
    .log(NodeLog::of(runtime, service), engine.kind.likely_cause)
}

/// Waits until a replica knows the parameters with which its primary runs by now: with lower ones than those it knows of, it
/// would not start. Where the primary's are higher than its own, it pauses and waits for its restart.
fn catch_up(cluster: &Cluster, replica: &Node, client: postgres::Client) -> Result<()> {
    let primary = cluster.record.topology.primary();
    let Some(mut writer) = sql::try_connect(cluster, primary)? else { return Ok(()) };
    let written: String =
        writer.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).on(primary, "cannot ask")?.get(0);
    let client = std::cell::RefCell::new(client);
    wait_for(cluster, &format!("{} has caught up", replica.name), || {
        let row = client
            .borrow_mut()
            .query_one(
                "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn OR pg_get_wal_replay_pause_state() = 'paused'",
                &[&written],
            )
            .on(replica, "cannot ask")?;
        Ok(row.get::<_, Option<bool>>(0).unwrap_or(false).then_some(()))
    })
}

/// What is a replica in the topology must not start as a second primary, nor the other way round.
fn check_role(engine: &Postgres, cluster: &Cluster, node: &Node) -> Result<()> {
    let signal = Postgres::data(cluster, node).join(engine.kind.signal);
    let is_standby = cluster.runtime().modified(node, &signal)?.is_some();
    match node.role {
        Role::Replica if !is_standby => Err(Error::refused(format!(
            "{} is no replica any more: {} is gone; somebody has promoted it",
            node.name,
            signal.display()
        ))
        .with_hint(format!("`provision replica remove {0}`, then `provision replica add {0}`", node.name))),
        Role::Primary if is_standby => Err(Error::refused(format!(
            "{} is no primary any more: somebody has made it a replica ({})",
            node.name,
            signal.display()
        ))),
        _ => Ok(()),
    }
}

/// The lock files that a crash left behind name a process that may be anybody by now; PostgreSQL would believe them.
fn clear_the_way(cluster: &Cluster, node: &Node) -> Result<()> {
    let data = Postgres::data(cluster, node);
    let pid_file = data.join("postmaster.pid");
    let content = cluster.runtime().read(node, &pid_file)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let id = text.lines().next().unwrap_or_default().trim();
    // A postmaster's working directory is its data directory.
    let ask = Command::new("readlink").arg(format!("/proc/{id}/cwd"));
    let directory = cluster.runtime().ask(node, &ask)?.map(|answer| answer.stdout).unwrap_or_default();
    if Path::new(String::from_utf8_lossy(&directory).trim_end()) == data {
        return Err(Error::refused(format!(
            "process {id} works on the data of {}, and provision did not start it",
            node.name
        ))
        .with_hint(format!("stop it: pg_ctl stop -D {}", data.display())));
    }
    let socket_lock = cluster.runtime().sockets(node).join(format!(".s.PGSQL.{}.lock", node.port));
    cluster.runtime().remove(node, &socket_lock)?;
    cluster.runtime().remove(node, &pid_file)
}

fn has_loaded_its_configuration(cluster: &Cluster, node: &Node, client: &mut postgres::Client) -> Result<bool> {
    let loaded: SystemTime = client.query_one("SELECT pg_conf_load_time()", &[]).on(node, "cannot ask")?.get(0);
    for file in ["postgresql.conf", "pg_hba.conf"] {
        let written = cluster.runtime().modified(node, &cluster.runtime().home(node).join(file))?;
        // PostgreSQL's clock has microseconds, a file's has nanoseconds.
        if written.is_some_and(|written| micros(written) > micros(loaded)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn micros(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros()
}

fn pending_restart(node: &Node, client: &mut postgres::Client) -> Result<bool> {
    let pending = client
        .query_one("SELECT count(*) FROM pg_settings WHERE pending_restart", &[])
        .on(node, "cannot ask for the settings of")?;
    Ok(pending.get::<_, i64>(0) > 0)
}

fn reload(cluster: &Cluster, node: &Node, client: &mut postgres::Client) -> Result<()> {
    // Asked again each time: the postmaster may have read the files just before they were written.
    let client = std::cell::RefCell::new(client);
    wait_for(cluster, &format!("{} has read its configuration", node.name), || {
        let mut client = client.borrow_mut();
        client.query_one("SELECT pg_reload_conf()", &[]).on(node, "cannot reload the configuration of")?;
        Ok(has_loaded_its_configuration(cluster, node, &mut client)?.then_some(()))
    })
}

pub(in crate::engine) fn make_replicator<'a>(cluster: &'a Cluster, primary: &'a Node) -> Step<'a> {
    let role = format!("CREATE ROLE {REPLICATOR} WITH REPLICATION LOGIN");
    let shown = if cluster.record.config.trust {
        psql(cluster, primary, &role)
    } else {
        // Printed by the shell itself: nobody sees it among the arguments of a process.
        let password = password_from_file(cluster, REPLICATOR);
        format!("echo \"{role} PASSWORD '$({password})'\" | {}", piped_client(cluster, primary))
    };
    Step::new(
        format!("let replicas log in to {}", primary.name),
        move || sql::replicator_can_log_in(cluster, primary),
        move || {
            let mut client = sql::connect(cluster, primary)?;
            let exists = client
                .query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&REPLICATOR])
                .on(primary, "cannot list the roles of")?
                .is_some();
            let verb = if exists { "ALTER" } else { "CREATE" };
            let password = if cluster.record.config.trust {
                "NULL".to_owned()
            } else {
                // The verifier, not the password: statements may be logged. It is base64 and needs no quoting.
                let password = Passwords::read(&cluster.directory.passwords())?.replicator;
                format!("'{}'", scram_sha_256(password.as_bytes()))
            };
            client
                .batch_execute(&format!("{verb} ROLE {REPLICATOR} WITH REPLICATION LOGIN PASSWORD {password}"))
                .on(primary, "cannot make the role for replication on")
        },
    )
    .shell([shown])
}

pub(super) fn psql(cluster: &Cluster, node: &Node, statement: &str) -> String {
    client(cluster, node, &["-c", statement])
}

/// The shell command that gives the database's client what comes through a pipe.
fn piped_client(cluster: &Cluster, node: &Node) -> String {
    let (runtime, command) = (cluster.runtime(), cluster.engine().client(cluster, node));
    if runtime.is_this_machine() { command.to_string() } else { runtime.shell_with_input(node, &command) }
}

/// The shell command that calls the database's client with `args`.
fn client(cluster: &Cluster, node: &Node, args: &[&str]) -> String {
    let (runtime, command) = (cluster.runtime(), cluster.engine().client(cluster, node).args(args.iter().copied()));
    if runtime.is_this_machine() { command.to_string() } else { runtime.shell(node, &command) }
}

pub(in crate::engine) fn make_slot<'a>(cluster: &'a Cluster, replica: &'a Node) -> Step<'a> {
    let primary = cluster.record.topology.primary();
    let slot = replica.name.as_str();
    Step::new(
        format!("make a replication slot for {}", replica.name),
        move || Ok(client_slot_active(cluster, primary, slot)?.is_some()),
        move || {
            // Reserved at once: nothing that the replica will need is thrown away while it is copied.
            sql::connect(cluster, primary)?
                .execute("SELECT pg_create_physical_replication_slot($1, true)", &[&slot])
                .map(drop)
                .on(primary, "cannot make a replication slot on")
        },
    )
    .shell([psql(cluster, primary, &format!("SELECT pg_create_physical_replication_slot('{slot}', true)"))])
}

fn copy<'a>(programs: &Programs, cluster: &'a Cluster, replica: &'a Node, loss: Loss) -> Step<'a> {
    let runtime = cluster.runtime();
    let primary = cluster.record.topology.primary();
    let data = Postgres::data(cluster, replica);
    let new = unfinished(&data);
    let signal = new.join(STOCK.signal);
    let backup = Command::new(programs.program("pg_basebackup")).args([
        format!("--dbname={}", conf::conninfo(cluster, replica)),
        format!("--pgdata={}", new.display()),
        format!("--slot={}", replica.name),
        "--wal-method=stream".to_owned(),
        "--checkpoint=fast".to_owned(),
        "--no-sync".to_owned(),
        "--no-password".to_owned(),
    ]);
    let mark = Command::new("touch").arg(signal.to_string_lossy());
    let passwords = runtime.home(replica).join("pgpass");
    let mut shown = vec![runtime.shell_make_directory(replica, &new)];
    if !cluster.record.config.trust {
        let source = format!("cat {}", quote(&cluster.directory.passwords().to_string_lossy()));
        shown.push(runtime.shell_write(replica, &passwords, &source));
    }
    shown.extend([runtime.shell(replica, &backup), runtime.shell(replica, &mark), completing(cluster, replica, &data)]);
    Step::new(
        format!("copy {} to {}", primary.name, replica.name),
        move || has_noted_data(cluster, replica, loss),
        move || {
            if !has_data(cluster, replica)? {
                if !cluster.record.config.trust {
                    let content = Passwords::read(&cluster.directory.passwords())?.as_file();
                    runtime.write(replica, &passwords, content.as_bytes())?;
                }
                // A copy that was killed may hold the slot a moment longer.
                wait_for(cluster, &format!("the slot of {} is free", replica.name), || {
                    Ok((client_slot_active(cluster, primary, replica.name.as_str())? != Some(true)).then_some(()))
                })?;
                runtime.make_directory(replica, &new)?;
                runtime.run(replica, &backup)?;
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
