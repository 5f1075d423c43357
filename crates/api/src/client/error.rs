//! Why the agent did not do what it was asked.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::{Gid, Group};

use crate::ApiError;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the agent does not answer on {}: {problem}; is it running? try `systemctl status villus`, or start it \
         with `villus agent`",
        .path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The caller may not connect.
    #[error(
        "no permission to use {}: it is for group {group}; join it (`usermod -aG {group} USER`, then log in \
         again) or use sudo",
        .path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
        /// The group that may.
        group: String,
    },
    /// The agent listens but took too long.
    #[error(
        "the agent on {} has not answered within {} s; it may be stopped in a debugger or overloaded",
        .path.display(),
        .after.as_secs()
    )]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke off.
    #[error("the connection to the agent on {} broke: {problem}", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// The agent answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The agent's answer is not what this program understands.
    #[error("the answer to {request} cannot be understood: {problem}; are agent and program of one version?")]
    Answer {
        /// Method and path.
        request: String,
        /// What is wrong.
        problem: String,
    },
    /// The client itself could not be set up.
    #[error("cannot set up the client: {0}")]
    Setup(io::Error),
}

impl ClientError {
    /// The status of the agent's answer, if it answered.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Api(error) => Some(error.status),
            _ => None,
        }
    }

    /// Whether the agent is not there, so that a fallback without it makes sense.
    #[must_use]
    pub const fn no_agent(&self) -> bool {
        matches!(self, Self::NotRunning { .. })
    }

    pub(super) fn connecting(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { group: group_of(&path), path },
            io::ErrorKind::NotFound => {
                Self::NotRunning { path, problem: "there is no such socket".to_owned() }
            }
            io::ErrorKind::ConnectionRefused => {
                Self::NotRunning { path, problem: "nobody listens on it any more".to_owned() }
            }
            _ => Self::Broken { problem: error.to_string(), path },
        }
    }

    pub(super) fn broken(path: &Path, problem: impl ToString) -> Self {
        Self::Broken { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// Name of the group that the socket, or else the nearest directory that can be seen, belongs to.
fn group_of(path: &Path) -> String {
    let gid = path.ancestors().find_map(|path| std::fs::metadata(path).ok()).map(|found| found.gid());
    let Some(gid) = gid else { return "root".to_owned() };
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_door_names_the_group_that_may_enter() {
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        let text = ClientError::connecting(Path::new("/no/such/villus.sock"), &refused).to_string();
        let group = group_of(Path::new("/"));
        assert!(text.contains(&format!("for group {group}; join it (`usermod -aG {group} USER`")), "{text}");
    }
}
