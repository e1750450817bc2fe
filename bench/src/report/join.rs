//! Several runs as one, for a single report.

use super::model::Run;

impl Run {
    /// This run and `other` as one: first what this one found and measured, then the other. Of the machine, what this run
    /// says holds.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.experiment = format!("{} and {}", self.experiment, other.experiment);
        self.subject = format!("{}; {}", self.subject, other.subject);
        self.elapsed_s += other.elapsed_s;
        self.completed &= other.completed;
        self.environment.targets.extend(other.environment.targets);
        self.highlights.extend(other.highlights);
        self.findings.extend(other.findings);
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        for parameter in other.parameters {
            if self.parameters.iter().all(|known| known.name != parameter.name) {
                self.parameters.push(parameter);
            }
        }
        for measure in other.measures {
            if self.measures.iter().all(|known| known.name != measure.name) {
                self.measures.push(measure);
            }
        }
        self.cells.extend(other.cells);
        self.plots.extend(other.plots);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::report::vocabulary as v;
    use crate::report::{Cell, Environment, Finding, Run, Severity};

    fn run(experiment: &str, cell: &str, severity: Severity) -> Run {
        let mut run = Run::begin(experiment, cell, Environment::of_this_machine(Vec::new()));
        run.parameters = vec![v::RATE];
        run.measures = vec![v::P50];
        run.cells = vec![Cell::new(cell, cell).with_param(&v::RATE, 1_u64).with_figure(&v::P50, vec![1e6])];
        run.findings = vec![Finding::new(severity, cell, cell)];
        run.end(Duration::from_secs(1), true);
        run
    }

    #[test]
    fn two_runs_are_one_report_with_all_of_both() {
        let mut lag = run("lag", "busy", Severity::Warning);
        lag.measures.push(v::MAX);
        lag.completed = false;
        let both = run("disk", "random", Severity::Note).and(lag);
        assert_eq!((both.experiment.as_str(), both.subject.as_str()), ("disk and lag", "random; busy"));
        assert_eq!((both.elapsed_s, both.completed), (2.0, false));
        assert_eq!(both.cells.iter().map(|cell| cell.name.as_str()).collect::<Vec<_>>(), ["random", "busy"]);
        assert_eq!((both.parameters.len(), both.measures.len()), (1, 2));
        assert_eq!(both.findings[0].id, "busy");
        assert!(both.to_html().contains("disk and lag"));
    }
}
