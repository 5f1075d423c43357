use std::path::PathBuf;

use thiserror::Error;
use villus_durable::FileError;

/// Why a certificate was not made.
#[derive(Debug, Error)]
pub enum CertsError {
    /// There is an authority already.
    #[error(
        "{path:?} is there already; everything it signed would be worth nothing; choose another directory with --dir, or move it away yourself"
    )]
    AuthorityExists {
        /// The file.
        path: PathBuf,
    },
    /// There is no authority.
    #[error("there is no authority in {path:?}; make one with `villus certs init --dir`")]
    NoAuthority {
        /// The directory.
        path: PathBuf,
    },
    /// There is such a certificate already.
    #[error("{path:?} is there already; renew it with `villus certs renew`")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file holds something else.
    #[error("{path:?}: {reason}; put the right file there, or make it anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority ends too soon.
    #[error(
        "the authority in {path:?} ends in {days} days, before what it is to sign; ask for fewer with --days, or make a new one"
    )]
    AuthorityEnds {
        /// The directory.
        path: PathBuf,
        /// Days it has left.
        days: i64,
    },
    /// A name that cannot be one.
    #[error("{name:?} {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it, and what to do.
        reason: &'static str,
    },
    /// A file could not be read or written.
    #[error("{0}; name a directory that you may write into with --dir")]
    File(#[from] FileError),
    /// Cryptography failed.
    #[error("cannot make the certificate of {name}: {reason}")]
    Make {
        /// Whose.
        name: String,
        /// Why.
        reason: String,
    },
}
