//! Measuring one disk: what it can do, and whether it keeps what it acknowledged.

pub mod verify;
