//! `pfs`: makes, grows, uses and checks a PolarFS volume on an image file or a device.

mod changing;
mod check;
mod completions;
mod cp;
mod diff;
mod du;
mod dumpfs;
mod dumple;
mod fallocate;
mod flushlog;
mod fstrim;
mod growfs;
mod info;
mod ls;
mod map;
mod mkdir;
mod mkfs;
mod mount;
mod original;
mod reach;
mod read;
mod reading;
mod rename;
mod rm;
mod rmdir;
mod session;
mod stat;
mod tail;
mod text;
mod touch;
mod tree;
mod truncate;
mod usedinfo;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;

use blockdev::ui;
use clap::{Parser, Subcommand};

use session::{Failure, Session};

/// Make, grow, use and check a PolarFS volume: list, read, write, copy.
///
/// A volume is named as a file or device, and a path in it after a colon: `VirtualDisk.img:/dir`, `/dev/loop1:/dir`. After
/// `-C disk` it is named as the original `pfs` names it: `/nvme1n1/dir` is `/dir` on `/dev/nvme1n1`, and options, output
/// and exit codes are the original's.
///
/// What only looks opens the volume for reading, while others may write it, and locks nothing. What changes it takes the
/// original's locks on this machine and a lease on the disk itself: a second writer is refused, wherever it is. Where a pfsd
/// of this machine serves the volume it is asked to make the change; after `-C`, to look, too, as the original does.
/// `--verbose` says which. Nothing is logged.
///
/// Exit codes: 0 done, 1 failed, 2 bad input, 3 refused (it would overwrite or harm something), 4 not enough space,
/// 5 verification failed (the volume is damaged, or two differ), 6 not permitted or not supported here, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "pfs", version, max_term_width = 100, infer_long_args = true)]
struct Cli {
    /// How results are printed on standard output.
    #[arg(long, value_enum, global = true, default_value_t)]
    output: ui::Output,

    /// Take the volume from whoever writes it. They stop when they notice, which may take a second.
    #[arg(long, global = true)]
    take_over: bool,

    /// Say on standard error how the volume is reached: through the pfsd that serves it, or on its disk.
    #[arg(long = "verbose", id = "say_how", global = true)]
    verbose: bool,

    /// Look for pfsds in this directory: those that were started with `--root DIR`, too.
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,

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
    Touch(touch::Args),
    Mkdir(mkdir::Args),
    Rm(rm::Args),
    Rmdir(rmdir::Args),
    Rename(rename::Args),
    Write(write::Args),
    Truncate(truncate::Args),
    Fallocate(fallocate::Args),
    Flushlog(flushlog::Args),
    Fstrim(fstrim::Args),
    Mount(mount::Args),
    Map(map::Args),
    Check(check::Args),
    Diff(diff::Args),
    Dumpfs(dumpfs::Args),
    Dumple(dumple::Args),
    Usedinfo(usedinfo::Args),
    Completions(completions::Args),
}

impl Cli {
    /// Whether to be the original: after `-C`, and where `cp` is told the cluster of only one side.
    fn compatible(&self) -> bool {
        let named_by_cp = matches!(&self.command, Command::Cp(args) if args.names_cluster());
        self.original.asked_for() || named_by_cp
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return original::usage(&error),
    };
    let (name, outcome) = run(&cli);
    match outcome {
        Err(failure) if cli.compatible() => original::end(name, &failure),
        outcome => ui::exit("pfs", &outcome.map_err(Failure::into_error)),
    }
}

/// Runs a command. Returns what it is called, too.
fn run(cli: &Cli) -> (&'static str, Result<(), Failure>) {
    let (compatible, take_over) = (cli.compatible(), cli.take_over);
    let session = Session {
        original: &cli.original,
        output: cli.output,
        compatible,
        take_over,
        verbose: cli.verbose,
        root: cli.root.as_deref(),
    };
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
        Command::Touch(args) => ("touch", touch::run(args, &session)),
        Command::Mkdir(args) => ("mkdir", mkdir::run(args, &session)),
        Command::Rm(args) => ("rm", rm::run(args, &session)),
        Command::Rmdir(args) => ("rmdir", rmdir::run(args, &session)),
        Command::Rename(args) => ("rename", rename::run(args, &session)),
        Command::Write(args) => ("write", write::run(args, &session)),
        Command::Truncate(args) => ("truncate", truncate::run(args, &session)),
        Command::Fallocate(args) => ("fallocate", fallocate::run(args, &session)),
        Command::Flushlog(args) => ("flushlog", flushlog::run(args, &session)),
        Command::Fstrim(args) => ("fstrim", fstrim::run(args, &session)),
        Command::Mount(args) => ("mount", mount::run(args, &session)),
        Command::Map(args) => ("map", map::run(args, &session)),
        Command::Check(args) => ("check", check::run(args, &session)),
        Command::Diff(args) => ("diff", diff::run(args, &session)),
        Command::Dumpfs(args) => ("dumpfs", dumpfs::run(args, &session)),
        Command::Dumple(args) => ("dumple", dumple::run(args, &session)),
        Command::Usedinfo(args) => ("usedinfo", usedinfo::run(args, &session)),
        Command::Completions(args) => ("completions", completions::run(args)),
    }
}
