//! Measuring a shared disk, and what stands on it.
