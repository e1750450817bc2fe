//! `bench report` and `bench compare` as a user runs them.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/tests/data/run-v1.json");

fn bench(arguments: &[&str]) -> Output {
    tests::program("bench").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    str::from_utf8(&output.stdout).unwrap()
}

/// What a command that fails says, and its exit code; it prints no data.
fn failure(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_run_is_printed_or_made_a_page() {
    let directory = scratch();
    let page = directory.path().join("report.html");
    assert!(stdout(&bench(&["report", SAMPLE])).starts_with("disk · /dev/loop7"));
    let json = bench(&["report", SAMPLE, "--output", "json"]);
    assert_eq!(stdout(&json), fs::read_to_string(SAMPLE).unwrap());

    for _ in 0..2 {
        assert_eq!(stdout(&bench(&["report", SAMPLE, "-o", text(&page)])), format!("{}\n", page.display()));
    }
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    let written: serde_json::Value =
        serde_json::from_str(stdout(&bench(&["report", SAMPLE, "-o", text(&page), "--output", "json"]))).unwrap();
    assert_eq!(written["report"], text(&page));
}

#[test]
fn a_page_loads_nothing_and_runs_nothing() {
    let directory = scratch();
    let page = directory.path().join("report.html");
    stdout(&bench(&["report", SAMPLE, "-o", text(&page)]));
    let html = fs::read_to_string(&page).unwrap();
    for outside in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "<img", "src="] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn somebody_elses_file_is_replaced_only_by_force() {
    let directory = scratch();
    let thesis = directory.path().join("thesis.html");
    fs::write(&thesis, "<!doctype html>\n<p>my thesis").unwrap();
    let (code, error) = failure(&bench(&["report", SAMPLE, "-o", text(&thesis)]));
    assert_eq!(code, 3);
    assert!(error.contains("thesis.html exists and is not a report of bench"), "{error}");
    assert!(error.contains("--force"), "{error}");
    assert_eq!(fs::read_to_string(&thesis).unwrap(), "<!doctype html>\n<p>my thesis");
    stdout(&bench(&["report", SAMPLE, "-o", text(&thesis), "--force"]));
    assert_eq!(failure(&bench(&["report", SAMPLE, "--force"])).0, 2, "nothing to force without -o");
}

#[test]
fn two_runs_are_compared() {
    let text = bench(&["compare", SAMPLE, SAMPLE]);
    assert!(stdout(&text).contains("IOPS, higher is better"), "{text:?}");
    assert!(!stdout(&text).contains("write 1 MiB"), "noise is not listed");
    assert!(stdout(&bench(&["compare", SAMPLE, SAMPLE, "--all"])).contains("write 1 MiB"));
    let json = bench(&["compare", SAMPLE, SAMPLE, "--output", "json"]);
    let comparison: serde_json::Value = serde_json::from_str(stdout(&json)).unwrap();
    assert_eq!(comparison["schema"], "onedisk.bench.compare/1");
}

#[test]
fn what_is_no_run_is_refused() {
    let directory = scratch();
    let file = |name: &str, content: &str| -> PathBuf {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let sample = fs::read_to_string(SAMPLE).unwrap();
    let page = directory.path().join("report.html");
    for (path, code, why) in [
        (file("notes.txt", "a note"), 2, "notes.txt is no run of bench: it is not JSON"),
        (file("package.json", "{}"), 2, "package.json is no run of bench: it names no schema"),
        (file("cut.json", &sample[..1000]), 5, "cut.json is damaged: it is cut short"),
        (
            file("new.json", &sample.replace("bench.run/1", "bench.run/9")),
            6,
            "this program reads up to onedisk.bench.run/1",
        ),
        (directory.path().join("none.json"), 1, "none.json"),
        (directory.path().to_owned(), 1, "cannot read "),
    ] {
        for arguments in [
            ["report", text(&path), "-o", text(&page)].as_slice(),
            &["compare", SAMPLE, text(&path)],
            &["compare", text(&path), SAMPLE],
        ] {
            let (actual, error) = failure(&bench(arguments));
            assert_eq!(actual, code, "{arguments:?}: {error}");
            assert!(error.contains(why), "{error}");
        }
        assert!(!page.exists(), "no page of what is no run");
    }
}
