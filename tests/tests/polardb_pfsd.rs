//! Our pfsd and the original's under the real PolarDB, on either node: transactions under load while either is killed and
//! started again, promotion, a fast stop, and a clean volume in the end. Needs root, Docker, and an image with PolarDB 15 and the
//! original pfsd, which `ONEDISK_POLARDB_IMAGE` names. `ONEDISK_POLARDB_SECONDS` says for how long each pair is under load.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "with --nocapture, what is printed is the transcript of a real run")]

mod polar;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use polar::{Place, docker};

/// One cluster at a time: two cores have enough to do with one.
static ALONE: Mutex<()> = Mutex::new(());

const NAME: &str = "polardb_pfsd_test";

/// Which pfsd a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Original,
}

impl Kind {
    /// As `pfsd = ` takes it.
    fn setting(self) -> String {
        match self {
            Self::Ours => ours().to_str().unwrap().to_owned(),
            Self::Original => "image".to_owned(),
        }
    }

    /// Whether a program that a node runs is of this kind.
    fn is(self, program: &str) -> bool {
        let original = Path::new(program).ends_with("pfsdaemon");
        original == (self == Self::Original)
    }
}

fn ours() -> PathBuf {
    tests::program("pfsd").get_program().into()
}

fn seconds() -> Duration {
    let given = std::env::var("ONEDISK_POLARDB_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(12))
}

/// What became of a load.
#[derive(Debug, Default)]
struct Done {
    transactions: u64,
    failed: u64,
}

/// Runs pgbench on a node for a time.
fn pgbench(place: &Place, node: &str, time: Duration, options: &[&str]) -> Done {
    let time = time.as_secs().max(1).to_string();
    let fixed = ["exec", node, "--", "pgbench", "--no-vacuum", "--client", "4", "--time", &time];
    let output = place.command(&[&fixed[..], options].concat()).stderr(Stdio::piped()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "pgbench on {node}: {out}{err}");
    let number = |what: &str| {
        let line = out.lines().find_map(|line| line.strip_prefix(what));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{what:?} is not in {out}"))
    };
    println!("pgbench {options:?} on {node}:\n{out}");
    Done {
        transactions: number("number of transactions actually processed:"),
        failed: number("number of failed transactions:"),
    }
}

/// The same again and again, until `enough`.
fn load(place: &Place, node: &str, options: &[&str], enough: &AtomicBool) -> Done {
    let mut all = Done::default();
    while !enough.load(Ordering::Relaxed) {
        let done = pgbench(place, node, Duration::from_secs(5), options);
        all.transactions += done.transactions;
        all.failed += done.failed;
    }
    all
}

/// Ends the pfsd of a node as a crash would: the process of its container that has the disk's name as an argument.
fn kill(node: &str) {
    let script = "id=$(grep -lzxE 'nvme1n[1]' /proc/[0-9]*/cmdline | cut -d / -f 3); kill -9 $id && \
        while [ -e /proc/$id ]; do sleep 0.1; done";
    docker(&["exec", "--user", "root", &format!("onedisk-{NAME}-{node}"), "sh", "-c", script]);
}

/// How many transactions TPC-B has in the database, and whether its tables agree.
const TRANSACTIONS: &str = "SELECT CASE WHEN (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta) \
    AND (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta) AND (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta) \
    THEN count(*) ELSE -1 END FROM pgbench_history";

fn check(disk: &Path) {
    let checked = tests::program("pfs").arg("check").arg(disk).output().unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("$ pfs check\n{said}");
    assert!(checked.status.success(), "{said}");
}

fn gone(place: &Place) {
    place.ok(&["down", "--purge", "--yes"]);
    let left: Vec<String> = place.everything().into_iter().filter(|left| !left.ends_with("/clusters")).collect();
    assert_eq!(left, [place.root().join("cluster.toml").display().to_string()]);
}

/// A primary with one kind of pfsd, a replica with another.
fn pair(primary: Kind, replica: Kind) {
    let Some(image) = polar::image(&format!("polardb_pfsd: {primary:?} and {replica:?}")) else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::new(image, NAME);
    let node = |name, role, kind: Kind| {
        format!("[[node]]\nname = \"{name}\"\nrole = \"{role}\"\npfsd = {:?}\n", kind.setting())
    };
    // However long it runs, its log fits into the disk.
    let log = "[parameters]\nmin_wal_size = \"2GB\"\nmax_wal_size = \"2GB\"\n";
    let file = node("primary", "primary", primary) + &node("replica1", "replica", replica) + log;
    fs::write(place.root().join("cluster.toml"), file).unwrap();
    place.up(&[]);
    for (status, kind) in place.status().iter().zip([primary, replica]) {
        assert!(kind.is(status["pfsd"].as_str().unwrap()), "{status}");
    }
    place.ok(&["exec", "primary", "--", "pgbench", "--initialize", "--quiet", "--scale", "2"]);

    let (enough, begin) = (AtomicBool::new(false), Instant::now());
    let (written, read) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| load(&place, "primary", &["--builtin", "tpcb-like"], &enough));
        let reader = scope.spawn(|| load(&place, "replica1", &["--builtin", "select-only"], &enough));
        // Whatever happens here, they end.
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut kills = 0;
            while kills < 2 || begin.elapsed() < seconds() {
                std::thread::sleep(Duration::from_secs(1));
                kill(if kills % 2 == 0 { "primary" } else { "replica1" });
                place.ok(&["repair"]);
                kills += 1;
            }
            println!("{kills} kills");
        }));
        enough.store(true, Ordering::Relaxed);
        let done = (writer.join().unwrap(), reader.join().unwrap());
        killed.unwrap();
        done
    });
    assert!((written.failed, read.failed) == (0, 0) && written.transactions > 0 && read.transactions > 0);
    place.all_replay("primary", &["replica1"]);
    for node in ["primary", "replica1"] {
        assert_eq!(place.sql(node, TRANSACTIONS), written.transactions.to_string(), "{node}");
    }

    // The old primary ends before the replica takes its place.
    place.ok(&["stop", "primary"]);
    place.ok(&["exec", "replica1", "--", "pg_ctl", "promote", "--wait", "--timeout", "60"]);
    let more = pgbench(&place, "replica1", seconds() / 4, &["--builtin", "tpcb-like"]);
    assert!(more.failed == 0 && more.transactions > 0);
    assert_eq!(place.sql("replica1", TRANSACTIONS), (written.transactions + more.transactions).to_string());
    // With the slot of the one that went, PolarDB waits for that.
    place.sql("replica1", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    place.ok(&["exec", "replica1", "--", "pg_ctl", "stop", "--mode", "fast", "--wait", "--timeout", "60"]);
    place.ok(&["down"]);
    check(&place.disk());
    gone(&place);
}

