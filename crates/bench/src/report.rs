//! What a benchmark says: rows with a baseline, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One measured case.
#[derive(Serialize)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// Our figure.
    pub ours: f64,
    /// The figure it stands beside.
    pub baseline: f64,
    /// What that is.
    pub baseline_name: String,
    /// Ours divided by the baseline.
    pub ratio: f64,
    /// Unit of both figures.
    pub unit: String,
    /// What is promised, in words.
    pub goal: String,
    /// Whether it holds in this run.
    pub holds: bool,
}

/// A case whose ratio is our figure divided by the baseline.
pub(crate) fn row(
    case: &str,
    ours: f64,
    unit: &str,
    baseline: (f64, &str),
    goal: &str,
    holds: impl Fn(&Row) -> bool,
) -> Row {
    let mut row = Row {
        case: case.to_owned(),
        ours,
        baseline: baseline.0,
        baseline_name: baseline.1.to_owned(),
        ratio: ours / baseline.0,
        unit: unit.to_owned(),
        goal: goal.to_owned(),
        holds: true,
    };
    row.holds = holds(&row);
    row
}

/// Prints a table.
pub fn print(rows: &[Row]) {
    let width = rows.iter().map(|r| r.case.len()).max().unwrap_or(4).max(4);
    let base = rows.iter().map(|r| r.baseline_name.len()).max().unwrap_or(8).max(8);
    println!(
        "{:width$}  {:>10}  {:>10}  {:base$}  {:>6}  {:8}  {:16}  HOLDS",
        "CASE", "OURS", "BASELINE", "OF", "RATIO", "UNIT", "GOAL"
    );
    for r in rows {
        println!(
            "{:width$}  {:>10.2}  {:>10.2}  {:base$}  {:>6.3}  {:8}  {:16}  {}",
            r.case,
            r.ours,
            r.baseline,
            r.baseline_name,
            r.ratio,
            r.unit,
            r.goal,
            if r.holds { "yes" } else { "NO" }
        );
    }
}

/// Writes the rows as a JSON array.
pub fn write(file: &Path, rows: &[Row]) -> Result<()> {
    std::fs::write(file, serde_json::to_string_pretty(rows)? + "\n")
        .with_context(|| format!("{}", file.display()))
}
