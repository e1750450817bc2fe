//! Runs as files, text, pages and comparisons, on a run of schema version 1 that is kept as it was.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod html;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bench::report::{Cell, Comparison, Environment, Run, Verdict, stats, vocabulary};
use blockdev::ErrorKind;
use proptest::prelude::*;
use serde_json::json;

const SAMPLE: &str = include_str!("data/run-v1.json");
const SCHEMA: &str = include_str!("../schema/run-v1.md");

fn sample() -> Run {
    Run::parse(SAMPLE.as_bytes(), "run-v1.json").unwrap()
}

/// The sample with every figure `factor` times what it was in cells that `which` picks.
fn scaled(factor: f64, which: impl Fn(&Cell) -> bool) -> Run {
    let mut run = sample();
    for figure in run.cells.iter_mut().filter(|cell| which(cell)).flat_map(|cell| cell.figures.values_mut()) {
        figure.samples.iter_mut().for_each(|sample| *sample *= factor);
        figure.value = stats::median(&figure.samples).unwrap();
    }
    run
}

fn compare(a: &Run, b: &Run) -> Comparison {
    Comparison::new(a, "a.json", b, "b.json").unwrap()
}

/// An empty directory of a test's own, on the disk that holds the build.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_run_of_version_1_is_read_and_written_without_loss() {
    assert_eq!(sample().to_json().unwrap(), SAMPLE);
}

/// The names of all fields in a JSON value; keys of `params`, `figures` and the like are data, not fields.
fn fields(value: &serde_json::Value, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                names.insert(name.clone());
                match (name.as_str(), value) {
                    ("facts" | "params" | "percentiles_ns", _) => {}
                    ("figures", serde_json::Value::Object(figures)) => {
                        figures.values().for_each(|figure| fields(figure, names));
                    }
                    _ => fields(value, names),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| fields(item, names)),
        _ => {}
    }
}

#[test]
fn the_schema_documents_every_field_and_no_other() {
    let mut written = BTreeSet::new();
    fields(&serde_json::from_str(SAMPLE).unwrap(), &mut written);
    for name in &written {
        let mentions = [format!("`{name}`"), format!("\"{name}\"")];
        assert!(mentions.iter().any(|mention| SCHEMA.contains(mention)), "{name} is not documented");
    }
    // What stands first in a table's row is a field, and the sample has all there are.
    for row in SCHEMA.split("| `kind` |").next().unwrap().lines().filter(|line| line.starts_with("| `")) {
        for name in row.split(" | ").next().unwrap().split('`').skip(1).step_by(2) {
            assert!(written.contains(name), "the sample shows no {name}");
        }
    }
}

#[test]
fn what_is_no_run_of_this_version_says_why() {
    let without = |key: &str| {
        let mut run: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
        run.as_object_mut().unwrap().remove(key).unwrap();
        run.to_string()
    };
    let with = |pointer: &str, value: serde_json::Value| {
        let mut run: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
        *run.pointer_mut(pointer).unwrap() = value;
        run.to_string()
    };
    use ErrorKind::{InvalidInput, Unsupported, VerifyFailed};
    for (text, kind, why) in [
        (String::new(), InvalidInput, "x.json is no run of bench: it is empty"),
        ("\u{7f}ELF".to_owned(), InvalidInput, "it is not JSON"),
        ("[]".to_owned(), InvalidInput, "not an object"),
        ("{}".to_owned(), InvalidInput, "it names no schema"),
        (with("/schema", json!("onedisk.bench.compare/1")), InvalidInput, "its schema is \"onedisk.bench.compare/1\""),
        (with("/schema", json!("onedisk.bench.run/x")), InvalidInput, "its schema is"),
        (
            with("/schema", json!("onedisk.bench.run/2")),
            Unsupported,
            "x.json follows onedisk.bench.run/2, this program reads up to onedisk.bench.run/1",
        ),
        (SAMPLE[..SAMPLE.len() / 2].to_owned(), VerifyFailed, "x.json is damaged: it is cut short"),
        (without("cells"), VerifyFailed, "it is not what its schema says"),
        (with("/elapsed_s", json!("long")), VerifyFailed, "it is not what its schema says"),
        (with("/cells/0/latencies/0/histogram", json!("AAAA")), VerifyFailed, "it is not what its schema says"),
        (with("/cells/0/params", json!({"colour": 1})), VerifyFailed, "undeclared parameter \"colour\""),
        (with("/measures", json!([])), VerifyFailed, "names the undeclared measure"),
        (with("/cells/0/figures/iops/samples", json!([])), VerifyFailed, "has no samples of \"iops\""),
        (with("/cells/0/series/0/step_s", json!(0)), VerifyFailed, "a series whose step is 0 s"),
        (with("/cells/1/name", json!("read 1 MiB")), VerifyFailed, "cell \"read 1 MiB\" occurs twice"),
        (with("/parameters/1/name", json!("target")), VerifyFailed, "declared twice"),
        (with("/plots/1/lines", json!(["colour"])), VerifyFailed, "plot \"IOPS against queue depth\" names"),
        (with("/plots/1/x", json!("colour")), VerifyFailed, "undeclared parameter \"colour\""),
        (with("/highlights/0/cell", json!("another")), VerifyFailed, "undeclared cell \"another\""),
    ] {
        let error = Run::parse(text.as_bytes(), "x.json").unwrap_err();
        assert!(error.to_string().contains(why), "{error}, expected {why}");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.hint().is_some(), kind != VerifyFailed, "{error}");
    }
}

