//! `vdisk ctl`: what can be done to a disk that is being served.

use std::path::PathBuf;

use blockdev::emulate::control::{Client, Command, Layer, Status};
use blockdev::emulate::{Action, HostName, Keep, Key, Layers, Loss, ReservationKind, Reservations};
use blockdev::{Error, Result, ui};
use clap::Subcommand;
use serde_json::Value;

/// Change a disk while it is served: its layers, its power, who may write.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image that is served, or the control socket of its server.
    #[arg(value_name = "IMAGE|SOCKET")]
    disk: PathBuf,

    #[command(subcommand)]
    command: Ctl,
}

#[derive(Debug, Clone, Subcommand)]
enum Ctl {
    /// Show how the disk is.
    Status,
    /// Set a layer, or take it away.
    ///
    /// Values are as in `vdisk serve`: latency 1ms, rate iops=1800, queue-depth 32, faults eio,op=write,count=3, cache 64M,
    /// record FILE. Rates and faults may be several. `off` takes the layer away.
    Set {
        /// Which layer.
        #[arg(value_parser = ["latency", "rate", "queue-depth", "faults", "cache", "record"])]
        layer: String,
        /// How it is to be.
        #[arg(required = true, value_name = "VALUE|off")]
        values: Vec<String>,
    },
    /// Cut the power: what was not flushed is lost, and every request fails until `power-on`.
    PowerCut {
        /// What becomes of writes that were not flushed.
        #[arg(long, value_enum, default_value_t)]
        keep: Keep,
        /// What decides where it is left to chance: the same seed does the same to the same writes.
        #[arg(long, default_value_t)]
        seed: u64,
    },
    /// Give the power back.
    PowerOn,
    /// Make durable what is in the volatile cache.
    Flush,
    /// Keep a host from writing, from now on: when this returns, no write of it lands any more.
    Fence {
        /// The host.
        host: HostName,
    },
    /// Let a fenced host write again.
    Unfence {
        /// The host.
        host: HostName,
    },
    /// Register a host with a key, as it would itself by PERSISTENT RESERVE OUT.
    Register {
        /// The host.
        host: HostName,
        /// Its key.
        #[arg(long, value_parser = key)]
        key: Key,
        /// Replace the key that it has.
        #[arg(long)]
        replace: bool,
    },
    /// Take a host's registration back.
    Unregister {
        /// The host.
        host: HostName,
        /// Its key.
        #[arg(long, value_parser = key)]
        key: Key,
    },
    /// Reserve the disk for a host.
    Reserve {
        /// The host.
        host: HostName,
        /// Its key.
        #[arg(long, value_parser = key)]
        key: Key,
        /// What is reserved.
        #[arg(long, value_enum, default_value_t)]
        kind: ReservationKind,
    },
    /// Give a host's reservation back.
    Release {
        /// The host.
        host: HostName,
        /// Its key.
        #[arg(long, value_parser = key)]
        key: Key,
    },
    /// Take away another host's registration, and its reservation if it has it.
    Preempt {
        /// The host that does it.
        host: HostName,
        /// Its key.
        #[arg(long, value_parser = key)]
        key: Key,
        /// The key of the host that loses.
        #[arg(long, value_parser = key)]
        victim: Key,
        /// What is reserved.
        #[arg(long, value_enum, default_value_t)]
        kind: ReservationKind,
    },
    /// Take away all registrations and the reservation.
    Clear {
        /// The host that does it.
        host: HostName,
        /// Its key.
        #[arg(long, value_parser = key)]
        key: Key,
    },
    /// End the server: exports end, and what is in the volatile cache is made durable.
    Stop,
}

/// A number, decimal or hexadecimal.
fn key(text: &str) -> Result<Key, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => Key::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a key is a number of 64 bits, such as 7 or 0x1f".to_owned())
}

pub(crate) fn run(args: &Args, output: ui::Output) -> Result<()> {
    let mut client = Client::connect(&args.disk)?;
    let reserved = |client: &mut Client, action| ui::print_result(output, &client.reserve(action)?, reservations);
    match args.command.clone() {
        Ctl::Status => ui::print_result(output, &client.status()?, status),
        Ctl::Set { layer, values } => {
            let layers: Layers = client.set_layer(parse(&layer, &values)?)?;
            ui::print_result(output, &layers, |layers| ui::facts(of_layers(layers)))
        }
        Ctl::PowerCut { keep, seed } => ui::print_result(output, &client.cut_power(keep, seed)?, |loss| {
            let Loss { unflushed, kept, torn, lost } = loss;
            format!(
                "the power is off; of {unflushed} writes that were not flushed {kept} were kept, {torn} torn, {lost} lost\n"
            )
        }),
        Ctl::PowerOn => done(output, &client.ask(&Command::RestorePower)?),
        Ctl::Flush => done(output, &client.ask(&Command::Flush)?),
        Ctl::Stop => done(output, &client.ask(&Command::Stop)?),
        Ctl::Fence { host } => reserved(&mut client, Action::Fence { host }),
        Ctl::Unfence { host } => reserved(&mut client, Action::Unfence { host }),
        Ctl::Register { host, key, replace } => reserved(&mut client, Action::Register { host, key, replace }),
        Ctl::Unregister { host, key } => reserved(&mut client, Action::Unregister { host, key }),
        Ctl::Reserve { host, key, kind } => reserved(&mut client, Action::Reserve { host, key, kind }),
        Ctl::Release { host, key } => reserved(&mut client, Action::Release { host, key }),
        Ctl::Preempt { host, key, victim, kind } => reserved(&mut client, Action::Preempt { host, key, victim, kind }),
        Ctl::Clear { host, key } => reserved(&mut client, Action::Clear { host, key }),
    }
}

