//! Runs and reports as files: what is read is checked, what is written replaces only its own kind.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use blockdev::{ByteSize, Context, Error, ErrorKind, Result};
use serde::Deserialize;
use tempfile::TempPath;

use super::html::PAGE_BEGINNING;
use super::model::{PlotKind, Run, SCHEMA_VERSION, Schema, Tool};

/// Longer files are no runs: one of an hour with every sweep there is comes to a hundredth of this.
const FILE_MAX: ByteSize = ByteSize::mib(256);

/// Enough of a file's beginning to tell what it is.
const BEGINNING_BYTES: u64 = 256;

impl Run {
    /// Reads a run that [`save`](Self::save) or `bench disk --output json` wrote.
    ///
    /// # Errors
    /// When it cannot be read, or as [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_MAX.bytes() + 1).read_to_end(&mut text))
            .context(|| format!("cannot read {name}"))?;
        if text.len() as u64 > FILE_MAX.bytes() {
            return Err(no_run(&name, &format!("it is longer than {FILE_MAX}")));
        }
        Self::parse(&text, &name)
    }

    /// Reads a run from its JSON; `name` is what errors call it.
    ///
    /// # Errors
    /// Of kind `InvalidInput` when it is something else, `VerifyFailed` when it is a damaged run, `Unsupported` when a
    /// newer program wrote it.
    pub fn parse(text: &[u8], name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Header {
            schema: Option<String>,
            tool: Option<Tool>,
        }
        if text.is_empty() {
            return Err(no_run(name, "it is empty"));
        }
        let header: Header = serde_json::from_slice(text).map_err(|source| {
            if source.is_eof() {
                damaged(name, "it is cut short").with_source(source)
            } else {
                no_run(name, "it is not JSON, or not an object").with_source(source)
            }
        })?;
        let Some(schema) = header.schema else {
            return Err(no_run(name, "it names no schema"));
        };
        let version = schema.split_once('/').filter(|(kind, _)| *kind == Schema::NAME);
        let Some(version) = version.and_then(|(_, version)| version.parse::<u32>().ok()) else {
            return Err(no_run(name, &format!("its schema is {schema:?}")));
        };
        if version > SCHEMA_VERSION {
            let writer = header.tool.map_or_else(|| "wrote it".to_owned(), |t| format!("wrote it ({})", t.version));
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{name} follows {schema}, this program reads up to {Schema}"),
            )
            .with_hint(format!("read it with the version of bench that {writer}, or a newer one")));
        }
        let run: Self = serde_json::from_slice(text)
            .map_err(|source| damaged(name, "it is not what its schema says").with_source(source))?;
        run.check().map_err(|why| damaged(name, &why))?;
        Ok(run)
    }

    /// Its JSON, with a newline at the end.
    ///
    /// # Errors
    /// When it contradicts itself: a cell has a parameter that the run does not declare, for instance.
    pub fn to_json(&self) -> Result<String> {
        let bad = |why: String| Error::new(ErrorKind::VerifyFailed, format!("cannot write the run: {why}"));
        self.check().map_err(bad)?;
        let json =
            serde_json::to_string_pretty(self).map_err(|source| bad("it is no JSON".into()).with_source(source))?;
        Ok(json + "\n")
    }

    /// Writes it to `path`, whole or not at all. Another run there is replaced, anything else only with `force`.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json), and when something else is there, or it cannot be written.
    pub fn save(&self, path: &Path, force: bool) -> Result<()> {
        let json = self.to_json()?;
        FileKind::Run.write(path, json.as_bytes(), force)
    }

    /// Whether all that its parts name exists. Readers rely on it.
    fn check(&self) -> std::result::Result<(), String> {
        let parameters: BTreeSet<&str> = self.parameters.iter().map(|parameter| &*parameter.name).collect();
        let measures: BTreeSet<&str> = self.measures.iter().map(|measure| &*measure.name).collect();
        let known = |set: &BTreeSet<&str>, kind: &str, name: &str, by: &str| {
            if set.contains(name) { Ok(()) } else { Err(format!("{by} names the undeclared {kind} {name:?}")) }
        };
        if parameters.len() < self.parameters.len() || measures.len() < self.measures.len() {
            return Err("a parameter or a measure is declared twice".to_owned());
        }
        let mut cells = BTreeSet::new();
        for cell in &self.cells {
            let by = format!("cell {:?}", cell.name);
            if !cells.insert(cell.name.as_str()) {
                return Err(format!("{by} occurs twice"));
            }
            for name in cell.params.keys() {
                known(&parameters, "parameter", name, &by)?;
            }
            for (name, figure) in &cell.figures {
                known(&measures, "measure", name, &by)?;
                if figure.samples.is_empty() {
                    return Err(format!("{by} has no samples of {name:?}"));
                }
            }
            for series in &cell.series {
                known(&measures, "measure", &series.measure, &by)?;
                if series.step_s <= 0.0 {
                    return Err(format!("{by} has a series whose step is {} s", series.step_s));
                }
            }
        }
        for plot in &self.plots {
            let by = format!("plot {:?}", plot.title);
            for name in plot.panels.iter().chain(&plot.lines) {
                known(&parameters, "parameter", name, &by)?;
            }
            match &plot.kind {
                PlotKind::Figure { measure, x } => {
                    known(&measures, "measure", measure, &by)?;
                    known(&parameters, "parameter", x, &by)?;
                }
                PlotKind::Course { measure } => known(&measures, "measure", measure, &by)?,
                PlotKind::Percentiles { .. } => {}
            }
        }
        for highlight in &self.highlights {
            let by = format!("highlight {:?}", highlight.label);
            known(&cells, "cell", &highlight.cell, &by)?;
            known(&measures, "measure", &highlight.measure, &by)?;
        }
        Ok(())
    }
}

