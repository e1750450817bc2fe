//! Measuring a shared disk, and what stands on it.
//!
//! Every experiment ends in one [`report::Run`]: what was measured, on what, how, and what was found.

pub mod disk;
pub mod lag;
pub mod load;
pub mod pfsd;
pub mod report;
pub mod tune;
