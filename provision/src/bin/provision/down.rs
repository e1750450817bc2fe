//! `provision down`: the cluster goes.

use std::io::{self, IsTerminal};

use blockdev::{Cancel, Context, Error, Result, ui};

use crate::selection::Selection;

/// Take the cluster down: everything that runs ends.
///
/// Its data, passwords and record stay, and `up` brings it back, unless `--purge` is given.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove its data, passwords, logs and record, too. They are gone then.
    #[arg(long)]
    purge: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(args: &Args, selection: &Selection) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let (cluster, lock) = selection.open_to_change(&cancel)?;
    let name = cluster.record.config.name.clone();
    if args.purge && !args.yes {
        confirm(&format!("remove cluster {name} with all its data? [y/N] "))?;
    }
    cluster.down(lock, args.purge)?;
    ui::notice(&if args.purge {
        format!("cluster {name} is gone")
    } else {
        format!("cluster {name} is down; `provision up` brings it back, `provision down --purge` removes its data")
    });
    Ok(())
}

fn confirm(question: &str) -> Result<()> {
    let refused = |why: &str| Error::refused(why).with_hint("--yes removes it without asking");
    if !io::stdin().is_terminal() {
        return Err(refused("nobody is there to ask whether the data may be removed"));
    }
    ui::notice(question);
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context(|| "cannot read the answer")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(refused("nothing is removed")),
    }
}
