//! What is likely to have gone wrong, from what PostgreSQL's programs say.

/// What a log says, and what that means; those that say more come first.
const CAUSES: [(&str, &str); 18] = [
    ("No space left on device", "the disk is full: make room"),
    ("Disk quota exceeded", "this user's quota is used up: make room"),
    ("could not bind", "another program has taken the port: `provision doctor` names it"),
    ("Address already in use", "another program has taken the port: `provision doctor` names it"),
    ("unrecognized configuration parameter", "there is no such parameter: take it out of the parameters"),
    ("invalid value for parameter", "a parameter has a value that it cannot have: mend it in the parameters"),
    ("parameter requires", "two parameters contradict each other: mend them"),
    (
        "requires \"wal_level\"",
        "two parameters contradict each other: replication needs wal_level = replica or logical",
    ),
    ("could not map anonymous shared memory", "there is too little memory for shared_buffers: lower it"),
    ("could not resize shared memory segment", "/dev/shm is too small: make it larger"),
    ("password authentication failed", "the password on the node is not that of the database"),
    ("max_wal_senders", "the primary takes no further replica: raise max_wal_senders in the parameters"),
    (
        "has already been removed",
        "the primary has thrown away what the replica still needs: `provision replica remove` it and add it again",
    ),
    ("could not connect to server", "the replica cannot reach its primary: does that run?"),
    ("connection to server at", "the replica cannot reach its primary: does that run, and take replicas?"),
    (
        "incompatible with server",
        "the files were made by another major version of PostgreSQL: name that with --bin-directory",
    ),
    ("Permission denied", "the database's user may not use a file or directory that it needs"),
    ("Out of memory", "there is too little memory"),
];

/// The likely cause of the failure that a log ends with.
pub(in crate::engine) fn likely_cause(log: &str) -> Option<&'static str> {
    CAUSES.iter().find(|(sign, _)| log.contains(sign)).map(|(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sign_that_fits_is_the_cause() {
        let log = "FATAL:  could not write lock file \"postmaster.pid\": No space left on device";
        assert_eq!(likely_cause(log), Some("the disk is full: make room"));
        let log = "pg_basebackup: error: connection to server at \"127.0.0.1\", port 5500 failed: \
                   FATAL:  number of requested standby connections exceeds max_wal_senders (currently 0)";
        assert!(likely_cause(log).is_some_and(|cause| cause.contains("raise max_wal_senders")));
        assert_eq!(likely_cause("all is well"), None);
    }
}
