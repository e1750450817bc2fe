//! What `up --dry-run` prints for PolarDB in containers, beside the commands of the published recipe.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;

use blockdev::Cancel;
use provision::Cluster;
use provision::config::{Layers, Origin, Settings};
use provision::engine::Loss;
use provision::state::{Record, StateDirectory};
use provision::topology::{Node, Role, Topology};

/// What is typed in the recipe, and what does the same here, in order: the recipe's own but for the second node, whose
/// container is made and whose pfsd is started together with the first's.
const RECIPE: [(&str, &str); 19] = [
    (
        "dd if=/dev/zero of=./VirtualDisk.img bs=1m count=20480 oflag=direct",
        "vdisk create /c/disk.img --size 21474836480",
    ),
    ("losetup --direct-io=on /dev/loop1 /data/VirtualDisk.img", "vdisk attach /c/disk.img"),
    ("docker run -d -it ... --privileged=true --name pb1", "run --detach --name onedisk-c-pb1 "),
    ("ln -s /dev/loop1 /dev/nvme1n1", "--device \"$(losetup -nO NAME -j /c/disk.img)\":/dev/nvme1n1 "),
    ("docker run -d -it ... --privileged=true --name pb2", "run --detach --name onedisk-c-pb2 "),
    ("pfs -C disk mkfs nvme1n1", "onedisk-c-pb1 /usr/local/bin/pfs -C disk mkfs nvme1n1"),
    (
        "start_pfsd.sh -p nvme1n1 -w 1 (pb1)",
        "onedisk-c-pb1 sh -c 'exec \"$@\" >>/var/lib/onedisk/log/pfsd.log 2>&1' pfsd ",
    ),
    (
        "start_pfsd.sh -p nvme1n1 -w 1 (pb2)",
        "onedisk-c-pb2 sh -c 'exec \"$@\" >>/var/lib/onedisk/log/pfsd.log 2>&1' pfsd ",
    ),
    ("pfs -C disk mkdir /nvme1n1/shared_data", "pfs -C disk -t 20 mkdir /nvme1n1/shared_data/"),
    ("initdb -D $HOME/primary", "onedisk-c-pb1 initdb "),
    (
        "polar-initdb.sh $HOME/primary/ /nvme1n1/shared_data/ primary",
        "-u root onedisk-c-pb1 polar-initdb.sh /var/lib/onedisk/data.new/ /nvme1n1/shared_data/ primary disk",
    ),
    ("host replication postgres 172.17.0.0/16 trust", "host replication replicator samenet scram-sha-256"),
    ("polar_hostid=1", "polar_hostid = '1'"),
    ("pg_ctl start -D $HOME/primary", "postgres postgres -D /var/lib/onedisk/data "),
    ("SELECT pg_create_physical_replication_slot('replica1');", "SELECT pg_create_physical_replication_slot("),
    (
        "polar-initdb.sh $HOME/replica1/ /nvme1n1/shared_data/ replica",
        "-u root onedisk-c-pb2 polar-initdb.sh /var/lib/onedisk/data.new/ /nvme1n1/shared_data/ replica disk",
    ),
    ("touch $HOME/replica1/replica.signal", "touch /var/lib/onedisk/data.new/replica.signal"),
    ("primary_slot_name='replica1'", "primary_slot_name = 'pb2'"),
    ("select * from pg_stat_replication;", "SELECT application_name, state FROM pg_stat_replication"),
];

/// The same for what `build = true` does between the pfsds and the database's directory.
const BUILT: [(&str, &str); 7] = [
    ("docker run ... polardb_pg_devel:ubuntu22.04", " polardb/polardb_pg_devel:ubuntu22.04 "),
    (
        "start_pfsd.sh -p nvme1n1 -w 1 (pb2)",
        "onedisk-c-pb2 sh -c 'exec \"$@\" >>/var/lib/onedisk/log/pfsd.log 2>&1' pfsd ",
    ),
    (
        "git clone --depth 1 -b POLARDB_15_STABLE https://github.com/ApsaraDB/PolarDB-for-PostgreSQL",
        "git clone --depth 1 -b POLARDB_15_STABLE -- https://github.com/ApsaraDB/PolarDB-for-PostgreSQL /data/PolarDB-",
    ),
    (
        "cd ...; ./build.sh --prefix=/data/polardb --jobs=4 --debug=on --port=5432 --ni --ec=\"--with-pfsd\"",
        "'cd /data/PolarDB-for-PostgreSQL && ./build.sh --prefix=/data/polardb --jobs=\"$(nproc)\" --debug=off \
         --port=5432 --ni --ec=\"--with-pfsd\"'\n",
    ),
    (
        "ln -s /data/polardb/tmp_polardb_pg_15_base ~/ (pb1)",
        "onedisk-c-pb1 sh -c 'ln -sf /data/polardb/tmp_polardb_pg_15_base/bin/* ",
    ),
    (
        "ln -s /data/polardb/tmp_polardb_pg_15_base ~/ (pb2)",
        "onedisk-c-pb2 sh -c 'ln -sf /data/polardb/tmp_polardb_pg_15_base/bin/* ",
    ),
    ("pfs -C disk mkdir /nvme1n1/shared_data", "pfs -C disk -t 20 mkdir /nvme1n1/shared_data/"),
];

