//! One agent at a time for one `lib-dir`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};

use rustix::fs::{FlockOperation, flock};

use super::StateDir;
use crate::AgentError;

/// Held as long as the agent runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct AgentLock {
    file: File,
}

impl AgentLock {
    /// Takes the lock, or says who has it.
    pub fn take(state: &StateDir) -> Result<Self, AgentError> {
        let path = state.path("agent.lock");
        let failed = |source| AgentError::File { action: "lock", path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(AgentError::Running { path, pid: pid.trim().to_owned() });
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for AgentLock {
    /// Lets go at once: a program that is started just now has a copy of the file until it is another program.
    fn drop(&mut self) {
        // It ends with the file in any case.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
