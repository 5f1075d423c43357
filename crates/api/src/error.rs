//! What the API answers when it does not do what it was asked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of an operation of the API.
pub type ApiResult<T> = Result<T, ApiError>;

/// An answer that is no success: what failed, on what, and what the operator can do.
///
/// The body is `{"message": …, "field": …, "file": …, "hint": …}`; all but the message may be missing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ApiError {
    /// HTTP status; not part of the body.
    #[serde(skip)]
    pub status: u16,
    /// What failed and why.
    #[serde(default)]
    pub message: String,
    /// The field, query parameter or option that is wrong, as a path: `addresses[1]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The file that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// An error with any status.
    #[must_use]
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), ..Self::default() }
    }

    /// 400: the request is wrong.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 400: this field of the request is wrong.
    #[must_use]
    pub fn bad_field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(400, message).field(field)
    }

    /// 404: there is no such thing.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, message)
    }

    /// 409: it exists already, or something else stands in the way.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, message)
    }

    /// 429: too many requests at once or in a time.
    #[must_use]
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(429, message).hint("try again in a second")
    }

    /// 500: the agent could not do it.
    #[must_use]
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(500, message.to_string())
    }

    /// 501: this agent does not offer it.
    #[must_use]
    pub fn not_offered(what: &str) -> Self {
        Self::new(501, format!("this agent does not offer {what}"))
    }

    /// 503: not now, for example while the agent starts.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, message)
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Names the file that is wrong.
    #[must_use]
    pub fn file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ApiError {
    /// `file: field: message (hint)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.file, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        if self.message.is_empty() {
            write!(f, "the agent answered with status {}", self.status)?;
        } else {
            f.write_str(&self.message)?;
        }
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}