/// Something that was never a run.
fn no_run(name: &str, why: &str) -> Error {
    Error::invalid(format!("{name} is no run of bench: {why}"))
        .with_hint("give a file that bench wrote with --save, or with --output json")
}

/// Something that was a run once.
fn damaged(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::VerifyFailed, format!("{name} is damaged: {why}"))
}

/// What bench writes to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A run, as JSON.
    Run,
    /// A run, as a page.
    Page,
}

impl FileKind {
    /// Finds out whether such a file could be written to `path`, and leaves everything as it is: before an hour of
    /// measuring, not after. A file that is already there can be replaced when it begins as one of this kind, or with
    /// `force`; anything but a regular file never can.
    ///
    /// # Errors
    /// When something else is there, or nothing can be written there.
    pub fn check(self, path: &Path, force: bool) -> Result<()> {
        self.begin(path, force).map(drop)
    }

    /// Makes `bytes` the content of the file `path`, whole or not at all.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn write(self, path: &Path, bytes: &[u8], force: bool) -> Result<()> {
        let mut unfinished = self.begin(path, force)?;
        unfinished
            .file
            .write_all(bytes)
            .and_then(|()| unfinished.file.sync_all())
            .and_then(|()| unfinished.path.persist(&unfinished.target).map_err(|error| error.error))
            .context(|| format!("cannot write {}", path.display()))
    }

    fn begin(self, path: &Path, force: bool) -> Result<Unfinished> {
        let name = path.display();
        match fs::metadata(path) {
            Ok(there) if !there.is_file() => {
                return Err(Error::refused(format!("cannot write {self} to {name}: it is not a regular file")));
            }
            Ok(_) if !force => {
                let mut beginning = Vec::new();
                File::open(path)
                    .and_then(|file| file.take(BEGINNING_BYTES).read_to_end(&mut beginning))
                    .context(|| format!("cannot see what {name} is before replacing it"))?;
                if !beginning.is_empty() && !self.begins(&beginning) {
                    return Err(Error::refused(format!("{name} exists and is not {self}"))
                        .with_hint("choose another name, or replace it with --force"));
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("cannot write {name}"), error)),
        }
        // Where `path` is a link, it is the file behind it that is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let unfinished = target.with_added_extension(format!("{}.tmp", std::process::id()));
        let file = File::create_new(&unfinished).context(|| format!("cannot write {name}"))?;
        let path = TempPath::try_from_path(unfinished).context(|| format!("cannot write {name}"))?;
        Ok(Unfinished { file, path, target })
    }

    /// Whether a file that begins with `beginning` is of this kind.
    fn begins(self, beginning: &[u8]) -> bool {
        match self {
            // `schema` is the first field of every run, and written first.
            Self::Run => String::from_utf8_lossy(beginning).contains(&format!("\"{}/", Schema::NAME)),
            Self::Page => beginning.starts_with(PAGE_BEGINNING.as_bytes()),
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Run => "a run",
            Self::Page => "a report of bench",
        })
    }
}

/// A file that has not got its name yet; it goes unless it does.
struct Unfinished {
    file: File,
    path: TempPath,
    target: PathBuf,
}
