//! What checking options brings to light, and how it is shown.

use crate::{resolve::Setting, source::Origin};
use serde::Serialize;
use std::fmt::{self, Write as _};

/// How grave a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The agent does not start.
    Error,
    /// The agent starts, and something is not as the setting says.
    Warning,
    /// The agent starts and does what the setting says; there is a better way to say it.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing that an operator should know about one setting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// The option, as the source spells it.
    pub option: String,
    /// The text that the source gives, where there is one.
    pub value: Option<String>,
    /// Where.
    pub origin: Origin,
    /// What is the matter.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.option)?;
        if let Some(value) = &self.value {
            write!(f, "={}", shown(value))?;
        }
        write!(f, ": {} ({})", self.reason, self.fix)
    }
}

/// Everything that checking a set of sources found, and what it resolves to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The directory or file that was checked, where it was one.
    pub subject: Option<String>,
    /// All findings: errors first, then warnings, then notes; each part in the order of options.
    pub findings: Vec<Finding>,
    /// Options that some source sets, with their values; defaults are left out.
    pub settings: Vec<Setting>,
}

impl Report {
    /// Whether an agent would start.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.errors().next().is_none()
    }

    /// The findings that stop the start.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.severity == Severity::Error)
    }

    /// The findings that don't.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.severity != Severity::Error)
    }

    /// A table of all findings, below each one its reason and its fix, and a last line that says how many
    /// there are.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![["LEVEL", "OPTION", "VALUE", "SOURCE"].map(String::from)];
        for f in &self.findings {
            let value = f.value.as_deref().map(shown).unwrap_or_default();
            rows.push([f.severity.to_string(), f.option.clone(), value, f.origin.to_string()]);
        }
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0).max(5) + 3;
        let (level, option, value) = (width(0), width(1), width(2));
        let mut out = String::new();
        if self.findings.is_empty() {
            rows.clear();
        }
        for (i, [a, b, c, source]) in rows.iter().enumerate() {
            let _ = writeln!(out, "{a:level$}{b:option$}{c:value$}{source}");
            if let Some(f) = i.checked_sub(1).and_then(|i| self.findings.get(i)) {
                let _ = writeln!(out, "{:level$}{}\n{:level$}fix: {}", "", f.reason, "", f.fix);
            }
        }
        out.push_str(&self.summary());
        out.push('\n');
        out
    }

    /// One line: how many findings of each kind, how many options are set, whether an agent would start.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |s| self.findings.iter().filter(|f| f.severity == s).count();
        let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        let subject = self.subject.as_deref().map(|s| format!("{s}: ")).unwrap_or_default();
        format!(
            "{subject}{} set, {}, {}, {}: {}",
            plural(self.settings.len(), "option"),
            plural(count(Severity::Error), "error"),
            plural(count(Severity::Warning), "warning"),
            plural(count(Severity::Note), "note"),
            if self.is_ok() { "an agent starts with it" } else { "an agent refuses to start with it" },
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table())
    }
}

/// Why no configuration came to be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// At least one setting is wrong; the report names all of them.
    #[error("{}", lines(.0))]
    Rejected(Box<Report>),
}

fn lines(report: &Report) -> String {
    let errors: Vec<String> = report.errors().map(ToString::to_string).collect();
    match errors.as_slice() {
        [one] => one.clone(),
        many => format!("{} settings are wrong:\n  {}", many.len(), many.join("\n  ")),
    }
}

/// A value on one line, cut where it is long.
fn shown(value: &str) -> String {
    const MOST: usize = 40;
    let line: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.is_empty() {
        return "\"\"".into();
    }
    if line.chars().count() <= MOST {
        return line;
    }
    line.chars().take(MOST - 1).chain(['…']).collect()
}
