//! `provision`: makes a database cluster with one writer and many readers, looks after it, and takes it down.

mod completions;
mod config;
mod doctor;
mod down;
mod exec;
mod logs;
mod psql;
mod repair;
mod replica;
mod selection;
mod start;
mod status;
mod stop;
mod up;

use std::process::ExitCode;

use blockdev::{Result, ui};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use selection::Selection;

/// Make a database cluster with one writer and many readers, look after it, take it down.
///
/// `provision up` needs no further argument: it makes a primary and a replica of the PostgreSQL that is installed here.
///
/// Exit codes: 0 done, 1 failed, 2 bad input, 3 refused (it would overwrite or harm something), 4 not enough space,
/// 5 verification failed, 6 not permitted or not supported here, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "provision", version, max_term_width = 100)]
struct Cli {
    /// How results are printed on standard output.
    #[arg(long, value_enum, global = true, default_value_t)]
    output: ui::Output,

    #[command(flatten)]
    selection: Selection,

    #[command(subcommand)]
    command: Command,
}

// One module per command: its arguments, and `run`.
#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::Args>),
    Status(status::Args),
    Psql(psql::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Stop(stop::Args),
    Start(start::Args),
    Repair(repair::Args),
    Replica(replica::Args),
    Down(down::Args),
    Doctor(Box<doctor::Args>),
    Config(Box<config::Args>),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    ui::exit("provision", &run(&cli, &matches))
}

fn run(cli: &Cli, matches: &ArgMatches) -> Result<()> {
    let (selection, output) = (&cli.selection, cli.output);
    match &cli.command {
        Command::Up(args) => up::run(args, selection, matches, output),
        Command::Status(args) => status::run(args, selection, output),
        Command::Psql(args) => psql::run(args, selection),
        Command::Logs(args) => logs::run(args, selection),
        Command::Exec(args) => exec::run(args, selection),
        Command::Stop(args) => stop::run(args, selection),
        Command::Start(args) => start::run(args, selection, output),
        Command::Repair(args) => repair::run(args, selection, output),
        Command::Replica(args) => replica::run(args, selection, output),
        Command::Down(args) => down::run(args, selection),
        Command::Doctor(args) => doctor::run(args, selection, matches, output),
        Command::Config(args) => config::run(args, selection, matches, output),
        Command::Completions(args) => completions::run(args),
    }
}
