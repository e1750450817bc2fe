//! The side of who asks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{Command, Layer, Reply, Status};
use crate::emulate::layer::{Keep, Layers, Loss};
use crate::emulate::registry;
use crate::emulate::reservation::{Action, Reservations};
use crate::error::{Context, Error, ErrorKind, Result};

/// A connection to the server of a disk.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to who serves `disk`: the image, or the socket itself.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nobody serves it.
    pub fn connect(disk: &Path) -> Result<Self> {
        let socket = registry::socket_of(disk)?;
        let what = || format!("cannot reach the server of {}", disk.display());
        let stream = UnixStream::connect(&socket).context(what)?;
        Ok(Self { socket, stream: BufReader::new(stream) })
    }

    /// Asks something.
    ///
    /// # Errors
    /// Those of the server; or when it is gone.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &Command) -> Result<T> {
        let what = || format!("the server at {} does not answer", self.socket.display());
        let bad = |source| {
            Error::new(ErrorKind::Io, format!("the server at {} does not speak as it should", self.socket.display()))
                .with_source(source)
        };
        let mut line = serde_json::to_vec(command).map_err(bad)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).context(what)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer).context(what)? == 0 {
            return Err(Error::new(ErrorKind::Io, what()).with_hint("it has ended, or was killed"));
        }
        match serde_json::from_str(&answer).map_err(bad)? {
            Reply::Ok(value) => serde_json::from_value(value).map_err(bad),
            Reply::Error(failure) => Err(failure.into_error()),
        }
    }

    /// How the disk is.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), and so of all others.
    pub fn status(&mut self) -> Result<Status> {
        self.ask(&Command::Status)
    }

    /// Sets one layer, or takes it away.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn set_layer(&mut self, layer: Layer) -> Result<Layers> {
        self.ask(&Command::SetLayer { layer })
    }

    /// Cuts the power.
    ///
    /// # Errors
    /// When what survives cannot be written.
    pub fn cut_power(&mut self, keep: Keep, seed: u64) -> Result<Loss> {
        self.ask(&Command::CutPower { keep, seed })
    }

    /// Gives the power back.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn restore_power(&mut self) -> Result<()> {
        self.ask(&Command::RestorePower)
    }

    /// Does something about reservations.
    ///
    /// # Errors
    /// Where a device would answer with a reservation conflict.
    pub fn reserve(&mut self, action: Action) -> Result<Reservations> {
        self.ask(&Command::Reserve { action })
    }

    /// Ends the server.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn stop(&mut self) -> Result<()> {
        self.ask(&Command::Stop)
    }
}
