//! What was measured: figures, told apart by name; for people, as JSON, or drawn.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{json, Value};

/// The value below which `part` of the values lie.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// A group of figures that are compared with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which of the benchmarks.
    pub bench: &'static str,
    /// What is measured.
    pub name: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// What grows from one figure of a series to the next, if anything does.
    pub axis: &'static str,
}

/// A figure: what some runs had.
pub struct Figure {
    pub group: Group,
    pub series: String,
    /// Where on the axis.
    pub at: Option<u64>,
    pub runs: Vec<f64>,
}

impl Figure {
    pub fn part(&self, part: f64) -> f64 {
        quantile(&self.runs, part)
    }

    fn what(&self) -> String {
        match self.at {
            Some(at) => format!("{at} {}: {}, {}", self.group.axis, self.group.name, self.series),
            None => format!("{}, {}", self.group.name, self.series),
        }
    }
}

/// Collects figures, and tells how far it is on stderr.
pub struct Report {
    pub figures: Vec<Figure>,
    /// Why something is missing.
    remarks: Vec<(&'static str, String)>,
    bar: Option<ProgressBar>,
}

impl Report {
    pub fn new() -> Report {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Report { figures: Vec::new(), remarks: Vec::new(), bar }
    }

    /// What one run had.
    pub fn note(&mut self, group: Group, series: &str, at: Option<u64>, value: f64) {
        match self.figures.iter_mut().find(|f| f.group == group && f.series == series && f.at == at) {
            Some(figure) => figure.runs.push(value),
            None => self.figures.push(Figure { group, series: series.to_owned(), at, runs: vec![value] }),
        }
    }

    /// Something that was not measured, and why.
    pub fn remark(&mut self, bench: &'static str, text: String) {
        if !self.remarks.iter().any(|r| *r == (bench, text.clone())) {
            self.progress(&text);
            self.remarks.push((bench, text));
        }
    }

    pub fn progress(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.replace('\n', " ")),
            None => eprintln!("tcpr bench: {text}"),
        }
    }

    /// No more progress: what follows on the terminal is the result.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// The groups, in the order of their first figures.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups = Vec::new();
        for figure in &self.figures {
            if !groups.contains(&figure.group) {
                groups.push(figure.group);
            }
        }
        groups
    }

    /// The figures of a group; what is to be compared stands side by side.
    pub fn of(&self, group: Group) -> Vec<&Figure> {
        let mut figures: Vec<_> = self.figures.iter().filter(|f| f.group == group).collect();
        figures.sort_by_key(|f| f.at);
        figures
    }

    pub fn json(&self) -> (Vec<Value>, Vec<Value>) {
        let figures = self.groups().into_iter().flat_map(|g| self.of(g));
        let figures = figures.map(|f| {
            json!({ "bench": f.group.bench, "what": f.what(), "group": f.group.name, "series": f.series, "at": f.at,
                    "axis": f.group.axis, "unit": f.group.unit, "median": f.part(0.5), "p99": f.part(0.99),
                    "min": f.part(0.0), "max": f.part(1.0), "runs": f.runs.len() })
        });
        let remarks = self.remarks.iter().map(|(bench, text)| json!({ "bench": bench, "text": text }));
        (figures.collect(), remarks.collect())
    }

    pub fn print(&self) {
        for group in self.groups() {
            let unit = if group.unit.is_empty() { String::new() } else { format!(" [{}]", group.unit) };
            println!("\n{}: {}{unit}", group.bench, group.name);
            let figures = self.of(group);
            let width = figures.iter().map(|f| f.series.chars().count()).max().unwrap_or_default();
            for f in figures {
                let at = f.at.map_or(String::new(), |at| format!("{at} {}", group.axis));
                let (median, low, high, runs) = (f.part(0.5), f.part(0.0), f.part(1.0), f.runs.len());
                let p99 = if runs >= 50 { format!(", p99 {}", short(f.part(0.99))) } else { String::new() };
                let spread = match runs {
                    1 => String::new(),
                    _ => format!("({} .. {}{p99} of {runs})", short(low), short(high)),
                };
                println!("  {at:>16}  {:<width$} {:>8}  {spread}", f.series, short(median));
            }
        }
        for (bench, text) in &self.remarks {
            println!("\n{bench}: {text}");
        }
    }
}

/// Three digits say enough.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Group = Group { bench: "latency", name: "round trip", unit: "us", axis: "bytes" };

    #[test]
    fn figures_of_one_name_are_runs_of_one_figure() {
        let mut report = Report::new();
        for (at, value) in [(64, 3.0), (1, 9.0), (64, 1.0), (64, 2.0)] {
            report.note(GROUP, "plain", Some(at), value);
        }
        let (figures, _) = report.json();
        let of = |i: usize, key: &str| figures[i][key].clone();
        assert_eq!((of(0, "at"), of(1, "at"), of(1, "runs")), (json!(1), json!(64), json!(3)));
        assert_eq!((of(1, "min"), of(1, "median"), of(1, "max")), (json!(1.0), json!(2.0), json!(3.0)));
        assert_eq!(of(1, "what"), "64 bytes: round trip, plain");
    }

    #[test]
    fn figures_are_short() {
        let texts = [0.0, 0.1234, 1.234, 12.34, 1234.5].map(short);
        assert_eq!(texts, ["0", "0.123", "1.23", "12.3", "1234"]);
    }
}
