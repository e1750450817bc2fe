//! Which pfsd the nodes run.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use blockdev::{Context, Error, Result};
use serde::{Deserialize, Serialize};

/// The word for the image's own.
const IMAGE: &str = "image";

/// Which pfsd a node runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pfsd {
    /// The one of its image: the original.
    #[default]
    Image,
    /// This program of this machine, which is brought to the node. The path is absolute.
    File(PathBuf),
}

impl FromStr for Pfsd {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == IMAGE {
            return Ok(Self::Image);
        }
        // Other commands are called elsewhere.
        std::path::absolute(text).map(Self::File).context(|| format!("{text:?} is no path of a pfsd"))
    }
}

impl fmt::Display for Pfsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => f.pad(IMAGE),
            Self::File(path) => f.pad(&path.to_string_lossy()),
        }
    }
}

impl TryFrom<String> for Pfsd {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Pfsd> for String {
    fn from(pfsd: Pfsd) -> Self {
        pfsd.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_what_it_says() {
        for text in ["image", "/usr/bin/pfsd"] {
            assert_eq!(text.parse::<Pfsd>().unwrap().to_string(), text);
        }
        let Ok(Pfsd::File(path)) = "image/pfsd".parse() else { panic!("a path is a file") };
        assert!(path.is_absolute() && path.ends_with("image/pfsd"), "{}", path.display());
        assert_eq!("".parse::<Pfsd>().unwrap_err().to_string(), "\"\" is no path of a pfsd");
    }
}
