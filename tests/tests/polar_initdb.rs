//! PolarDB's own tool with our `pfs` in place of the original's; then the original `pfsdaemon` serves what that made to a
//! PolarDB. Needs root, Docker, and an image that holds PolarDB 15 and pfsd, which `ONEDISK_POLARDB_IMAGE` names.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what is printed is the transcript of a real run")]

use std::fs::File;
use std::process::Command;
use std::time::Instant;

use blockdev::loopdev;

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

/// A container without privileges that has the disk, and goes when the test ends.
struct Node(String);

impl Node {
    fn start(image: &str, device: &str) -> Self {
        let name = format!("onedisk-test-initdb-{}", std::process::id());
        let (device, wait) = (format!("{device}:/dev/nvme1n1"), "exec sleep infinity");
        docker(
            &[
                &["run", "--detach", "--name", &name, "--network", "none", "--user", "root", "--shm-size", "1g"][..],
                &["--security-opt", "no-new-privileges", "--device", &device, "--entrypoint", "sh", image, "-c", wait],
            ]
            .concat(),
        );
        Self(name)
    }

    /// Runs a script in it.
    fn run(&self, user: &str, script: &str) -> String {
        let begin = Instant::now();
        let said = docker(&["exec", "--user", user, &self.0, "bash", "-c", &format!("set -e -o pipefail; {script}")]);
        println!("{user}$ {script}\n{said}({:.2} s)\n", begin.elapsed().as_secs_f64());
        said
    }

    fn root(&self, script: &str) -> String {
        self.run("root", script)
    }

    fn postgres(&self, script: &str) -> String {
        self.run("postgres", script)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        docker(&["rm", "--force", &self.0]);
    }
}

const CONFIGURATION: &str = r"
port = 5432
polar_hostid = 1
polar_enable_shared_storage_mode = on
polar_disk_name = 'nvme1n1'
polar_datadir = '/nvme1n1/shared_data/'
polar_vfs.localfs_mode = off
shared_preload_libraries = '$libdir/polar_vfs,$libdir/polar_worker'
polar_storage_cluster_name = 'disk'
unix_socket_directories = '/tmp'
huge_pages = off
polar_logindex_mem_size = 64MB
polar_xlog_queue_buffers = 64MB
polar_xlog_page_buffers = 64MB
full_page_writes = off
polar_has_partial_write = off
polar_resource_manager.enable_resource_manager = off
";

/// Fails unless the volume is sound, by our own check.
const CHECK: &str = "pfs check /dev/nvme1n1";

#[test]
fn a_database_that_our_pfs_prepared_is_served_by_the_original_pfsd() {
    let image = std::env::var("ONEDISK_POLARDB_IMAGE").ok().filter(|image| !image.is_empty());
    let Some(image) = image.filter(|_| tests::is_root()) else {
        tests::say_skipped("polar_initdb", "needs root, and ONEDISK_POLARDB_IMAGE, an image with PolarDB 15 and pfsd");
        return;
    };
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = directory.path().join("disk.img");
    File::create(&disk).unwrap().set_len(20 << 30).unwrap();
    let attachment = loopdev::attach(&disk, &loopdev::Options::default()).unwrap();
    let node = Node::start(&image, attachment.device().path.to_str().unwrap());
    let program = tests::program("pfs");
    node.root("mv /usr/local/bin/pfs /usr/local/bin/pfs.original");
    docker(&["cp", program.get_program().to_str().unwrap(), &format!("{}:/usr/local/bin/pfs", node.0)]);
    node.root(
        "pfs --version; mkdir -p /var/run/pfs /var/run/pfsd /dev/shm/pfsd; chmod 777 /var/run/pfs* /dev/shm/pfsd",
    );

    // The recipe, word by word.
    node.root("pfs -C disk mkfs nvme1n1 | tail -1");
    node.postgres("initdb -k -A trust -D ~/primary > ~/initdb.log");
    node.root("pfs -C disk mkdir /nvme1n1/shared_data/");
    let said = node.root(
        "polar-initdb.sh /home/postgres/primary/ /nvme1n1/shared_data/ primary disk 2>&1 | tee /tmp/log | tail -3",
    );
    assert!(said.ends_with("init PolarDB data dir success\n"), "{said}");
    // It goes on after what fails.
    node.root("! grep -i -n -E 'fail|error|cannot|invalid|usage' /tmp/log");
    node.root(CHECK);
    let both = "diff <(pfs -C disk tree -v /nvme1n1/) <(pfs.original -C disk -E 0 tree -v /nvme1n1/ 2> /dev/null)";
    node.root(both);

    let pfsd = "cd /usr/local/polarstore/pfsd; nohup bin/pfsdaemon -f -p nvme1n1 -w 2 -c conf/pfsd_logger.conf \
                > /dev/null 2>&1 < /dev/null & \
                until grep -q 'listen thread start working' /var/log/pfsd-nvme1n1/pfsd.log; do sleep 0.1; done 2> /dev/null";
    let pfsd_ends = "pkill -INT -x pfsdaemon; while pgrep -x -r S,R,D pfsdaemon; do sleep 0.1; done";
    node.root(pfsd);
    node.postgres(&format!("cat >> ~/primary/postgresql.conf <<'END'{CONFIGURATION}END"));
    node.postgres("pg_ctl -D ~/primary -w -t 120 -l ~/log start");
    let sql = |statement: &str| node.postgres(&format!("psql -h /tmp -AtXqc \"{statement}\" postgres"));
    assert!(sql("SELECT version()").contains("PolarDB"));
    sql("CREATE TABLE t AS SELECT generate_series(1, 100000) AS n; CHECKPOINT");
    node.postgres("pgbench -h /tmp -iq -s 1 postgres 2>&1; pgbench -h /tmp -T 3 -c 4 postgres | grep tps");
    let history = sql("SELECT count(*) FROM pgbench_history");
    node.postgres("pg_ctl -D ~/primary -w -m fast stop");
    node.root(pfsd_ends);

    // What the daemon made of it is ours to read and to write again.
    node.root(CHECK);
    node.root(both);
    node.root("pfs -C disk cp -r -S disk /nvme1n1/shared_data/base /tmp/ours > /dev/null");
    node.root("pfs.original -C disk cp -r -S disk /nvme1n1/shared_data/base /tmp/original > /dev/null 2>&1");
    node.root("diff -r /tmp/ours /tmp/original; du -sh /tmp/ours");
    node.root("pfs -C disk cp -D disk -r /tmp/ours /nvme1n1/ > /dev/null; pfs -C disk rm -r /nvme1n1/ours");
    node.root(CHECK);
    node.root(pfsd);
    node.postgres("pg_ctl -D ~/primary -w -t 120 -l ~/log start");
    assert_eq!(sql("SELECT count(*), sum(n) FROM t"), "100000|5000050000\n");
    assert_eq!(sql("SELECT count(*) FROM pgbench_history"), history);
    node.postgres("pg_ctl -D ~/primary -w -m fast stop");
    node.root(pfsd_ends);
    node.root(CHECK);
    drop(node);
    attachment.detach().unwrap();
}
