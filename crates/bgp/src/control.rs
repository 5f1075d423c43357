//! BIRD's control socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use crate::{Reply, ReplyError, Status};

/// How long BIRD may take for a line.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line that is read, in bytes.
const LONGEST_LINE: u64 = 64 * 1024;

/// A conversation with BIRD. Only ever asks.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// BIRD could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket.
    #[error("BIRD does not answer on {path:?}: {source}; start it, or name its socket with --socket")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer.
    #[error("{path:?}: {source}")]
    Reply {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: ReplyError,
    },
}

// === impl Control ===

impl Control {
    /// Connects and waits for the greeting.
    ///
    /// # Errors
    /// Nobody listens there, or something else than BIRD.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Socket { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut control = Self { path: path.to_owned(), stream: BufReader::new(stream) };
        control.read()?;
        Ok(control)
    }

    /// What BIRD says about itself and its sessions of BGP.
    ///
    /// # Errors
    /// It stops answering, or refuses.
    pub fn status(&mut self) -> Result<Status, ControlError> {
        let bird = self.ask("show status")?;
        let protocols = self.ask("show protocols all")?;
        Ok(Status::read(&bird, &protocols))
    }

    fn ask(&mut self, command: &str) -> Result<Reply, ControlError> {
        let written = self.stream.get_mut().write_all(format!("{command}\n").as_bytes());
        written.map_err(|source| ControlError::Socket { path: self.path.clone(), source })?;
        self.read()
    }

    fn read(&mut self) -> Result<Reply, ControlError> {
        let failed = |source: io::Error| ControlError::Socket { path: self.path.clone(), source };
        let mut reply = Reply::default();
        loop {
            let mut line = Vec::new();
            io::Read::take(&mut self.stream, LONGEST_LINE).read_until(b'\n', &mut line).map_err(failed)?;
            if line.pop() != Some(b'\n') {
                let problem = "it ended in the middle of its answer";
                return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, problem)));
            }
            let line = String::from_utf8_lossy(&line);
            match reply.push(line.trim_end_matches('\r')) {
                Ok(true) => return Ok(reply),
                Ok(false) => {}
                Err(source) => return Err(ControlError::Reply { path: self.path.clone(), source }),
            }
        }
    }
}
