//! Talking to a disk that another process serves: one JSON document a line, request and answer, over a Unix socket that only
//! the server's user may open.
//!
//! ```json
//! {"command":"cut-power","keep":"random","seed":7}
//! {"ok":{"unflushed":3,"kept":1,"torn":1,"lost":1}}
//! ```

mod client;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::host::HostName;
use super::layer::{Fault, Keep, Latency, Layers, Limit};
use super::reservation::{Action, Reservations};
use super::served::Export;
use super::stats::{Counts, LayerCount};
use crate::error::{Error, ErrorKind};
use crate::units::ByteSize;

pub use client::Client;
pub(super) use server::Server;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// How the disk is: a [`Status`].
    Status,
    /// Sets one layer, or takes it away: [`Layers`].
    SetLayer {
        /// Which, and how.
        #[serde(flatten)]
        layer: Layer,
    },
    /// Gives the disk these layers and no others: [`Layers`].
    SetLayers {
        /// Which, and how.
        layers: Layers,
    },
    /// Cuts the power: a [`Loss`](super::Loss).
    CutPower {
        /// What becomes of writes that were not flushed.
        #[serde(default)]
        keep: Keep,
        /// What decides, where it is left to chance.
        #[serde(default)]
        seed: u64,
    },
    /// Gives the power back: nothing.
    RestorePower,
    /// Makes durable what is in the volatile cache: nothing.
    Flush,
    /// Does something about reservations: [`Reservations`].
    Reserve {
        /// What.
        #[serde(flatten)]
        action: Action,
    },
    /// Ends the server, in an orderly way: nothing.
    Stop,
}

/// A layer, and how it is to be; nothing takes it away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "layer", content = "value", rename_all = "kebab-case")]
pub enum Layer {
    /// How many requests are served at once.
    QueueDepth(Option<u32>),
    /// How much is done in a second.
    Rate(Vec<Limit>),
    /// What goes wrong.
    Faults(Vec<Fault>),
    /// How long it takes.
    Latency(Option<Latency>),
    /// Where changes are written down.
    Record(Option<PathBuf>),
    /// How much the volatile cache holds.
    Cache(Option<ByteSize>),
}

impl Layer {
    /// Sets it among others.
    pub fn set(self, layers: &mut Layers) {
        match self {
            Self::QueueDepth(depth) => layers.queue_depth = depth,
            Self::Rate(limits) => layers.rate = limits,
            Self::Faults(faults) => layers.faults = faults,
            Self::Latency(latency) => layers.latency = latency,
            Self::Record(path) => layers.record = path,
            Self::Cache(size) => layers.cache = size,
        }
    }
}

/// How a served disk is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its image.
    pub image: PathBuf,
    /// How large it is.
    pub size: ByteSize,
    /// The process that serves it.
    pub pid: u32,
    /// For how long, in nanoseconds.
    pub uptime_ns: u64,
    /// Whether it has power.
    pub power: bool,
    /// Its layers.
    pub layers: Layers,
    /// What each of them has done until now.
    pub layer_counts: Vec<LayerCount>,
    /// How many bytes would be lost without power.
    pub dirty: ByteSize,
    /// How often each fault has come, in the order of the layer.
    pub faults: Vec<u64>,
    /// How many changes and flushes are recorded.
    pub records: u64,
    /// Who may write.
    pub reservations: Reservations,
    /// Where each host finds it.
    pub exports: Vec<Export>,
    /// What each host has asked of it until now.
    pub hosts: Vec<HostStatus>,
}

/// How a host uses the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: HostName,
    /// Whether it may write.
    pub writes: bool,
    /// What it has asked until now.
    pub counts: Counts,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Ok(Value),
    Error(Failure),
}

/// An error on its way through the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failure {
    /// What a program would exit with.
    exit_code: u8,
    message: String,
    hint: Option<String>,
    because: Option<String>,
}

impl Failure {
    fn of(error: &Error) -> Self {
        let because = std::error::Error::source(error).map(ToString::to_string);
        Self {
            exit_code: error.kind().exit_code(),
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
            because,
        }
    }

    fn into_error(self) -> Error {
        let kinds = [
            ErrorKind::InvalidInput,
            ErrorKind::Refused,
            ErrorKind::NoSpace,
            ErrorKind::VerifyFailed,
            ErrorKind::Unsupported,
            ErrorKind::Interrupted,
        ];
        let kind = kinds.into_iter().find(|kind| kind.exit_code() == self.exit_code).unwrap_or(ErrorKind::Io);
        let mut error = Error::new(kind, self.message);
        if let Some(hint) = self.hint {
            error = error.with_hint(hint);
        }
        if let Some(because) = self.because {
            error = error.with_source(because);
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_plain_json() {
        for (text, command) in [
            (r#"{"command":"status"}"#, Command::Status),
            (r#"{"command":"cut-power","keep":"random","seed":7}"#, Command::CutPower { keep: Keep::Random, seed: 7 }),
            (
                r#"{"command":"set-layer","layer":"queue-depth","value":32}"#,
                Command::SetLayer { layer: Layer::QueueDepth(Some(32)) },
            ),
            (
                r#"{"command":"set-layer","layer":"faults","value":["eio,op=write,count=3"]}"#,
                Command::SetLayer { layer: Layer::Faults(vec!["eio,op=write,count=3".parse().unwrap()]) },
            ),
            (
                r#"{"command":"reserve","action":"fence","host":"a"}"#,
                Command::Reserve { action: Action::Fence { host: "a".parse().unwrap() } },
            ),
        ] {
            assert_eq!(serde_json::to_string(&command).unwrap(), text);
            assert_eq!(serde_json::from_str::<Command>(text).unwrap(), command);
        }
        let short: Command = serde_json::from_str(r#"{"command":"cut-power"}"#).unwrap();
        assert_eq!(short, Command::CutPower { keep: Keep::None, seed: 0 });
        for bad in ["{}", r#"{"command":"explode"}"#, r#"{"command":"set-layer","layer":"x","value":1}"#, "[]", "1"] {
            assert!(serde_json::from_str::<Command>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_come_through_whole() {
        let error = Error::refused("no").with_hint("ask later").with_source("busy");
        let came = Failure::of(&error).into_error();
        assert_eq!(
            (came.kind(), came.to_string().as_str(), came.hint()),
            (ErrorKind::Refused, "no", Some("ask later"))
        );
        assert_eq!(std::error::Error::source(&came).map(ToString::to_string).as_deref(), Some("busy"));
    }
}
