//! A page of a client's file of any bytes.
#![no_main]

#[path = "../../tests/common/fuzz.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::handshake(data));
