//! What is wrong in bytes that should be a structure.

use std::fmt;

use blockdev::{Error, ErrorKind};
use serde::{Serialize, Serializer};

use super::Bda;

/// Bytes that are not what they should be: which structure, where on the device, which field, and what is wrong with it.
///
/// Fields are called what the original calls them, as `pfs dumpfs` and `pfs dumple` print them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    structure: String,
    at: Bda,
    field: &'static str,
    problem: String,
}

impl Damage {
    /// The `field` of `structure`, which lies `at` an address, is wrong; `problem` says how.
    pub fn new(structure: impl Into<String>, at: Bda, field: &'static str, problem: impl Into<String>) -> Self {
        Self(Box::new(Inner { structure: structure.into(), at, field, problem: problem.into() }))
    }

    /// Which structure: `inode 353`, `leader record`.
    #[must_use]
    pub fn structure(&self) -> &str {
        &self.0.structure
    }

    /// Where on the device that structure lies.
    #[must_use]
    pub fn at(&self) -> Bda {
        self.0.at
    }

    /// Which field of it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.0.field
    }

    /// What is wrong with the field.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.0.problem
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}: {}", self.0.structure, self.0.at, self.0.field, self.0.problem)
    }
}

impl std::error::Error for Damage {}

impl Serialize for Damage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Flat<'a> {
            structure: &'a str,
            bda: u64,
            field: &'a str,
            problem: &'a str,
        }
        Flat { structure: self.structure(), bda: self.at().bytes(), field: self.field(), problem: self.problem() }
            .serialize(serializer)
    }
}

impl From<Damage> for Error {
    fn from(damage: Damage) -> Self {
        Self::new(ErrorKind::VerifyFailed, "the volume is damaged")
            .with_source(damage)
            .with_hint("`pfs check` lists everything that is wrong with it")
    }
}