#[test]
fn fields_of_a_later_version_1_are_ignored() {
    let mut run: serde_json::Value = serde_json::from_str(SAMPLE).unwrap();
    run["weather"] = json!("fine");
    run["cells"][0]["phase_of_the_moon"] = json!(0.5);
    assert_eq!(Run::parse(run.to_string().as_bytes(), "x.json").unwrap(), sample());
}

#[test]
fn a_run_that_contradicts_itself_is_not_written() {
    let mut run = Run::begin("disk", "x", Environment::of_this_machine(Vec::new()));
    run.cells.push(Cell::new("", "a cell").with_figure(&vocabulary::IOPS, vec![1.0]));
    let error = run.to_json().unwrap_err();
    assert_eq!(error.to_string(), "cannot write the run: cell \"a cell\" names the undeclared measure \"iops\"");
    run.measures.push(vocabulary::IOPS);
    let again = Run::parse(run.to_json().unwrap().as_bytes(), "x.json").unwrap();
    assert_eq!(again, run);
}

#[test]
fn as_text() {
    insta::assert_snapshot!(sample().to_text());
}

#[test]
fn as_a_page() {
    insta::assert_snapshot!(html::outline(&sample().to_html()));
}

#[test]
fn an_interrupted_run_says_so() {
    let mut run = sample();
    run.completed = false;
    assert!(run.to_text().lines().next().unwrap().contains("took 58.2 s, interrupted"));
    assert!(html::outline(&run.to_html()).contains("The run was interrupted"));
}

#[test]
fn a_run_without_anything_is_a_page_and_a_text() {
    let mut run = Run::begin("disk", "nothing", Environment::of_this_machine(Vec::new()));
    run.end(std::time::Duration::ZERO, true);
    html::outline(&run.to_html());
    assert!(run.to_text().contains("disk · nothing"));
}

#[test]
fn numbers_that_are_not_a_disks_are_neither_drawn_nor_highlighted() {
    let mut run = sample();
    let drawn = |run: &Run| html::outline(&run.to_html()).lines().filter(|line| line.contains("title ")).count();
    let highlights = |run: &Run| html::outline(&run.to_html()).lines().filter(|line| line.starts_with("dd ")).count();
    let before = (drawn(&run), highlights(&run));
    let cell = run.cells.iter_mut().find(|cell| cell.name == "randread 8 KiB, queue depth 16").unwrap();
    cell.not_disk = Some("a cache answered".to_owned());
    // Of its line in each of three plots, the one against queue depth keeps its other point.
    assert_eq!((before.0 - drawn(&run), before.1 - highlights(&run)), (3, 1));
    assert!(run.to_text().contains("] not numbers of a disk: a cache answered"));
}

