//! `vdisk`: makes, verifies, grows and attaches the image of a shared disk.

mod attach;
mod completions;
mod create;
mod ctl;
mod detach;
mod grow;
mod info;
mod list;
mod replay;
mod report;
mod serve;
mod top;
mod verify;

use std::process::ExitCode;

use blockdev::{Result, ui};
use clap::{Parser, Subcommand};

/// Make a shared disk of a file: create, verify, grow, attach, serve.
///
/// Exit codes: 0 done, 1 failed, 2 bad input, 3 refused (it would overwrite or harm something), 4 not enough space,
/// 5 verification failed, 6 not permitted or not supported here, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "vdisk", version, max_term_width = 100)]
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
    Attach(attach::Args),
    Completions(completions::Args),
    Create(create::Args),
    Ctl(ctl::Args),
    Detach(detach::Args),
    Grow(grow::Args),
    Info(info::Args),
    List(list::Args),
    Replay(replay::Args),
    Serve(serve::Args),
    Top(top::Args),
    Verify(verify::Args),
}

fn main() -> ExitCode {
    ui::exit("vdisk", &run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    // Whatever is asked for: nobody else would.
    blockdev::emulate::clean_up().iter().for_each(|found| ui::notice(found));
    match &cli.command {
        Command::Attach(args) => attach::run(args, cli.output),
        Command::Completions(args) => completions::run(args),
        Command::Create(args) => create::run(args, cli.output),
        Command::Ctl(args) => ctl::run(args, cli.output),
        Command::Detach(args) => detach::run(args, cli.output),
        Command::Grow(args) => grow::run(args, cli.output),
        Command::Info(args) => info::run(args, cli.output),
        Command::List(args) => list::run(args, cli.output),
        Command::Replay(args) => replay::run(args, cli.output),
        Command::Serve(args) => serve::run(args, cli.output),
        Command::Top(args) => top::run(args, cli.output),
        Command::Verify(args) => verify::run(args, cli.output),
    }
}
