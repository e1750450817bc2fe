//! The real fio, on a real file. Skipped, loudly, where there is none.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::fs::{self, File};
use std::time::Duration;

use bench::load::{Pattern, Work, fio};
use blockdev::{ByteRange, ByteSize, Cancel};

fn work(pattern: Pattern) -> Work {
    Work {
        warmup: Duration::ZERO,
        runtime: Duration::from_millis(300),
        ..Work::new(pattern, ByteSize::kib(4), 4, ByteRange::from_start(ByteSize::mib(1)))
    }
}

#[test]
fn it_measures_what_we_measure() {
    if let Err(error) = fio::version() {
        return tests::skip("it_measures_what_we_measure", &error.to_string());
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("a:disk");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    for pattern in Pattern::ALL {
        let measured = fio::run(&work(pattern), &path, false, &Cancel::new()).unwrap();
        assert_eq!(measured.reads.ios() > 0, pattern.reads(), "{pattern}");
        assert_eq!(measured.writes.ios() > 0, pattern.writes(), "{pattern}");
        assert!(measured.iops() > 0.0 && measured.cpu_per_io().unwrap() > Duration::ZERO);
        assert!(!measured.interrupted);
    }
    assert_eq!(File::open(&path).unwrap().metadata().unwrap().len(), 1 << 20);

    let missing = fio::run(&work(Pattern::RandRead), &dir.path().join("missing"), false, &Cancel::new()).unwrap_err();
    assert!(missing.to_string().starts_with("fio failed on "), "{missing}");
    assert!(!dir.path().join("missing").exists());
}

#[test]
fn it_ends_when_asked() {
    if let Err(error) = fio::version() {
        return tests::skip("it_ends_when_asked", &error.to_string());
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let cancel = Cancel::new();
    let measured = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            cancel.cancel();
        });
        fio::run(&Work { runtime: Duration::from_secs(60), ..work(Pattern::RandRead) }, &path, false, &cancel).unwrap()
    });
    assert!(measured.interrupted && measured.reads.ios() > 0);
    assert!(measured.window < Duration::from_secs(60), "{:?}", measured.window);
}
