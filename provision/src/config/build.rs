//! PolarDB built from its source instead of taken from an image.

use std::fmt;
use std::str::FromStr;

use blockdev::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where the source is, and which branch is stable: as in the recipe.
const REPOSITORY: &str = "https://github.com/ApsaraDB/PolarDB-for-PostgreSQL";
const BRANCH: &str = "POLARDB_15_STABLE";

/// Whether PolarDB is built, and from what: `true`, `false`, the URL of a mirror, or `URL#BRANCH`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "Said")]
pub enum Build {
    /// It is in the image.
    #[default]
    No,
    /// It is built from a branch of a repository.
    From(Source),
}

/// A branch of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The repository, as git takes it.
    pub url: String,
    /// The branch.
    pub branch: String,
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Said {
    Flag(bool),
    Text(String),
}

impl Source {
    fn published() -> Self {
        Self { url: REPOSITORY.to_owned(), branch: BRANCH.to_owned() }
    }
}

impl FromStr for Build {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (url, branch) = match text {
            "false" => return Ok(Self::No),
            "true" => return Ok(Self::From(Source::published())),
            text => text.split_once('#').unwrap_or((text, BRANCH)),
        };
        // Neither is taken for an option of git.
        let is_word = |word: &str| !word.is_empty() && !word.starts_with('-') && !word.contains(char::is_whitespace);
        if !is_word(url) || !is_word(branch) {
            return Err(Error::invalid(format!("{text:?} is no source of PolarDB"))
                .with_hint("write true, false, the URL of a git repository, or URL#BRANCH"));
        }
        Ok(Self::From(Source { url: url.to_owned(), branch: branch.to_owned() }))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.url, self.branch)
    }
}

impl TryFrom<Said> for Build {
    type Error = Error;

    fn try_from(said: Said) -> Result<Self> {
        match said {
            Said::Flag(flag) => flag.to_string().parse(),
            Said::Text(text) => text.parse(),
        }
    }
}

impl From<Build> for Said {
    fn from(build: Build) -> Self {
        match build {
            Build::No => Self::Flag(false),
            Build::From(source) if source == Source::published() => Self::Flag(true),
            Build::From(source) => Self::Text(source.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_and_a_branch_may_be_named() {
        let source = |text: &str| match text.parse().unwrap() {
            Build::From(Source { url, branch }) => (url, branch),
            Build::No => panic!("{text} is a source"),
        };
        assert_eq!(source("true"), (REPOSITORY.to_owned(), BRANCH.to_owned()));
        assert_eq!(source("https://mirror/p"), ("https://mirror/p".to_owned(), BRANCH.to_owned()));
        assert_eq!(source("git@host:p.git#b/c"), ("git@host:p.git".to_owned(), "b/c".to_owned()));
        assert_eq!("false".parse::<Build>().unwrap(), Build::No);
        for text in ["", "#b", "https://m#", "--upload-pack=x", "https://m#-b", "a b"] {
            let error = text.parse::<Build>().unwrap_err();
            assert_eq!(error.to_string(), format!("{text:?} is no source of PolarDB"));
        }
    }

    #[test]
    fn it_stands_in_a_file_as_it_was_said() {
        for text in ["true", "false", "\"https://m/p#b\""] {
            let build: Build = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&build).unwrap(), text);
        }
        let whole: Build = serde_json::from_str("\"https://m/p\"").unwrap();
        assert_eq!(serde_json::to_string(&whole).unwrap(), format!("\"https://m/p#{BRANCH}\""));
        assert!(serde_json::from_str::<Build>("7").is_err());
    }
}
