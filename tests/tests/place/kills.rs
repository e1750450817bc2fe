//! `up`, killed at random moments: it goes on from there, and `down --purge` takes away whatever was there by then.
#![allow(clippy::print_stdout, reason = "a failure is to be had again")]

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::Place;

/// How often `up` is killed instead of `usual` times, which is as often as every run of the tests has time for.
const COUNT: &str = "ONEDISK_KILLS";
/// Where chance begins, to kill at the same moments again.
const SEED: &str = "ONEDISK_SEED";

/// Kills `up` so often, goes on from there and takes it down; and takes down as it stands another one that was killed. Each
/// time, `assert_nothing_left` must find nothing.
pub fn series(place: &Place, up: &[&str], usual: u32, assert_nothing_left: impl Fn()) {
    let from_environment = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let count = from_environment(COUNT).map_or(usual, |count| u32::try_from(count).unwrap());
    let seed = from_environment(SEED).unwrap_or_else(|| fastrand::u64(0..1 << 32));
    println!("{count} times, with {SEED}={seed}");
    let mut rng = Rng::with_seed(seed);
    // The program is there, and so is built: only the run counts.
    let mut command = place.command(up);
    let begin = Instant::now();
    assert!(command.output().unwrap().status.success());
    let whole = begin.elapsed();
    let down = ["down", "--purge", "--yes"];
    place.ok(&down);
    assert_nothing_left();
    let nothing_left_after = |moment| {
        println!("killed after {moment:?} of {whole:?}");
        place.remove_what_was_not_begun();
        assert_nothing_left();
    };
    for number in 0..count {
        // At random, and yet early, late and in between.
        let moment = whole.mul_f64((f64::from(number) + rng.f64()) / f64::from(count));
        kill(place, up, moment);
        place.ok(up);
        let states = place.states();
        assert!(states.iter().all(|state| state == "running"), "killed after {moment:?}: {states:?}");
        place.ok(&down);
        nothing_left_after(moment);

        let moment = whole.mul_f64(rng.f64());
        kill(place, up, moment);
        if place.cluster().join("cluster.json").exists() {
            place.ok(&down);
        }
        nothing_left_after(moment);
    }
}

fn kill(place: &Place, up: &[&str], after: Duration) {
    let mut child = place.command(up).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}
