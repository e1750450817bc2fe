//! `bench`: measures a shared disk, and what stands on it.

mod compare;
mod completions;
mod disk;
mod keep;
mod lag;
mod pfsd;
mod report;
mod shown;
mod time;
mod tune;

use std::process::ExitCode;

use blockdev::{Result, ui};
use clap::{Parser, Subcommand};

/// Measure a shared disk, and what stands on it.
///
/// Exit codes: 0 done, 1 failed, 2 bad input, 3 refused (it would overwrite or harm something), 4 not enough space,
/// 5 verification failed, 6 not permitted or not supported here, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "bench", version, max_term_width = 100)]
struct Cli {
    /// How results are printed on standard output.
    #[arg(long, value_enum, global = true, default_value_t)]
    output: ui::Output,

    #[command(subcommand)]
    command: Command,
}

// One module per command: its arguments, and `run`.
#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Args),
    Completions(completions::Args),
    Disk(Box<disk::Args>),
    Lag(Box<lag::Args>),
    Pfsd(Box<pfsd::Args>),
    #[command(name = bench::pfsd::AGENT, hide = true)]
    PfsdAgent(pfsd::AgentArgs),
    Report(report::Args),
    Tune(tune::Args),
}

fn main() -> ExitCode {
    ui::exit("bench", &run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Compare(args) => compare::run(args, cli.output),
        Command::Completions(args) => completions::run(args),
        Command::Disk(args) => disk::run(args, cli.output),
        Command::Lag(args) => lag::run(args, cli.output),
        Command::Pfsd(args) => pfsd::run(args, cli.output),
        Command::PfsdAgent(args) => pfsd::run_agent(args),
        Command::Report(args) => report::run(args, cli.output),
        Command::Tune(args) => tune::run(args, cli.output),
    }
}
