//! `pfsd status NAME`: how a daemon is.

use std::io::IsTerminal;
use std::time::Duration;

use blockdev::{ByteSize, Cancel, Result, ui};
use pfs::daemon::control::{Access, Status};

use crate::target::Where;

/// Show how the daemon of a disk is: clients, requests, latencies, queues, journal
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The disk, as the daemon was told.
    name: String,

    #[command(flatten)]
    at: Where,

    /// Go on showing it, each so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,

    /// How results are printed on standard output.
    #[arg(long, value_enum, default_value_t)]
    output: ui::Output,
}

/// How often to look for Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);

/// Where the terminal's cursor goes, and what is below it.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(crate) fn run(args: &Args) -> Result<()> {
    let places = args.at.places();
    let Some(every) = args.watch else {
        return ui::print_result(args.output, &Status::ask(&places, &args.name)?, text);
    };
    let cancel = Cancel::on_signals()?;
    while !cancel.is_cancelled() {
        let status = Status::ask(&places, &args.name)?;
        if args.output == ui::Output::Text && std::io::stdout().is_terminal() {
            ui::print(CLEAR)?;
        }
        ui::print_result(args.output, &status, text)?;
        let mut left = Duration::from_secs(every);
        while !left.is_zero() && !cancel.is_cancelled() {
            std::thread::sleep(LOOK.min(left));
            left = left.saturating_sub(LOOK);
        }
    }
    Ok(())
}

/// A daemon in one line.
pub(crate) fn line(status: &Status) -> String {
    let Status { disk, pid, workers, .. } = status;
    let noun = if *workers == 1 { "worker" } else { "workers" };
    format!("{disk}: process {pid}, {workers} {noun}, {}\n", status.device.display())
}

fn text(status: &Status) -> String {
    let mut text = ui::facts(facts(status));
    if !status.clients.is_empty() {
        let rows = status.clients.iter().map(|client| {
            let access = if client.writes { "read-write" } else { "read-only" };
            let kind = if client.tool { "tool" } else { "database" };
            let fields = [client.connection.to_string(), client.pid.to_string(), client.host.to_string()];
            fields.into_iter().chain([access.to_owned(), kind.to_owned()]).collect()
        });
        text += "\n";
        text += &ui::table(&["CONNECTION>", "PID>", "HOST>", "ACCESS", "KIND"], rows);
    }
    if !status.requests.is_empty() {
        let rows = status.requests.iter().map(|of| {
            let us = |us: u64| duration(Duration::from_micros(us));
            let counts = [of.request.clone(), of.count.to_string(), of.errors.to_string()];
            counts.into_iter().chain([us(of.p50_us), us(of.p99_us), us(of.max_us)]).collect()
        });
        text += "\n";
        text += &ui::table(&["REQUEST", "COUNT>", "ERRORS>", "P50>", "P99>", "MAX>"], rows);
    }
    text
}

fn facts(status: &Status) -> Vec<(&'static str, String)> {
    let depth: u64 = status.queue_depths.iter().sum();
    let used: u32 = status.slots.iter().map(|slots| slots.used).sum();
    let total: u32 = status.slots.iter().map(|slots| slots.total).sum();
    let access = match status.access {
        Access::Unmounted => "not mounted: no client",
        Access::Changing => "being mounted otherwise",
        Access::ReadOnly => "read-only",
        Access::ReadWrite => "read-write",
    };
    let mut facts = vec![
        ("disk", format!("{} ({})", status.disk, status.device.display())),
        ("daemon", format!("process {}, version {}", status.pid, status.version)),
        ("running", duration(Duration::from_secs_f64(status.uptime_s))),
        ("access", access.to_owned()),
        ("workers", format!("{}, {} of them looking for requests", status.workers, status.active_workers)),
        ("under way", format!("{depth} requests, at most {} on one worker", status.queue_depth_max)),
        ("slots", format!("{used} of {total} used")),
    ];
    if let Some(journal) = &status.journal {
        let (used, size) = (ByteSize::new(journal.used_bytes), ByteSize::new(journal.size_bytes));
        facts.push(("journal", format!("{used} of {size} used, trimmed {} times", journal.trims)));
        facts.push(("transactions", format!("{} in {} writes", journal.transactions, journal.commits)));
    }
    if let Some(follower) = &status.follower {
        let age = duration(Duration::from_secs_f64(follower.checked_ms.max(0.0) / 1e3));
        facts.push(("follows", format!("to transaction {}, the last one {age} ago", follower.transaction)));
    }
    facts
}

/// A time in the unit that suits it.
fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