#[test]
fn ours_on_both_nodes() {
    pair(Kind::Ours, Kind::Ours);
}

#[test]
fn ours_on_the_primary_the_original_on_the_replica() {
    pair(Kind::Ours, Kind::Original);
}

#[test]
fn the_original_on_the_primary_ours_on_the_replica() {
    pair(Kind::Original, Kind::Ours);
}

#[test]
fn the_original_on_both_nodes() {
    pair(Kind::Original, Kind::Original);
}

#[test]
fn one_takes_the_place_of_the_other_under_load() {
    let Some(image) = polar::image("polardb_pfsd: exchange") else { return };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::new(image, NAME);
    fs::write(place.root().join("cluster.toml"), "replicas = 1\n").unwrap();
    place.up(&[]);
    place.ok(&["exec", "primary", "--", "pgbench", "--initialize", "--quiet"]);
    let began = |node: &str| place.sql(node, "SELECT pg_postmaster_start_time()");
    let before = ["primary", "replica1"].map(began);

    let enough = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(|| load(&place, "primary", &["--builtin", "tpcb-like"], &enough));
        let exchanged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for kind in [Kind::Ours, Kind::Original, Kind::Ours] {
                place.up(&["--pfsd", &kind.setting()]);
                let status = place.status();
                assert!(status.iter().all(|status| kind.is(status["pfsd"].as_str().unwrap())), "{status:?}");
                // What is done is found done.
                let (_, _, err) = place.run(&["up"]);
                assert_eq!(err.matches("start the pfsd of ").count(), 2, "{err}");
                assert!(!err.contains("start the pfsd of primary: done"), "{err}");
            }
        }));
        enough.store(true, Ordering::Relaxed);
        let done = writer.join().unwrap();
        exchanged.unwrap();
        done
    });
    assert_eq!(done.failed, 0);
    assert_eq!(place.sql("primary", TRANSACTIONS), done.transactions.to_string());
    assert_eq!(["primary", "replica1"].map(began), before);
    assert!(
        place.ok(&["logs", "primary", "--service", "pfsd"]).contains(" info: serving /dev/nvme1n1 as disk nvme1n1 ")
    );

    // What cannot serve takes nobody's place.
    place.refused(&["up", "--pfsd", "/no/such/pfsd"], 3, "[no-pfsd]");
    let (code, _, err) = place.run(&["up", "--pfsd", "/bin/false"]);
    assert_eq!(code, Some(6), "{err}");
    assert!(err.contains("/bin/false does not run in the container onedisk-polardb_pfsd_test-primary"), "{err}");
    assert!(place.status().iter().all(|status| Kind::Ours.is(status["pfsd"].as_str().unwrap())));
    // A database that waits for its pfsd is no obstacle.
    kill("primary");
    gone(&place);
}
