//! `provision config`: the cluster file.

use std::collections::BTreeMap;

use blockdev::{Cancel, Result, ui};
use clap::ArgMatches;
use provision::Cluster;
use provision::config::{EXAMPLE, Layers, Settings};
use serde::Serialize;

use crate::selection::Selection;

/// Print an example of the cluster file, check one, or say where each value comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a commented cluster file in which every key has its default.
    Example,
    /// Check the cluster file, the environment and the flags, and change nothing.
    Validate(Box<Settings>),
    /// Say what counts for the cluster, and where each value comes from.
    Show(Box<Settings>),
}

#[derive(Serialize)]
struct Value<'a> {
    value: &'a serde_json::Value,
    origin: String,
}

pub(crate) fn run(args: &Args, selection: &Selection, matches: &ArgMatches, output: ui::Output) -> Result<()> {
    match &args.command {
        Command::Example => ui::print(EXAMPLE),
        Command::Validate(settings) => {
            let config = selection.layers(settings, matches)?.config()?;
            ui::print_result(output, &config, |config| format!("the settings of cluster {} are valid\n", config.name))
        }
        Command::Show(settings) => {
            let mut layers = selection.layers(settings, matches)?;
            let name = layers.config()?.name;
            if selection.exists(&name)? {
                let cluster = Cluster::open(&selection.state()?, &name, &Cancel::new())?;
                layers.add_made(&cluster.record.config);
            }
            show(&layers, output)
        }
    }
}

fn show(layers: &Layers, output: ui::Output) -> Result<()> {
    let values: BTreeMap<&str, Value<'_>> =
        layers.iter().map(|(key, value, origin)| (key, Value { value, origin: origin.to_string() })).collect();
    ui::print_result(output, &values, |values| {
        let rows =
            values.iter().map(|(key, value)| vec![(*key).to_owned(), value.value.to_string(), value.origin.clone()]);
        ui::table(&["KEY", "VALUE", "FROM"], rows)
    })
}
