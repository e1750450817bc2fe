//! `vdisk top`: who asks what of a served disk, and what its layers make of it.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use blockdev::emulate::control::{Client, Status};
use blockdev::emulate::{Activity, Counts, HostName, LayerCount, LayerName};
use blockdev::{Cancel, Result, ui};
use serde::Serialize;

/// How often to look whether it is to end.
const TICK: Duration = Duration::from_millis(50);

/// Show what hosts ask of a served disk, and how long it takes.
///
/// On a terminal it goes on until it is interrupted; elsewhere it shows one interval.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image that is served, or the control socket of its server.
    #[arg(value_name = "IMAGE|SOCKET")]
    disk: PathBuf,

    /// Over how many seconds figures are taken.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,

    /// How many intervals to show.
    #[arg(long)]
    count: Option<u64>,
}

/// One interval.
#[derive(Debug, Serialize)]
struct View {
    /// How long it was.
    seconds: f64,
    power: bool,
    /// Bytes that would be lost without power.
    dirty: u64,
    hosts: Vec<HostView>,
    layers: Vec<LayerView>,
}

#[derive(Debug, Serialize)]
struct HostView {
    host: HostName,
    writes: bool,
    activity: Vec<Activity>,
}

#[derive(Debug, Serialize)]
struct LayerView {
    layer: LayerName,
    /// How many requests it kept waiting, or changed.
    requests: u64,
    bytes: u64,
    wait_p50_ns: Option<u64>,
    wait_p99_ns: Option<u64>,
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let cancel = Cancel::on_signals()?;
    let mut client = Client::connect(&args.disk)?;
    let moves = std::io::stdout().is_terminal() && output == ui::Output::Text;
    let count = args.count.unwrap_or(if moves { u64::MAX } else { 1 });
    let interval = Duration::try_from_secs_f64(args.interval)
        .ok()
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| blockdev::Error::invalid(format!("an interval of {} seconds is none", args.interval)))?;
    let (mut before, mut taken) = (client.status()?, Instant::now());
    for _ in 0..count {
        while taken.elapsed() < interval && !cancel.is_cancelled() {
            thread::sleep(TICK.min(interval - taken.elapsed().min(interval)));
        }
        if cancel.is_cancelled() {
            break;
        }
        let (now, at) = (client.status()?, Instant::now());
        let view = view(&before, &now, at - taken);
        if moves {
            // To the upper left, and everything below it away.
            ui::print("\x1b[H\x1b[J")?;
        }
        ui::print_result(output, &view, |view| text(&now, view))?;
        (before, taken) = (now, at);
    }
    Ok(())
}

fn view(before: &Status, now: &Status, time: Duration) -> View {
    let none = Counts::default();
    let host = |host: &blockdev::emulate::control::HostStatus| {
        let earlier = before.hosts.iter().find(|other| other.name == host.name).map_or(&none, |host| &host.counts);
        HostView { host: host.name.clone(), writes: host.writes, activity: host.counts.since(earlier) }
    };
    let layer = |(now, before): (&LayerCount, &LayerCount)| {
        let (requests, bytes, wait_p50_ns, wait_p99_ns) = now.since(before);
        LayerView { layer: now.layer, requests, bytes, wait_p50_ns, wait_p99_ns }
    };
    View {
        seconds: time.as_secs_f64(),
        power: now.power,
        dirty: now.dirty.bytes(),
        hosts: now.hosts.iter().map(host).collect(),
        layers: now.layer_counts.iter().zip(&before.layer_counts).map(layer).collect(),
    }
}

fn text(status: &Status, view: &View) -> String {
    let mut facts = vec![("disk", status.image.display().to_string())];
    if !view.power {
        facts.push(("power", "off".to_owned()));
    }
    facts.extend(super::ctl::of_layers(&status.layers));
    if status.layers.cache.is_some() {
        facts.push(("not durable", status.dirty.to_string()));
    }
    facts.extend(status.exports.iter().map(|export| ("export", export.to_string())));
    let per_second = |count: u64| {
        #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
        let rate = count as f64 / view.seconds;
        rate
    };
    let hosts = view.hosts.iter().flat_map(|host| {
        let active = host.activity.iter().filter(|activity| activity.operations > 0);
        let row = move |activity: &Activity| {
            vec![
                host.host.to_string(),
                activity.operation.name().to_owned(),
                format!("{:.0}", per_second(activity.operations)),
                format!("{:.1}", per_second(activity.bytes) / 1e6),
                shown(activity.p50_ns),
                shown(activity.p99_ns),
                shown(activity.p999_ns),
                activity.errors.to_string(),
            ]
        };
        let idle =
            vec![host.host.to_string(), "-".to_owned()].into_iter().chain((0..6).map(|_| "-".to_owned())).collect();
        let rows: Vec<Vec<String>> = active.map(row).collect();
        if rows.is_empty() { vec![idle] } else { rows }
    });
    let headings = ["HOST", "OPERATION", "IOPS>", "MB/S>", "P50>", "P99>", "P99.9>", "ERRORS>"];
    let mut lines = ui::facts(facts) + "\n" + &ui::table(&headings, hosts);
    let layers: Vec<Vec<String>> = view
        .layers
        .iter()
        .filter(|layer| layer.requests > 0)
        .map(|layer| {
            let name = serde_json::to_value(layer.layer).ok().and_then(|name| name.as_str().map(str::to_owned));
            vec![
                name.unwrap_or_default(),
                format!("{:.0}", per_second(layer.requests)),
                format!("{:.1}", per_second(layer.bytes) / 1e6),
                shown(layer.wait_p50_ns),
                shown(layer.wait_p99_ns),
            ]
        })
        .collect();
    if !layers.is_empty() {
        lines += "\n";
        lines += &ui::table(&["LAYER", "REQUESTS/S>", "MB/S>", "KEPT P50>", "KEPT P99>"], layers);
    }
    lines
}

fn shown(ns: Option<u64>) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let Some(ns) = ns.map(|ns| ns as f64) else { return "-".to_owned() };
    match ns {
        ns if ns < 1e6 => format!("{:.0} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}
