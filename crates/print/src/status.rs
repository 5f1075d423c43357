//! The lines of `villus status`.

use serde::{Deserialize, Serialize};

use crate::Table;

/// One line: what, how it is, and more about it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StatusLine {
    /// What the line is about, without the colon.
    pub label: String,
    /// How it is: `Ok`, `Disabled`, a number, a version; may be empty.
    pub state: String,
    /// More about it; may be empty and may have several lines.
    #[serde(default)]
    pub message: String,
}

impl StatusLine {
    /// A line.
    #[must_use]
    pub fn new(label: impl Into<String>, state: impl Into<String>, message: impl Into<String>) -> Self {
        Self { label: label.into(), state: state.into(), message: message.into() }
    }
}

/// The lines, labels with a colon, states and messages below each other.
#[must_use]
pub fn status(lines: &[StatusLine]) -> String {
    let mut table = Table::default();
    for line in lines {
        let message = line.message.lines().map(str::to_owned).collect();
        table.rows([vec![format!("{}:", line.label)], vec![line.state.clone()], message]);
    }
    table.render()
}
