//! How a command ends when it did not do what it was asked: one line what failed, one line what to do.

use std::{fmt::Display, process::ExitCode};

use villus_api::ClientError;

/// Something failed.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// What was compared differs.
pub const DIFFERS: u8 = 3;

/// The end of a command that is no success.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failed, on what, and why; empty if everything has been said.
    pub what: String,
    /// What to do about it; may be empty.
    pub fix: String,
    /// The process' exit code.
    pub code: u8,
}

impl Failure {
    pub fn new(what: impl Display) -> Self {
        Self { what: what.to_string(), fix: String::new(), code: FAILED }
    }

    /// The command line is wrong.
    pub fn usage(what: impl Display) -> Self {
        Self { code: USAGE, ..Self::new(what) }
    }

    /// Everything has been printed already.
    pub const fn silent(code: u8) -> Self {
        Self { what: String::new(), fix: String::new(), code }
    }

    /// Says what to do about it.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// Prints the lines on standard error.
    pub fn report(&self) -> ExitCode {
        if !self.what.is_empty() {
            crate::out::complain(&format!("villus: {}", self.what));
        }
        if !self.fix.is_empty() {
            crate::out::complain(&format!("  {}", self.fix));
        }
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(mut api) => {
                let fix = api.hint.take().unwrap_or_default();
                Self::new(api).fix(fix)
            }
            ClientError::NotRunning { path, problem } => {
                Self::new(format!("the agent does not answer on {}: {problem}", path.display())).fix(
                    "start it with `villus agent`, or name its socket with -H or VILLUS_SOCK; `villus bpf`, \
                     `villus map` and `villus emergency` need no agent",
                )
            }
            other => split(&other.to_string()),
        }
    }
}

impl From<villus_datapath::Error> for Failure {
    fn from(error: villus_datapath::Error) -> Self {
        split(&error.to_string())
    }
}

impl From<villus_emergency::EmergencyError> for Failure {
    fn from(error: villus_emergency::EmergencyError) -> Self {
        let villus_emergency::EmergencyError::Journal { source, .. } = &error;
        let fix = villus_durable::remedy(source);
        Self::new(error).fix(fix)
    }
}

/// Errors of the rooms say after a semicolon what to do.
pub fn split(text: &str) -> Failure {
    match text.split_once("; ") {
        Some((what, fix)) => Failure::new(what).fix(fix),
        None => Failure::new(text),
    }
}

#[cfg(test)]
mod tests {
    use villus_api::ApiError;

    use super::*;

    #[test]
    fn a_hint_becomes_the_second_line() {
        let api = ApiError::not_found("no endpoint 5").hint("see `villus endpoint list`");
        let failure = Failure::from(ClientError::Api(api));
        assert_eq!(failure, Failure::new("no endpoint 5").fix("see `villus endpoint list`"));
    }

    #[test]
    fn without_an_agent_the_commands_that_need_none_are_named() {
        let error = ClientError::NotRunning { path: "/x".into(), problem: "there is no such socket".into() };
        let failure = Failure::from(error);
        assert_eq!(failure.what, "the agent does not answer on /x: there is no such socket");
        assert!(failure.fix.contains("villus emergency"));
    }
}
