//! A whole volume, damaged in any way. It damages the image that `PFS_FUZZ_VOLUME` names, and mends it again: one that
//! `pfs/tests/fixtures` has, unpacked to memory (/dev/shm).
#![no_main]

#[path = "../../tests/common/fuzz.rs"]
mod bodies;

thread_local! {
    static VICTIM: bodies::Victim = bodies::Victim::new(
        std::env::var_os("PFS_FUZZ_VOLUME").expect("PFS_FUZZ_VOLUME names an unpacked volume").as_ref(),
    );
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| VICTIM.with(|victim| victim.volume(data)));
