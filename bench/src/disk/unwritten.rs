//! What unwritten extents cost here: the same durable writes into space that is only reserved, and into space that has been
//! written once.

use std::path::Path;
use std::time::Duration;

use blockdev::engine::Choice;
use blockdev::image::Prealloc;
use blockdev::{ByteRange, ByteSize, Cancel, ErrorKind, Result};

use super::Progress;
use super::outcome::Rounds;
use super::plan::Spec;
use super::scratch::make_image;
use super::target::{Caching, Target};
use crate::load::{self, Pattern, Work};
use crate::report::vocabulary as v;
use crate::report::{Cell, Finding, Run, Severity};

/// Of each of the two files. No block is written twice, so it bounds how long a round can be.
const SIZE: ByteSize = ByteSize::mib(64);

/// Of each file in each round.
const RUNTIME: Duration = Duration::from_millis(1000);

/// How often each file is made anew and written.
const ROUNDS: u32 = 2;

const GROUP: &str = "Unwritten extents";

/// Measures both in the directory at `path`, and puts cells and a finding into `run`.
///
/// # Errors
/// When the files cannot be made or written.
pub fn measure(run: &mut Run, path: &Path, progress: &mut dyn Progress, cancel: &Cancel) -> Result<()> {
    let mut outcomes = [(Prealloc::Written, Rounds::default()), (Prealloc::Reserved, Rounds::default())];
    let work = Work {
        fdatasync: 1,
        once: true,
        warmup: Duration::ZERO,
        runtime: RUNTIME,
        ..Work::new(Pattern::RandWrite, ByteSize::kib(8), 1, ByteRange::from_start(SIZE))
    };
    let file = path.join("extents");
    let spec = |prealloc: Prealloc| Spec {
        group: GROUP,
        name: format!("randwrite 8 KiB with fdatasync, {prealloc} extents"),
        target: 0,
        engine: Choice::Auto,
        work: work.clone(),
    };
    let steps = outcomes.len() * ROUNDS as usize;
    let mut step = 0;
    for round in 0..ROUNDS {
        for (prealloc, rounds) in &mut outcomes {
            if cancel.is_cancelled() {
                break;
            }
            let spec = spec(*prealloc);
            progress.cell(step + 1, steps, &spec.name, RUNTIME * u32::try_from(steps - step).unwrap_or(0));
            step += 1;
            match make_image(&file, SIZE, *prealloc, cancel) {
                // What was measured before is worth keeping.
                Err(error) if error.kind() == ErrorKind::Interrupted => break,
                outcome => outcome?,
            }
            let target = Target::open(&file, Caching::Auto)?.named("extents");
            let measured =
                load::run(&work, || target.engine(Choice::Auto, &work), cancel, |elapsed| progress.elapsed(elapsed))?;
            rounds.add(round, &spec, &measured);
        }
    }
    let mut cells = Vec::new();
    for (prealloc, rounds) in outcomes.into_iter().filter(|(_, rounds)| !rounds.is_empty()) {
        let cell = rounds.into_cell(&spec(prealloc), &format!("{prealloc} extents"));
        cells.push(cell);
    }
    run.findings.extend(finding(&cells));
    run.cells.extend(cells);
    Ok(())
}

/// What the two say together.
fn finding(cells: &[Cell]) -> Option<Finding> {
    let [written, reserved] = cells else { return None };
    let iops = |cell: &Cell| cell.figures.get(&*v::IOPS.name).map(|figure| figure.value);
    let (written, reserved) = (iops(written)?, iops(reserved)?);
    let text = format!(
        "Durable random 8 KiB writes into space that is reserved but was never written reach {:.0} % of those into written \
         space here ({reserved:.0} and {written:.0} a second).",
        100.0 * reserved / written
    );
    let finding = Finding::new(Severity::Note, "unwritten-extents", text);
    Some(if reserved < 0.9 * written {
        finding.with_hint("`vdisk create` writes every block beforehand")
    } else {
        finding
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(written: f64, reserved: f64) -> Finding {
        let cell = |iops| Cell::new("", "").with_figure(&v::IOPS, vec![iops]);
        finding(&[cell(written), cell(reserved)]).unwrap()
    }

    #[test]
    fn the_cost_is_said_in_words_and_the_remedy_where_it_matters() {
        let dear = found(1700.0, 476.0);
        assert!(
            dear.text.contains("reach 28 % of those into written space here (476 and 1700 a second)"),
            "{}",
            dear.text
        );
        assert!(dear.hint.is_some());
        assert_eq!(found(1000.0, 990.0).hint, None);
        assert_eq!(finding(&[Cell::new("", "")]), None);
    }
}
