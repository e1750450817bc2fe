//! What is likely to have gone wrong, from what PolarDB, pfsd and the tools of PolarFS say.

use crate::engine::postgres;

/// What a log says, and what that means; those that say more come first.
const CAUSES: [(&str, &str); 17] = [
    ("exec: git: not found", "the image has no git: name one that has what building PolarDB takes with --image"),
    ("Could not resolve host", "the node does not reach the repository: name a mirror of it with --build URL"),
    ("Could not find remote branch", "the repository has no such branch: name another with --build URL#BRANCH"),
    ("may already running", "another pfsd serves this disk on the node already"),
    ("is served already, by process", "another pfsd serves this disk on the node already"),
    ("holds no PolarFS volume", "there is no PolarFS volume on the shared disk"),
    ("No such file or directory, open /dev/", "the node does not see the shared disk: `provision repair`"),
    ("open local disk: open(/dev/nvme1n1", "the node may not open the shared disk: `provision repair`"),
    ("isn't formatted", "there is no PolarFS volume on the shared disk"),
    ("is formatted already", "there is a PolarFS volume on the shared disk: --reformat makes a new one"),
    (
        "can't mount PBD",
        "the database reaches no pfsd on its node, or another host has the same host id: `provision repair`",
    ),
    ("Too many connections", "a pfsd takes seven clients"),
    ("invalid polar_disk_name or polar_hostid", "polar_disk_name and polar_hostid are not to be set by hand"),
    ("dir not empty", "a database was begun on the shared disk and cut short"),
    ("pfs does not exist", "the image has no PolarFS in /usr/local/bin/pfs: name another --image"),
    (
        "Failed to get the instance memory usage",
        "this kernel has cgroup v2, where PolarDB finds no memory.stat: polar_resource_manager.enable_resource_manager=off",
    ),
    (
        "Segmentation fault",
        "a PolarDB that was built without --with-pfsd ends so when it mounts the shared disk: name another --image",
    ),
];

/// The likely cause of the failure that a log ends with.
pub(super) fn likely_cause(log: &str) -> Option<&'static str> {
    let own = CAUSES.iter().find(|(sign, _)| log.contains(sign)).map(|(_, cause)| *cause);
    own.or_else(|| postgres::likely_cause(log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polardb_first_then_what_every_postgresql_says() {
        assert!(likely_cause("ERROR:  can't mount PBD nvme1n1, id 2").is_some_and(|cause| cause.contains("host id")));
        assert_eq!(likely_cause("FATAL: No space left on device"), Some("the disk is full: make room"));
        assert_eq!(likely_cause("all is well"), None);
    }
}