/// The sample with `poison` at the end of every text in it. What names something does so still, for both got it.
fn poisoned(poison: &str) -> Run {
    fn poison_all(value: &mut serde_json::Value, poison: &str) {
        match value {
            serde_json::Value::String(text) => text.push_str(poison),
            serde_json::Value::Array(items) => items.iter_mut().for_each(|item| poison_all(item, poison)),
            serde_json::Value::Object(object) => {
                for (name, value) in object.iter_mut() {
                    match name.as_str() {
                        "params" | "figures" | "facts" => {
                            let entries = std::mem::take(value.as_object_mut().unwrap());
                            *value = entries.into_iter().map(|(name, value)| (name + poison, value)).collect();
                            poison_all(value, poison);
                        }
                        "schema" | "started" | "severity" | "unit" | "better" | "kind" | "histogram" | "steadiness" => {
                        }
                        _ => poison_all(value, poison),
                    }
                }
            }
            _ => {}
        }
    }
    let mut run = serde_json::from_str(SAMPLE).unwrap();
    poison_all(&mut run, poison);
    Run::parse(run.to_string().as_bytes(), "poisoned.json").unwrap()
}

#[test]
fn a_hostile_run_puts_nothing_into_the_page_or_the_terminal() {
    let harmless = html::elements(&poisoned("xyz").to_html());
    for poison in
        ["<script>alert(1)</script>", "\"onload=\"alert(1)", "'><img src=x onerror=alert(1)>", "--></style></svg>&lt;"]
    {
        let page = poisoned(poison).to_html();
        assert_eq!(html::elements(&page), harmless, "{poison}");
    }
    assert!(!poisoned("\u{1b}]0;owned\u{7}\u{9b}31m").to_text().contains(|c: char| c.is_control() && c != '\n'));
    let hostile = poisoned("\u{1b}[31m");
    assert!(!compare(&hostile, &hostile).to_text(true).contains('\u{1b}'));
}

#[test]
fn what_changed_between_two_runs() {
    let mut after = scaled(1.2, |cell| cell.name.starts_with("randread"));
    after.environment.kernel = "6.18.44".to_owned();
    after.environment.targets[0].facts["scheduler"] = json!("mq-deadline");
    let comparison = compare(&sample(), &after);
    insta::assert_snapshot!(comparison.to_text(false));
    // The 99th percentiles of this run differ more than that from round to round.
    for change in comparison.measures.iter().filter(|change| change.measure.name != "p99") {
        for cell in &change.cells {
            let changed = cell.cell.starts_with("randread");
            assert_eq!(cell.verdict != Verdict::Noise, changed, "{} of {}", change.measure.name, cell.cell);
        }
    }
    assert!(comparison.to_text(true).contains("write 1 MiB"));
}

#[test]
fn a_run_compared_with_itself_is_noise() {
    let comparison = compare(&sample(), &sample());
    assert!(
        comparison
            .measures
            .iter()
            .flat_map(|m| &m.cells)
            .all(|cell| cell.verdict == Verdict::Noise && cell.ratio == Some(1.0))
    );
    assert_eq!(comparison.differences, []);
    assert_eq!(comparison.not_disk.len(), 1);
    let json = serde_json::to_value(&comparison).unwrap();
    assert_eq!(json["schema"], "onedisk.bench.compare/1");
    assert_eq!(json["measures"][0]["cells"][0]["verdict"], "noise");
}

#[test]
fn worse_is_told_from_better_by_the_measure() {
    let slower = compare(&sample(), &scaled(0.5, |cell| cell.name == "write 1 MiB"));
    let verdict = |measure: &str| {
        let change = slower.measures.iter().find(|change| change.measure.name == measure).unwrap();
        change.cells.iter().find(|cell| cell.cell == "write 1 MiB").unwrap().verdict
    };
    assert_eq!((verdict("iops"), verdict("cpu_per_op")), (Verdict::Worse, Verdict::Better));
}

#[test]
fn three_rounds_are_too_few_to_tell() {
    let mut few = scaled(10.0, |_| true);
    few.cells.iter_mut().flat_map(|cell| cell.figures.values_mut()).for_each(|figure| figure.samples.truncate(3));
    let comparison = compare(&few, &few);
    assert!(comparison.measures.iter().flat_map(|m| &m.cells).all(|cell| cell.verdict == Verdict::TooFewRounds));
    let text = comparison.to_text(false);
    assert!(text.contains("60 of 60 comparisons have too few rounds"), "{text}");
    assert!(!text.contains("chance alone"), "{text}");
}

#[test]
fn what_is_one_thing_in_a_and_another_in_b_is_what_is_compared() {
    let mut other = sample();
    for cell in &mut other.cells {
        cell.params.insert("target".to_owned(), "/srv/raw.img".into());
    }
    let comparison = compare(&sample(), &other);
    assert!(comparison.only_in_a.is_empty() && comparison.only_in_b.is_empty());
    assert_eq!(comparison.differences.len(), 1);
    assert_eq!(comparison.differences[0].b.as_deref(), Some("/srv/raw.img"));
}

