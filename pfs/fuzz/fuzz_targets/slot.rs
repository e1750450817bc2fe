//! A slot of shared memory of any bytes.
#![no_main]

#[path = "../../tests/common/fuzz.rs"]
mod bodies;

thread_local! {
    static MEMORY: bodies::SharedMemory = {
        let directory = std::path::Path::new("/dev/shm").join(format!("pfs-fuzz-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("memory can be shared");
        let memory = bodies::SharedMemory::new(&directory);
        let _ = std::fs::remove_dir(&directory);
        memory
    };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| MEMORY.with(|memory| memory.slot(data)));
