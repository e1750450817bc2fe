//! A program of ours in a container: brought along, and spoken to through its standard input and output. The container, which
//! somebody else made, needs nothing for that, not even a shell.

use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use blockdev::{Cancel, Context, Error, ErrorKind, Result};
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::query_parameters::UploadToContainerOptions;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::client::Client;
use super::endpoint::Endpoint;

/// What our programs are called in a container, before the number of the process that brought them.
const PREFIX: &str = "onedisk-guest-";
/// How long a program may take to end once nobody speaks to it any more: it gives back what it holds.
const ENDING: Duration = Duration::from_secs(120);
/// How much of what it complains of is kept.
const COMPLAINTS_MAX: usize = 4096;

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These bytes, on its standard output.
    Bytes(Vec<u8>),
    /// Nothing in the time.
    Nothing,
    /// It has ended.
    End,
}

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// A program in a container. Dropped, it hears the end of its input, and is waited for.
pub struct Guest {
    container: String,
    output: Output,
    input: Input,
    complaints: Vec<u8>,
    lost: bool,
    // Dropped last: the others live in it.
    client: Client,
}

impl Guest {
    /// Brings `program` into the container, as a file in its root directory, and runs it there as root with `arguments`. It is
    /// for the program to remove its file.
    ///
    /// # Errors
    /// When Docker does not answer, there is no such container or it does not run, or the program cannot run there: one that
    /// is linked against libraries that the container lacks.
    pub fn enter(
        endpoint: &Endpoint,
        container: &str,
        program: &Path,
        arguments: &[&str],
        cancel: &Cancel,
    ) -> Result<Self> {
        let client = Client::connect(endpoint)?;
        let what = || format!("cannot look at the container {container}");
        let found = client.look(what, async |docker| docker.inspect_container(container, None).await)?;
        let Some(found) = found else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no container {container}"))
                .with_hint("`docker ps` lists those that run"));
        };
        if !found.state.and_then(|state| state.running).unwrap_or(false) {
            return Err(Error::refused(format!("the container {container} does not run"))
                .with_hint(format!("docker start {container}")));
        }
        let name = format!("{PREFIX}{}", std::process::id());
        let path = format!("/{name}");
        bring(&client, container, program, &path, cancel)?;
        let what = || format!("cannot run {} in the container {container}", program.display());
        let words = [&[&*path], arguments].concat();
        let (output, input) = start(&client, container, &words, what)?;
        Ok(Self { container: container.to_owned(), output, input, complaints: Vec::new(), lost: false, client })
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { client, input, container, .. } = self;
        let sent = client.block_on(async {
            input.write_all(bytes).await?;
            input.flush().await
        });
        sent.context(|| format!("cannot speak to what runs in the container {container}"))
    }

    /// Waits for what it says, for no longer than `timeout`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn receive(&mut self, timeout: Duration) -> Result<Heard> {
        let until = Instant::now() + timeout;
        loop {
            let Self { client, output, container, complaints, .. } = self;
            let left = until.saturating_duration_since(Instant::now());
            match client.block_on(async { tokio::time::timeout(left, output.next()).await }) {
                Err(_) => return Ok(Heard::Nothing),
                Ok(None) => return Ok(Heard::End),
                Ok(Some(Ok(LogOutput::StdErr { message }))) => {
                    complaints.extend_from_slice(&message[..message.len().min(COMPLAINTS_MAX - complaints.len())]);
                }
                Ok(Some(Ok(piece))) => return Ok(Heard::Bytes(piece.into_bytes().to_vec())),
                Ok(Some(Err(error))) => {
                    let what = format!("cannot hear what runs in the container {container}");
                    return Err(client.described(what, error));
                }
            }
        }
    }

    /// Does not wait for it in the end.
    pub fn give_up(&mut self) {
        self.lost = true;
    }

    /// What it said on its standard error.
    #[must_use]
    pub fn complaints(&self) -> String {
        String::from_utf8_lossy(&self.complaints).trim().to_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Self { client, input, .. } = self;
        // Where the connection is lost, it hears of that.
        let _ = client.block_on(async { input.shutdown().await });
        let until = Instant::now() + ENDING;
        while !self.lost
            && Instant::now() < until
            && matches!(self.receive(Duration::from_secs(1)), Ok(Heard::Bytes(_) | Heard::Nothing))
        {}
    }
}

