//! How the nodes are.

use blockdev::Result;
use postgres::Client;

use super::sql::{self, OnNode};
use super::{Postgres, heartbeat, steps};
use crate::cluster::Cluster;
use crate::config::Heartbeat;
use crate::engine::{NodeState, NodeStatus};
use crate::topology::{Node, Role};

/// What the primary knows of a replica that follows it.
struct Follower {
    name: String,
    lag_bytes: Option<i64>,
    lag_ms: Option<f64>,
}

pub(super) fn all(engine: &Postgres, cluster: &Cluster) -> Result<Vec<NodeStatus>> {
    let topology = &cluster.record.topology;
    let primary = topology.primary();
    // That the primary does not answer is seen in its own line.
    let followers = match sql::try_connect(cluster, primary) {
        Ok(Some(mut client)) => followers(&mut client, primary)?,
        Ok(None) | Err(_) => Vec::new(),
    };
    topology.nodes().iter().map(|node| one(engine, cluster, node, &followers)).collect()
}

fn followers(client: &mut Client, primary: &Node) -> Result<Vec<Follower>> {
    // replay_lag is empty once everything is replayed and nothing was written since.
    let rows = client
        .query(
            "SELECT application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint, \
                    CASE WHEN replay_lag IS NOT NULL THEN 1000 * extract(epoch FROM replay_lag)::float8 \
                         WHEN replay_lsn >= pg_current_wal_lsn() THEN 0.0 END \
             FROM pg_stat_replication WHERE state = 'streaming'",
            &[],
        )
        .on(primary, "cannot ask who follows")?;
    Ok(rows.iter().map(|row| Follower { name: row.get(0), lag_bytes: row.get(1), lag_ms: row.get(2) }).collect())
}

/// See [`NodeStatus::heartbeat_ms`].
fn heartbeat_ms(cluster: &Cluster, node: &Node) -> Result<Option<u64>> {
    let (Role::Primary, Heartbeat::Every(time)) = (node.role, cluster.record.config.heartbeat) else { return Ok(None) };
    let runs = heartbeat::runs(cluster, node)?;
    Ok(Some(if runs { u64::try_from(time.as_millis()).unwrap_or(u64::MAX) } else { 0 }))
}

fn one(engine: &Postgres, cluster: &Cluster, node: &Node, followers: &[Follower]) -> Result<NodeStatus> {
    let runtime = cluster.runtime();
    let process_id = runtime.process_id(engine.service(node))?;
    let follower = followers.iter().find(|follower| follower.name == node.name.as_str());
    let mut lsn = None;
    let state = if process_id.is_none() {
        if steps::has_data(cluster, node)? { NodeState::Stopped } else { NodeState::Missing }
    } else {
        match sql::try_connect(cluster, node)? {
            None => NodeState::Starting,
            Some(mut client) => {
                let row = client
                    .query_one(
                        "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() \
                         THEN pg_last_wal_replay_lsn()::text ELSE pg_current_wal_lsn()::text END",
                        &[],
                    )
                    .on(node, "cannot ask for the state of")?;
                lsn = row.get(1);
                match (node.role, row.get::<_, bool>(0)) {
                    (Role::Primary, false) => NodeState::Running,
                    (Role::Replica, true) if follower.is_some() => NodeState::Running,
                    (Role::Replica, true) => NodeState::NotFollowing,
                    _ => NodeState::WrongRole,
                }
            }
        }
    };
    Ok(NodeStatus {
        node: node.name.clone(),
        role: node.role,
        state,
        port: node.port,
        process_id,
        lsn,
        // The primary's position was read a moment before the replica's: a replica is never ahead of it.
        lag_bytes: follower.and_then(|follower| follower.lag_bytes).map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        lag_ms: follower.and_then(|follower| follower.lag_ms),
        disk_usage: runtime.disk_usage(node),
        pfsd_workers: None,
        pfsd: None,
        heartbeat_ms: heartbeat_ms(cluster, node)?,
        shared_disk_usage: None,
    })
}
