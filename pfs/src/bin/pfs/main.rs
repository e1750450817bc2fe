//! `pfs`: makes, grows and looks into a PolarFS volume on an image file or a device.

mod check;
mod completions;
mod cp;
mod diff;
mod du;
mod dumpfs;
mod dumple;
mod growfs;
mod info;
mod ls;
mod map;
mod mkfs;
mod original;
mod read;
mod session;
mod stat;
mod tail;
mod text;
mod tree;
mod usedinfo;

use std::process::ExitCode;

use blockdev::ui;
use clap::{Parser, Subcommand};

use session::{Failure, Session};

/// Make, grow and look into a PolarFS volume: list, read, copy out, check.
///
/// A volume is named as a file or device, and a path in it after a colon: `VirtualDisk.img:/dir`, `/dev/loop1:/dir`. After
/// `-C disk` it is named as the original `pfs` names it: `/nvme1n1/dir` is `/dir` on `/dev/nvme1n1`, and options, output
/// and exit codes are the original's.
///
/// But for `mkfs` and `growfs` a volume is opened for reading only, while others may write it; nothing is locked. Nothing is
/// logged.
///
/// Exit codes: 0 done, 1 failed, 2 bad input, 3 refused (it would overwrite or harm something), 4 not enough space,
/// 5 verification failed (the volume is damaged, or two differ), 6 not permitted or not supported here, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "pfs", version, max_term_width = 100, infer_long_args = true)]
struct Cli {
    /// How results are printed on standard output.
    #[arg(long, value_enum, global = true, default_value_t)]
    output: ui::Output,

    #[command(flatten)]
    original: original::Options,

    #[command(subcommand)]
    command: Command,
}

// One module per command: its arguments, and `run`.
#[derive(Debug, Subcommand)]
enum Command {
    Mkfs(mkfs::Args),
    Growfs(growfs::Args),
    Info(info::Args),
    Ls(ls::Args),
    Tree(tree::Args),
    Stat(stat::Args),
    Du(du::Args),
    Read(read::Args),
    Tail(tail::Args),
    Cp(cp::Args),
    Map(map::Args),
    Check(check::Args),
    Diff(diff::Args),
    Dumpfs(dumpfs::Args),
    Dumple(dumple::Args),
    Usedinfo(usedinfo::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return original::usage(&error),
    };
    let (name, outcome) = run(&cli);
    match outcome {
        Err(failure) if cli.original.asked_for() => original::end(name, &failure),
        outcome => ui::exit("pfs", &outcome.map_err(Failure::into_error)),
    }
}

/// Runs a command. Returns what it is called, too.
fn run(cli: &Cli) -> (&'static str, Result<(), Failure>) {
    let session = Session::new(&cli.original, cli.output);
    match &cli.command {
        Command::Mkfs(args) => ("mkfs", mkfs::run(args, &session)),
        Command::Growfs(args) => ("growfs", growfs::run(args, &session)),
        Command::Info(args) => ("info", info::run(args, &session)),
        Command::Ls(args) => ("ls", ls::run(args, &session)),
        Command::Tree(args) => ("tree", tree::run(args, &session)),
        Command::Stat(args) => ("stat", stat::run(args, &session)),
        Command::Du(args) => ("du", du::run(args, &session)),
        Command::Read(args) => ("read", read::run(args, &session)),
        Command::Tail(args) => ("tail", tail::run(args, &session)),
        Command::Cp(args) => ("cp", cp::run(args, &session)),
        Command::Map(args) => ("map", map::run(args, &session)),
        Command::Check(args) => ("check", check::run(args, &session)),
        Command::Diff(args) => ("diff", diff::run(args, &session)),
        Command::Dumpfs(args) => ("dumpfs", dumpfs::run(args, &session)),
        Command::Dumple(args) => ("dumple", dumple::run(args, &session)),
        Command::Usedinfo(args) => ("usedinfo", usedinfo::run(args, &session)),
        Command::Completions(args) => ("completions", completions::run(args)),
    }
}
