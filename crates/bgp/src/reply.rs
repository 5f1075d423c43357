//! What BIRD answers: lines with numbers, in its own format.

use thiserror::Error;

/// A line of a reply: its number says what it is about. Lines that go on another have its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Kind of the line: 1002 is a protocol, 1006 its details, …
    pub code: u16,
    /// The rest.
    pub text: String,
}

/// A whole reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its lines, the last included.
    pub lines: Vec<Line>,
}

/// Lines that are no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReplyError {
    /// A line of another form.
    #[error("BIRD answered {0:?}, which has no number; is it BIRD 2 that listens there?")]
    Line(String),
    /// BIRD refused.
    #[error("BIRD refused: {text} ({code})")]
    Refused {
        /// Number of the refusal.
        code: u16,
        /// What it said.
        text: String,
    },
    /// More than anybody reads.
    #[error("BIRD's answer is longer than {0} lines")]
    Long(usize),
}

/// Lines that are read at most: ten thousand sessions with twenty lines each.
const LONGEST: usize = 200_000;
/// From this number on a reply is a refusal.
const REFUSALS: u16 = 8000;

// === impl Reply ===

impl Reply {
    /// Adds a line; true once the reply is whole.
    ///
    /// # Errors
    /// The line is none, or refuses.
    pub fn push(&mut self, line: &str) -> Result<bool, ReplyError> {
        if self.lines.len() >= LONGEST {
            return Err(ReplyError::Long(LONGEST));
        }
        if let Some(text) = line.strip_prefix(' ')
            && let Some(code) = self.lines.last().map(|last| last.code)
        {
            self.lines.push(Line { code, text: text.to_owned() });
            return Ok(false);
        }
        let wrong = || ReplyError::Line(line.chars().take(80).collect());
        let (code, rest) = line.split_at_checked(4).ok_or_else(wrong)?;
        if !code.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let code: u16 = code.parse().map_err(|_| wrong())?;
        let (more, text) = match rest.split_at_checked(1) {
            Some(("-", text)) => (true, text),
            Some((" ", text)) => (false, text),
            None if rest.is_empty() => (false, ""),
            _ => return Err(wrong()),
        };
        if code >= REFUSALS {
            return Err(ReplyError::Refused { code, text: text.to_owned() });
        }
        self.lines.push(Line { code, text: text.to_owned() });
        Ok(!more)
    }

    /// Texts of the lines with a number.
    pub fn of(&self, code: u16) -> impl Iterator<Item = &str> {
        self.lines.iter().filter(move |line| line.code == code).map(|line| line.text.as_str())
    }
}
