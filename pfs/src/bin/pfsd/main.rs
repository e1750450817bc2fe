//! `pfsd`: serves a PolarFS volume to the processes of a database, in place of the original's `pfsdaemon`.

mod serve;
mod start;
mod status;
mod stop;
mod target;

use std::process::ExitCode;

use blockdev::ui;
use clap::{CommandFactory, Parser, Subcommand};

/// Serve a PolarFS volume to a database's processes on this machine, through shared memory.
///
/// Called as the original `pfsdaemon` is, with `-p NAME` first or anywhere, it does what that does, and PolarDB and the
/// original `pfs` do not know the difference: `pfsd -p nvme1n1 -w 2` serves the volume on /dev/nvme1n1 in the background.
/// `pfsd start` does the same and waits until clients are let in.
///
/// Ended by SIGINT or SIGTERM it lets what was begun end; clients wait, and go on with the next daemon.
///
/// Exit codes: 0 done, 1 failed, 2 bad input, 3 refused (it is served already), 6 not permitted or not supported here,
/// 130 interrupted. Called as the original: 255 for whatever keeps it from starting.
#[derive(Debug, Parser)]
#[command(name = "pfsd", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    serve: serve::Args,

    #[command(subcommand)]
    command: Option<Command>,
}

// One module per command: its arguments, and `run`.
#[derive(Debug, Subcommand)]
enum Command {
    Start(start::Args),
    Stop(stop::Args),
    Status(status::Args),
    /// Print a completion script for a shell, or the man page
    Completions {
        /// What to print.
        #[arg(value_enum)]
        what: ui::Generated,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell when standard error itself is gone.
            let _ = error.print();
            let as_original = std::env::args_os().nth(1).is_none_or(|first| first.to_string_lossy().starts_with('-'));
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if as_original => ExitCode::from(serve::FAILED),
                code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            };
        }
    };
    let outcome = match &cli.command {
        None => return serve::run(&cli.serve),
        Some(Command::Start(args)) => start::run(args),
        Some(Command::Stop(args)) => stop::run(args),
        Some(Command::Status(args)) => status::run(args),
        Some(Command::Completions { what }) => ui::generate(Cli::command(), *what),
    };
    ui::exit("pfsd", &outcome)
}
