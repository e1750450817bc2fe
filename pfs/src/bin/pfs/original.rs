//! The ways of the original `pfs`: its general options, its numbers, how it ends.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

use blockdev::{Error, ui};
use nix::errno::Errno;
use pfs::format::Damage;

use crate::session::Failure;

/// What the original takes before a command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "As the original")]
pub(crate) struct Options {
    /// Be the original `pfs`, on the disks of this cluster. There is one: disk.
    #[arg(short = 'C', long, value_name = "NAME")]
    cluster: Option<String>,

    /// The host that this is, 1 to 127. Readers need none; it only has to be one that the volume has room for.
    #[arg(short = 'H', long, value_name = "ID", default_value_t, value_parser = clap::value_parser!(u8).range(0..128))]
    pub(crate) hostid: u8,

    /// How long to wait for a pfsd to appear and to let this in. Without it none is waited for that does not run, and one
    /// that does has 2 s.
    #[arg(short = 't', value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,

    /// Whether to ask a pfsd first, if one serves the volume: 0 for no. It is asked what it does for the original.
    #[arg(short = 'E', long = "enable_pfsd", value_name = "0|1")]
    pub(crate) enable_pfsd: Option<u8>,

    /// Where disks are looked for.
    #[arg(long, value_name = "DIR", default_value = "/dev")]
    pub(crate) devices: PathBuf,
}

impl Options {
    /// Whether this is to be the original.
    pub(crate) fn asked_for(&self) -> bool {
        self.cluster.is_some()
    }

    /// Whether the cluster is one that there is.
    pub(crate) fn known_cluster(&self) -> Result<(), Error> {
        match self.cluster.as_deref() {
            None | Some("disk") => Ok(()),
            Some(name) => {
                Err(Error::invalid(format!("there is no cluster {name:?}")).with_hint("the only one is `disk`"))
            }
        }
    }
}

/// A number as C's `strtol` takes it with base 0: decimal, 0x for base 16, 0 for base 8.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    u64::from_str_radix(digits, radix).map_err(|error| error.to_string())
}

/// Ends after a command line that is none.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell when the terminal itself is gone.
    let _ = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    if code == 0 || !wanted(std::env::args_os().skip(1)) {
        return ExitCode::from(code);
    }
    // The original leaves with 1 where it knows no command, with -1 where the command does not know its arguments.
    let general = matches!(
        error.kind(),
        clap::error::ErrorKind::InvalidSubcommand
            | clap::error::ErrorKind::MissingSubcommand
            | clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    ExitCode::from(if general { 1 } else { 255 })
}

/// Whether a command line asks for the original: `-C` before anything that is no option.
fn wanted(mut args: impl Iterator<Item = impl AsRef<OsStr>>) -> bool {
    while let Some(arg) = args.next() {
        let arg = arg.as_ref().to_string_lossy().into_owned();
        match arg.as_str() {
            text if text.starts_with("-C") || text.starts_with("--cl") => return true,
            "-H" | "-t" | "-E" | "--hostid" | "--enable_pfsd" | "--devices" | "--output" | "--root" => {
                drop(args.next())
            }
            text if text.starts_with('-') => {}
            _ => return false,
        }
    }
    false
}

/// Ends as the original ends after a failure. What went wrong is on standard error; it keeps that in a log.
pub(crate) fn end(command: &str, failure: &Failure) -> ExitCode {
    let (error, code) = match failure {
        Failure::Exit { error, errno } => (error, *errno as i32),
        // It leaves the process with EIO over a chunk header, and lets every other failure to mount be -1.
        Failure::Mount(error) => (error, if speaks_of_header(error) { Errno::EIO as i32 } else { -1 }),
        Failure::Command { error, code, own } => {
            let why = if *own { "impl specific".to_owned() } else { strerror(error) };
            // Nobody is left to tell when standard output itself is gone.
            let _ = ui::print(&format!("{command} failed: {why}\n"));
            (error, *code)
        }
    };
    ui::report_error("pfs", error);
    ExitCode::from(u8::try_from(code.rem_euclid(256)).unwrap_or(255))
}

fn speaks_of_header(error: &Error) -> bool {
    use std::error::Error as _;
    let damage = error.source().and_then(|source| source.downcast_ref::<Damage>());
    damage.is_some_and(|damage| damage.structure().starts_with("header") && damage.field() != "ck_nchunk")
}

/// What C calls the errno of an error; damage is an I/O error.
fn strerror(error: &Error) -> String {
    let errno = error.errno().unwrap_or(Errno::EIO as i32);
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_c_writes_them() {
        assert_eq!(number("100"), Ok(100));
        assert_eq!(number("0x10"), Ok(16));
        assert_eq!(number("010"), Ok(8));
        assert_eq!(number("0"), Ok(0));
        assert!(number("-1").is_err());
        assert!(number("1k").is_err());
    }

    #[test]
    fn the_original_is_asked_for_before_the_command() {
        for (line, expected) in [
            ("-C disk ls /x/", true),
            ("-H 1 -t 5 -E 0 --cluster=disk ls /x/", true),
            ("-Cdisk ls", true),
            ("ls -C disk", false),
            ("--output json ls", false),
            ("", false),
        ] {
            assert_eq!(wanted(line.split_whitespace()), expected, "{line}");
        }
    }
}