#[test]
fn cells_that_only_one_run_has_are_listed() {
    let mut fewer = sample();
    fewer.cells.retain(|cell| cell.group != "Sequential I/O");
    let text = compare(&sample(), &fewer).to_text(false);
    assert!(text.contains("Only in A: read 1 MiB; write 1 MiB"), "{text}");
}

#[test]
fn runs_without_anything_in_common_are_refused() {
    let mut tune = sample();
    tune.experiment = "tune".to_owned();
    let error = Comparison::new(&sample(), "a.json", &tune, "b.json").unwrap_err();
    assert_eq!(error.to_string(), "a.json is of bench disk, b.json of bench tune: they have nothing to compare");
    let mut none = sample();
    none.cells.iter_mut().for_each(|cell| cell.group.push('!'));
    let error = Comparison::new(&sample(), "a.json", &none, "b.json").unwrap_err();
    assert_eq!(error.to_string(), "a.json and b.json have no cell in common");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn only_its_own_kind_is_replaced() {
    let directory = scratch();
    let (page, json) = (directory.path().join("report.html"), directory.path().join("run.json"));
    let run = sample();
    for _ in 0..2 {
        run.save_html(&page, false).unwrap();
        run.save(&json, false).unwrap();
    }
    assert_eq!(fs::read_to_string(&page).unwrap(), run.to_html());
    assert_eq!(Run::load(&json).unwrap(), run);

    fs::write(&page, "<!doctype html>\n<p>my thesis").unwrap();
    fs::write(&json, "{\"dependencies\": []}").unwrap();
    let refusals = [run.save_html(&page, false).unwrap_err(), run.save(&json, false).unwrap_err()];
    for (error, what) in
        refusals.iter().zip(["report.html exists and is not a report of bench", "run.json exists and is not a run"])
    {
        assert!(error.to_string().ends_with(what), "{error}");
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert_eq!(error.hint(), Some("choose another name, or replace it with --force"));
    }
    assert_eq!(fs::read_to_string(&page).unwrap(), "<!doctype html>\n<p>my thesis");
    run.save_html(&page, true).unwrap();
    run.save(&json, true).unwrap();
    assert_eq!(files(directory.path()).len(), 2, "nothing else is left behind");
}

#[test]
fn an_empty_file_and_one_behind_a_link_are_filled() {
    let directory = scratch();
    let (file, link) = (directory.path().join("file"), directory.path().join("link"));
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    sample().save(&link, false).unwrap();
    assert!(link.is_symlink());
    assert_eq!(Run::load(&file).unwrap(), sample());
}

#[test]
fn what_is_no_regular_file_is_never_written() {
    let directory = scratch();
    for path in [directory.path(), Path::new("/dev/null")] {
        let error = sample().save_html(path, true).unwrap_err();
        assert!(error.to_string().ends_with("it is not a regular file"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
    let error = sample().save(&directory.path().join("no/such/directory"), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = Run::load(&directory.path().join("none.json")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_cells_survive_json_and_can_be_drawn(
        cells in prop::collection::vec(("\\PC{0,8}", 0u64..5, -1e12f64..1e12, prop::collection::vec(any::<u64>(), 0..4)), 0..8)
    ) {
        let mut run = sample();
        run.cells.clear();
        run.highlights.clear();
        for (index, (text, depth, figure, latencies)) in cells.into_iter().enumerate() {
            let mut cell = Cell::new("Random I/O", format!("{index}{text}"))
                .with_param(&vocabulary::RW, text)
                .with_param(&vocabulary::QUEUE_DEPTH, depth)
                .with_figure(&vocabulary::IOPS, vec![figure, figure / 3.0]);
            let mut latency = bench::report::Latency { name: "service".to_owned(), histogram: bench::report::Histogram::new() };
            latencies.into_iter().for_each(|ns| latency.histogram.record(ns));
            cell.latencies.push(latency);
            run.cells.push(cell);
        }
        prop_assert_eq!(&Run::parse(run.to_json().unwrap().as_bytes(), "x.json").unwrap(), &run);
        let page = run.to_html();
        html::outline(&page);
        prop_assert!(!page.contains("NaN") && !page.contains("inf"), "a place is no number");
        prop_assert!(run.to_text().contains("Random I/O") || run.cells.is_empty());
    }
}
