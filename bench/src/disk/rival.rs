//! Another program under the same load: the ratio of its figures and ours.

use crate::report::vocabulary as v;
use crate::report::{Better, Cell, Figure, Measure, stats};

/// What the ratios are of, in words.
pub(super) const RATIOS: [(&str, &Measure); 2] = [("IOPS", &v::IOPS_RATIO), ("CPU per I/O", &v::CPU_RATIO)];

/// What of ours is held against fio's, and what the ratio of it is called.
pub(super) const COMPARED: [(&Measure, &Measure); 2] = [(&v::IOPS, &v::IOPS_RATIO), (&v::CPU_PER_OP, &v::CPU_RATIO)];

/// Puts into `ours` how it compares with `theirs` in the measures in `compared`: ratios of medians, and the ratio of each
/// round. Where a round of either failed, nothing tells which of the others belong together: such cells are not compared.
pub(crate) fn compare(ours: &mut Cell, theirs: &Cell, compared: &[(&Measure, &Measure)]) {
    if ours.errors + theirs.errors > 0 {
        return;
    }
    for (measure, ratio) in compared {
        let of = |cell: &Cell| cell.figures.get(&*measure.name).cloned();
        let (Some(our), Some(their)) = (of(ours), of(theirs)) else { continue };
        if their.value > 0.0 && their.samples.iter().all(|sample| *sample > 0.0) {
            let samples = our.samples.iter().zip(&their.samples).map(|(our, their)| our / their).collect();
            ours.figures.insert(ratio.name.to_string(), Figure { value: our.value / their.value, samples });
        }
    }
}

/// The ratios of all of `cells` in a sentence, once there are any: those in `ratios`, each with what it is of.
pub(crate) fn summary(cells: &[Cell], rival: &str, ratios: &[(&str, &Measure)]) -> Option<String> {
    let told = |(what, ratio): &(&str, &Measure)| {
        let of = |cell: &'_ Cell| cell.figures.get(&*ratio.name).map(|figure| figure.value);
        let found: Vec<(f64, &str)> = cells.iter().filter_map(|cell| Some((of(cell)?, cell.name.as_str()))).collect();
        let by_value = |a: &&(f64, &str), b: &&(f64, &str)| a.0.total_cmp(&b.0);
        let worst = match ratio.better {
            Better::Higher => found.iter().min_by(by_value),
            Better::Lower => found.iter().max_by(by_value),
        };
        let values: Vec<f64> = found.iter().map(|(ratio, _)| *ratio).collect();
        let text = format!("{what} {:.2} times (worst {:.2}: {})", stats::median(&values)?, worst?.0, worst?.1);
        Some((found.len(), text))
    };
    let (counts, texts): (Vec<usize>, Vec<String>) = ratios.iter().filter_map(told).unzip();
    let count = counts.into_iter().max()?;
    Some(format!(
        "Against {rival} under the same load, in the median of {count} cell{}: {}.",
        if count == 1 { "" } else { "s" },
        texts.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str, iops: Vec<f64>, cpu: Vec<f64>) -> Cell {
        Cell::new("", name).with_figure(&v::IOPS, iops).with_figure(&v::CPU_PER_OP, cpu)
    }

    #[test]
    fn ratios_are_of_medians_and_the_worst_cell_is_named() {
        let mut cells = vec![
            cell("a", vec![90.0, 110.0, 120.0], vec![5.0, 5.0, 4.0]),
            cell("b", vec![100.0], vec![4.0]),
            cell("c", vec![300.0], vec![4.0]),
        ];
        let theirs = [
            cell("a", vec![100.0, 100.0, 130.0], vec![4.0, 4.0, 4.0]),
            cell("b", vec![125.0], vec![5.0]),
            cell("c", vec![200.0], vec![5.0]),
        ];
        assert_eq!(summary(&cells, "fio-3.33", &RATIOS), None);
        for (ours, theirs) in cells.iter_mut().zip(&theirs) {
            compare(ours, theirs, &COMPARED);
        }
        let figure = &cells[0].figures["iops_ratio"];
        assert!((figure.value - 1.1).abs() < 1e-9);
        assert_eq!(figure.samples.len(), 3);
        assert_eq!(
            summary(&cells, "fio-3.33", &RATIOS).unwrap(),
            "Against fio-3.33 under the same load, in the median of 3 cells: IOPS 1.10 times (worst 0.80: b); \
             CPU per I/O 0.80 times (worst 1.25: a)."
        );
    }

    #[test]
    fn a_cell_in_which_a_round_failed_is_not_compared() {
        let mut ours = cell("a", vec![100.0, 110.0], vec![5.0, 5.0]);
        let theirs = Cell { errors: 1, ..cell("a", vec![100.0], vec![5.0]) };
        compare(&mut ours, &theirs, &COMPARED);
        assert!(!ours.figures.contains_key("iops_ratio"));
    }

    #[test]
    fn what_the_rival_did_not_measure_is_not_compared() {
        let mut ours = cell("a", vec![100.0], vec![5.0]);
        compare(&mut ours, &cell("a", vec![100.0], vec![0.0]), &COMPARED);
        assert!(ours.figures.contains_key("iops_ratio") && !ours.figures.contains_key("cpu_ratio"));
        compare(&mut ours, &Cell::new("", "a"), &COMPARED);
        assert_eq!(
            summary(&[ours], "fio", &RATIOS).unwrap(),
            "Against fio under the same load, in the median of 1 cell: IOPS 1.00 times (worst 1.00: a)."
        );
    }
}
