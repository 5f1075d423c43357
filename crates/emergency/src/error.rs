//! What can go wrong with the journal.

use std::{io, path::PathBuf};

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmergencyError {
    /// The file cannot be read or written.
    #[error("cannot {action} the journal {}: {source}", .path.display())]
    Journal {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