/// Says nothing to people where there is nothing to say.
fn done(output: ui::Output, answer: &Value) -> Result<()> {
    ui::print_result(output, answer, |_| String::new())
}

/// The layer `name`, as `values` say; `off` is none.
fn parse(name: &str, values: &[String]) -> Result<Layer> {
    let off = values == ["off"];
    let one = || match values {
        [value] => Ok(value.as_str()),
        _ => Err(Error::invalid(format!("{name} takes one value, and {} were given", values.len()))),
    };
    fn maybe<T: std::str::FromStr<Err = Error>>(off: bool, text: &str) -> Result<Option<T>> {
        if off { Ok(None) } else { text.parse().map(Some) }
    }
    fn all<T: std::str::FromStr<Err = Error>>(off: bool, texts: &[String]) -> Result<Vec<T>> {
        if off { Ok(Vec::new()) } else { texts.iter().map(|text| text.parse()).collect() }
    }
    Ok(match name {
        "latency" => Layer::Latency(maybe(off, one()?)?),
        "rate" => Layer::Rate(all(off, values)?),
        "faults" => Layer::Faults(all(off, values)?),
        "cache" => Layer::Cache(maybe(off, one()?)?),
        "record" if off => Layer::Record(None),
        // The server may be in another directory.
        "record" => {
            let path = std::path::absolute(one()?).map_err(|source| Error::io("cannot tell where we are", source))?;
            Layer::Record(Some(path))
        }
        _ if off => Layer::QueueDepth(None),
        _ => {
            let depth = one()?.parse().map_err(|_| Error::invalid(format!("{:?} is no queue depth", values[0])))?;
            Layer::QueueDepth(Some(depth))
        }
    })
}

/// Layers, each as it was asked for.
pub(crate) fn of_layers(layers: &Layers) -> Vec<(&'static str, String)> {
    let Layers { queue_depth, rate, faults, latency, record, cache } = layers;
    let mut facts = Vec::new();
    facts.extend(queue_depth.map(|depth| ("queue depth", depth.to_string())));
    facts.extend(rate.iter().map(|limit| ("rate", limit.to_string())));
    facts.extend(faults.iter().map(|fault| ("fault", fault.to_string())));
    facts.extend(latency.iter().map(|latency| ("latency", latency.to_string())));
    facts.extend(record.iter().map(|path| ("record", path.display().to_string())));
    facts.extend(cache.map(|size| ("volatile cache", size.to_string())));
    facts
}

fn of_reservations(reservations: &Reservations) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(held) = &reservations.reservation {
        let kind = match held.kind {
            ReservationKind::WriteExclusive => "only it may write",
            ReservationKind::WriteExclusiveRegistrantsOnly => "only registered hosts may write",
        };
        facts.push(("reserved by", format!("{}: {kind}", held.holder)));
    }
    facts.extend(reservations.registrants.iter().map(|(host, key)| ("registered", format!("{host}, key {key:#x}"))));
    facts.extend(reservations.fenced.iter().map(|host| ("fenced", host.to_string())));
    facts.push(("generation", reservations.generation.to_string()));
    facts
}

fn reservations(reservations: &Reservations) -> String {
    ui::facts(of_reservations(reservations))
}

fn status(status: &Status) -> String {
    let mut facts = vec![
        ("image", status.image.display().to_string()),
        ("size", status.size.to_string()),
        ("server", format!("process {}", status.pid)),
        ("power", if status.power { "on" } else { "off" }.to_owned()),
    ];
    facts.extend(of_layers(&status.layers));
    if status.layers.cache.is_some() {
        facts.push(("not durable", status.dirty.to_string()));
    }
    if status.layers.record.is_some() {
        facts.push(("recorded", format!("{} changes and flushes", status.records)));
    }
    facts.extend(of_reservations(&status.reservations));
    facts.extend(status.exports.iter().map(|export| ("export", export.to_string())));
    ui::facts(facts)
}