/// Puts the file of `program` into the container as `path`, whose directory is there, and sees that it runs there.
pub(super) fn bring(client: &Client, container: &str, program: &Path, path: &str, cancel: &Cancel) -> Result<()> {
    put(client, container, program, path, cancel)?;
    try_out(client, container, program, path, cancel).inspect_err(|_| {
        // The container may well lack what removes files, too; then it keeps this one.
        let _ = run(client, container, &["rm", "-f", path], &Cancel::new());
    })
}

fn put(client: &Client, container: &str, program: &Path, path: &str, cancel: &Cancel) -> Result<()> {
    let what = || format!("cannot bring {} into the container {container}", program.display());
    let content = std::fs::read(program).context(what)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::with_capacity(content.len() + (1 << 14)));
    archive.append_data(&mut header, path.trim_start_matches('/'), &*content).context(what)?;
    let archive = archive.into_inner().context(what)?;
    let options = UploadToContainerOptions { path: "/".to_owned(), ..UploadToContainerOptions::default() };
    let docker = client.docker();
    let upload = docker.upload_to_container(container, Some(options), bollard::body_full(archive.into()));
    client.wait(upload, "bringing a program into a container", cancel)?.map_err(|error| client.described(what(), error))
}

/// Whether the program runs there at all.
fn try_out(client: &Client, container: &str, program: &Path, path: &str, cancel: &Cancel) -> Result<()> {
    let (code, said) = run(client, container, &[path, "--version"], cancel)?;
    if code == Some(0) {
        return Ok(());
    }
    let message = format!("{} does not run in the container {container}: {said}", program.display());
    Err(Error::new(ErrorKind::Unsupported, message).with_hint(
        "it is linked against libraries of this machine that the container lacks or has older; a static one runs anywhere: \
         RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu --bins",
    ))
}

/// Runs `words` to their end. Gives the exit code, where there was one, and all that was printed.
fn run(client: &Client, container: &str, words: &[&str], cancel: &Cancel) -> Result<(Option<i64>, String)> {
    let what = || format!("cannot run {} in the container {container}", words.join(" "));
    let options = options(words, false);
    let id = client.call(what, async |docker| Ok(docker.create_exec(container, options).await?.id))?;
    let docker = client.docker();
    let running = async {
        let started = docker.start_exec(&id, None::<StartExecOptions>).await?;
        let mut said = Vec::new();
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(piece) = output.next().await {
                said.extend_from_slice(&piece?.into_bytes());
            }
        }
        Ok::<_, bollard::errors::Error>(said)
    };
    // That it cannot be started Docker says as an error or as what it printed, by version.
    let said = match client.wait(running, "trying a program in a container", cancel)? {
        Ok(said) => String::from_utf8_lossy(&said).trim().to_owned(),
        Err(error) => return Ok((None, client.described(what(), error).to_string())),
    };
    let seen = client.call(what, async |docker| docker.inspect_exec(&id).await)?;
    Ok((seen.exit_code, said))
}

fn options(words: &[&str], input: bool) -> CreateExecOptions<String> {
    CreateExecOptions {
        cmd: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        user: Some("0".to_owned()),
        attach_stdin: Some(input),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..CreateExecOptions::default()
    }
}

fn start(client: &Client, container: &str, words: &[&str], what: impl Fn() -> String) -> Result<(Output, Input)> {
    let options = options(words, true);
    let id = client.call(&what, async |docker| Ok(docker.create_exec(container, options).await?.id))?;
    let started = client.call(&what, async |docker| docker.start_exec(&id, None::<StartExecOptions>).await)?;
    match started {
        StartExecResults::Attached { output, input } => Ok((output, input)),
        StartExecResults::Detached => Err(Error::new(ErrorKind::Io, format!("{}: it was left alone", what()))),
    }
}
