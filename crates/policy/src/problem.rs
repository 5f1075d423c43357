use std::fmt;

use serde::Serialize;
use thiserror::Error;

use crate::Position;

/// Why an object of a file is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The file is neither YAML nor JSON, or too big.
    Syntax,
    /// An object that is no policy at all: a Deployment, a Service, …
    NotAPolicy,
    /// A field or kind that the schema knows and that is not enforced; taking it would be a lie.
    NotEnforced,
    /// A field that the schema does not know.
    UnknownField,
    /// A key, or an object, that is there twice.
    Duplicate,
    /// A field that must be there and is not.
    Missing,
    /// A value that can't be.
    Invalid,
    /// Nothing is refused, but the object says less than its author may think.
    Warning,
}

/// One thing that is wrong with one object of one file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Error)]
pub struct Problem {
    /// The file, or where the text came from.
    pub file: String,
    /// Which document of the file, from 1; empty ones are not counted. 0: the file as a whole.
    pub document: usize,
    /// Kind, namespace and name, as far as they could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field: `spec.ingress[0].toPorts[0].rules.http`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Where it stands in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// What sort of problem.
    pub kind: ProblemKind,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, " ({object})")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A file none of whose objects is taken, with everything that is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Error)]
pub struct Refused {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl Refused {
    /// Whether all that is wrong is that the file holds objects that are no policies.
    #[must_use]
    pub fn holds_no_policy(&self) -> bool {
        self.problems.iter().all(|problem| problem.kind == ProblemKind::NotAPolicy)
    }
}

impl fmt::Display for Refused {
    /// One problem per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}