/// The recipe's own lines of postgresql.conf.
const PARAMETERS: [(&str, &str); 13] = [
    ("huge_pages", "off"),
    ("polar_enable_shared_storage_mode", "on"),
    ("polar_disk_name", "nvme1n1"),
    ("polar_datadir", "/nvme1n1/shared_data/"),
    ("polar_vfs.localfs_mode", "off"),
    ("shared_preload_libraries", "$libdir/polar_vfs,$libdir/polar_worker"),
    ("polar_storage_cluster_name", "disk"),
    ("max_connections", "200"),
    ("polar_logindex_mem_size", "64MB"),
    ("polar_xlog_queue_buffers", "64MB"),
    ("polar_xlog_page_buffers", "64MB"),
    ("full_page_writes", "off"),
    ("polar_has_partial_write", "off"),
];

fn script(settings: &str) -> String {
    let root = tempfile::tempdir().unwrap();
    let mut layers = Layers::default();
    let settings = Settings::parse(&format!("name = \"c\"\nengine = \"polardb\"\n{settings}"), Path::new("t")).unwrap();
    layers.add(settings, |_| Origin::File("t".into()));
    let node = |name: &str, role, port| Node::new(name.parse().unwrap(), role, port);
    let topology = Topology::new(vec![node("pb1", Role::Primary, 5500), node("pb2", Role::Replica, 5501)]).unwrap();
    let record = Record::new(layers.config().unwrap(), topology).unwrap();
    let directory = StateDirectory::find(Some(root.path())).unwrap().cluster(&record.config.name);
    let place = directory.path().to_str().unwrap().to_owned();
    let cluster = Cluster::new(directory, record, &Cancel::new()).unwrap();
    cluster.plan(Loss::Refuse).unwrap().as_shell_script().replace(&place, "/c")
}

/// What does the same as each line of the recipe stands in `script`, in this order.
fn assert_follow(script: &str, recipe: &[(&str, &str)]) {
    let mut rest = script;
    for (theirs, ours) in recipe {
        let at = rest.find(ours);
        let at = at.unwrap_or_else(|| panic!("{ours:?}, which stands for {theirs:?}, does not follow:\n{rest}"));
        rest = &rest[at..];
    }
}

#[test]
fn polardb_is_built_where_the_recipe_builds_it() {
    let built = script("build = true");
    assert_follow(&built, &RECIPE);
    assert_follow(&built, &BUILT);
    // Once, in a volume that both nodes have.
    assert_eq!((built.matches("git clone").count(), built.matches("src=onedisk-c,dst=/data").count()), (1, 2));
    let mirror = script("build = \"https://gitee.com/mirror/PolarDB#BRANCH\"");
    assert!(mirror.contains("git clone --depth 1 -b BRANCH -- https://gitee.com/mirror/PolarDB /data"), "{mirror}");
    let taken = script("");
    assert!(!taken.contains("/data/Polar") && !taken.contains("git clone"), "{taken}");
}

#[test]
fn the_dry_run_goes_the_way_of_the_recipe() {
    let script = script("");
    assert_follow(&script, &RECIPE);
    for (name, value) in PARAMETERS {
        assert_eq!(script.matches(&format!("\n{name} = '{value}'\n")).count(), 2, "{name}");
    }
    // What the recipe does, and is not needed.
    for without in ["--privileged", "--cap-add", "0.0.0.0/0", "trust"] {
        assert!(!script.contains(without), "{without}");
    }
}

#[test]
fn what_is_asked_for_is_what_is_typed() {
    let script = script(
        "disk = \"/d\"\ndisk_size = \"10GiB\"\nprealloc = \"sparse\"\nworkers = 4\ntrust = true\nimage = \"mine:1\"\n\
         parameters = { max_connections = \"300\" }",
    );
    for part in [
        "vdisk create /d --size 10737418240 --prealloc sparse\n",
        "-p nvme1n1 -w 4 ",
        " mine:1 ",
        "host replication replicator samenet trust\n",
        // After the 200 of the recipe: the last line of a file counts.
        "\nmax_connections = '300'\nEND\n",
    ] {
        assert!(script.contains(part), "{part:?} is not in\n{script}");
    }
    assert!(!script.contains("pgpass"));
}

#[test]
fn a_pfsd_of_this_machine_is_brought_to_the_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("pfsd");
    std::fs::write(&program, "abc").unwrap();
    let script = script(&format!("pfsd = {program:?}"));
    let place = "/usr/local/lib/onedisk/pfsd-ba7816bf8f01cfea";
    for node in ["onedisk-c-pb1", "onedisk-c-pb2"] {
        let brought = script.find(&format!("cp {} {node}:{place}\n", program.display()));
        let started =
            script.find(&format!("{node} sh -c 'exec \"$@\" >>/var/lib/onedisk/log/pfsd.log 2>&1' pfsd {place} -f"));
        assert!(brought.is_some() && brought < started, "{script}");
    }
    assert!(!script.contains("pfsdaemon"), "{script}");
}

#[test]
fn a_device_is_not_made() {
    let script = script("device = \"/dev/nvme7n1\"");
    assert!(script.contains("--device /dev/nvme7n1:/dev/nvme1n1 ") && !script.contains("vdisk"), "{script}");
}
