//! Requests of any sort to a pfsd in this process, whose volume is in memory.
#![no_main]

#[path = "../../tests/common/asked.rs"]
mod asked;

use std::sync::LazyLock;

static ASKED: LazyLock<asked::Asked> = LazyLock::new(|| {
    let directory = std::path::Path::new("/dev/shm").join(format!("pfs-fuzz-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("/dev/shm is there");
    asked::Asked::new(&directory)
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| ASKED.ask(data));
