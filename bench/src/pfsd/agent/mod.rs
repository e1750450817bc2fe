//! The agent: the process that starts and ends a pfsd, is its client, and measures both, beside it. The experiment speaks to it
//! through its standard input and output, a line of JSON each way; so it may be in a container, where it is the only thing
//! that was brought along. When its input ends, whoever held the other end is gone, and it gives back everything.

mod board;
mod client;
mod installation;
mod load;
mod process;
mod serve;

use std::path::PathBuf;
use std::time::Duration;

use blockdev::{ByteSize, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::work::Work;
use crate::load::{Interval, Tally};
use crate::report::Histogram;

pub use serve::serve;

/// Where in the volume the file is that all read and write, below the agent's directory.
pub(super) const DATA: &str = "data";

/// What an agent is for: its first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// How it comes to a pfsd.
    pub service: Service,
    /// What its directory in the volume is called.
    pub directory: String,
    /// Whether that directory is to be removed at the end; not where the volume goes as a whole.
    pub tidy: bool,
    /// Whether to remove the file of its own program: it was brought along, and goes with it.
    pub unlink: bool,
}

/// How an agent comes to a pfsd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Service {
    /// Ours, in an installation of its own that nobody else sees.
    Ours {
        /// The program.
        program: PathBuf,
        /// What the disk is called.
        disk: String,
        /// The file or block device that it is.
        device: PathBuf,
    },
    /// The original, in the installation of the machine.
    Original {
        /// The program.
        program: PathBuf,
        /// The disk: a name in /dev.
        disk: String,
    },
    /// Whichever runs where the agent is: started anew, and in the end as it was.
    Here {
        /// The disk it serves, where that must be said.
        disk: Option<String>,
    },
}

/// What an agent is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Say what disk it is.
    Look,
    /// Start a pfsd with so many workers, and be its client.
    Serve {
        /// How many.
        workers: u32,
    },
    /// Make the file that all read and write, of so many bytes, and write all of it.
    Prepare {
        /// How many.
        size: ByteSize,
    },
    /// Ask nothing of the pfsd for so long.
    Idle(Duration),
    /// Be its clients.
    Load(Work),
    /// Leave the pfsd, and end it.
    Rest,
    /// Give everything back.
    Finish,
}

/// What an agent answers when it has done so.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Answer {
    Looked(Disk),
    Serving,
    Prepared,
    /// What of a core the pfsd took.
    Idle(f64),
    Loaded(Box<Loaded>),
    /// How much memory the pfsd had at the end, beyond what it shares with clients.
    Rested(ByteSize),
    Finished,
}

/// What either is said as: the answer, or why not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Said(std::result::Result<Answer, Complaint>);

impl Said {
    pub(super) fn new(outcome: Result<Answer>) -> Self {
        Self(outcome.map_err(|error| Complaint::new(&error)))
    }

    pub(super) fn into_result(self) -> Result<Answer> {
        self.0.map_err(Complaint::into_error)
    }
}

/// An error on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Complaint {
    kind: ErrorKind,
    message: String,
    cause: Option<String>,
    hint: Option<String>,
}

impl Complaint {
    fn new(error: &Error) -> Self {
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Self {
            kind: error.kind(),
            message: error.to_string(),
            cause: (!causes.is_empty()).then(|| causes.join(": ")),
            hint: error.hint().map(str::to_owned),
        }
    }

    fn into_error(self) -> Error {
        let mut error = Error::new(self.kind, self.message);
        if let Some(cause) = self.cause {
            error = error.with_source(cause);
        }
        if let Some(hint) = self.hint {
            error = error.with_hint(hint);
        }
        error
    }
}

/// The disk of an agent's pfsd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// What it is called.
    pub name: String,
    /// The number of the block device, which is the same in every container of a machine; none for a file.
    pub number: Option<u64>,
    /// The kernel that it is of: the id of its boot.
    pub boot: String,
    /// The program that serves it.
    pub program: PathBuf,
}

/// The id that the kernel made for itself when it began: who sees the same is on the same machine.
pub(super) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// What a load came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    /// How long was measured.
    pub window: Duration,
    /// Each kind of operation that the work consists of, in their order.
    pub kinds: Vec<Kind>,
    /// The window piece by piece, all kinds together.
    pub intervals: Vec<Interval>,
    /// In an open loop, how many operations were due when the window ended and had not begun.
    pub waiting: u64,
    /// Processor time that the pfsd took in the window.
    pub cpu: Duration,
}

impl Loaded {
    /// Operations that completed.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.tally.ios()).sum()
    }
}

/// One kind of operation of a load.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(into = "KindDocument", try_from = "KindDocument")]
pub struct Kind {
    /// What it is called.
    pub name: String,
    /// How long operations took.
    pub tally: Tally,
}

/// A [`Kind`] as it is written.
#[derive(Serialize, Deserialize)]
struct KindDocument {
    name: String,
    service: String,
    response: String,
}

impl From<Kind> for KindDocument {
    fn from(Kind { name, tally }: Kind) -> Self {
        Self { name, service: tally.service.encode(), response: tally.response.encode() }
    }
}

impl TryFrom<KindDocument> for Kind {
    type Error = Error;

    fn try_from(document: KindDocument) -> Result<Self> {
        let (service, response) = (Histogram::decode(&document.service)?, Histogram::decode(&document.response)?);
        Ok(Self { name: document.name, tally: Tally { service, response } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_as_it_was_sent() {
        let source = std::io::Error::from_raw_os_error(libc::EBUSY);
        let error = Error::io("cannot stop it", source).with_hint("wait");
        let said = Said::new(Err(error));
        let line = serde_json::to_string(&said).unwrap();
        let error = serde_json::from_str::<Said>(&line).unwrap().into_result().unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str(), error.hint()),
            (ErrorKind::Refused, "cannot stop it", Some("wait"))
        );
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("busy"), "{cause}");
    }

    #[test]
    fn what_was_measured_arrives_as_it_was() {
        let mut tally = Tally { service: Histogram::new(), response: Histogram::new() };
        tally.service.record_n(81_000, 3);
        let interval = Interval {
            start: Duration::ZERO,
            length: Duration::from_millis(100),
            ios: 3,
            p99: Some(Duration::from_micros(81)),
        };
        let loaded = Loaded {
            window: Duration::from_secs(1),
            kinds: vec![Kind { name: "read".to_owned(), tally }],
            intervals: vec![interval],
            waiting: 0,
            cpu: Duration::from_millis(7),
        };
        let line = serde_json::to_string(&Said::new(Ok(Answer::Loaded(Box::new(loaded))))).unwrap();
        assert!(!line.contains('\n'));
        let Answer::Loaded(back) = serde_json::from_str::<Said>(&line).unwrap().into_result().unwrap() else {
            panic!("{line}")
        };
        assert_eq!((back.operations(), back.intervals), (3, vec![interval]));
        assert_eq!(back.kinds[0].tally.service.percentile(50.0), 81_023);
    }
}
