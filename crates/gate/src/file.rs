//! The gate of one node: its state in one file, changed by one process at a time.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use fastrand::Rng;
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;
use villus_durable::{FileError, remedy, set_aside, write_atomic};

use crate::{Bypass, Grant, Moment, State, Timer, Verdict, rules};

/// Name of the file in the agent's `lib-dir`.
const FILE: &str = "gate.json";
/// A directory in the agent's `lib-dir` that every agent makes at its start: where it is, one has run.
pub const TRACE: &str = "endpoints";

/// The gate's state could not be read or written.
#[derive(Debug, Error)]
pub enum GateError {
    /// The directory.
    #[error("{path:?} cannot be used: {source}; {}", remedy(source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file.
    #[error("{file}; {}", remedy(&file.source))]
    File {
        /// What failed.
        #[from]
        file: FileError,
    },
}

/// The gate of one node. Nothing is opened or made before it is used.
#[derive(Clone, Debug)]
pub struct Gate {
    directory: PathBuf,
}

/// The state as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// The state; that of an unknown past where the file cannot be understood.
    pub state: State,
    /// Why the file cannot be understood.
    pub damage: Option<String>,
}

impl Gate {
    /// The gate whose state lies in the agent's `lib-dir`.
    #[must_use]
    pub fn open(lib_dir: &Path) -> Self {
        Self { directory: lib_dir.to_owned() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What is known now. Changes nothing. Without a file the node is new, unless an agent has run on it: then its past is
    /// unknown, and a fleet to which gates come later does not start as one.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn look(&self) -> Result<Looked, GateError> {
        match fs::read(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_new = !self.directory.join(TRACE).exists();
                let state = if is_new { State::new_node() } else { State::unknown() };
                Ok(Looked { state, damage: None })
            }
            Err(source) => Err(FileError { path: self.path(), what: "can't be read", source }.into()),
            Ok(bytes) => Ok(match State::parse(&bytes) {
                Ok(state) => Looked { state, damage: None },
                Err(damage) => Looked { state: State::unknown(), damage: Some(damage) },
            }),
        }
    }

    /// [`rules::ask`] on the file. A damaged file is kept aside and its node waits like any other. Returns the verdict and
    /// where the damaged file is kept.
    ///
    /// # Errors
    /// When the file cannot be read or written; nothing has started then.
    pub fn ask(
        &self,
        now: &Moment,
        window: Duration,
        chance: &mut Rng,
    ) -> Result<(Verdict, Option<PathBuf>), GateError> {
        self.change(|state| rules::ask(state, now, window, chance))
    }

    /// Grants one start within the given time that needs no turn. Whoever waits now takes it.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn grant(&self, by: &str, now: &Moment, lasts: Duration) -> Result<(), GateError> {
        self.change(|state| state.grant = Some(Grant { by: by.to_owned(), timer: Timer::new(now, lasts) }))?;
        Ok(())
    }

    /// Opens the gate, for a time or until it is closed; `None` closes it.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn bypass(&self, open: Option<Bypass>) -> Result<(), GateError> {
        self.change(|state| state.bypass = open)?;
        Ok(())
    }

    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<(T, Option<PathBuf>), GateError> {
        let failed = |source: io::Error| GateError::Directory { path: self.directory.clone(), source };
        fs::create_dir_all(&self.directory).map_err(failed)?;
        // The directory is what is locked: the file is another one after each change.
        let lock = File::open(&self.directory).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let Looked { mut state, damage } = self.look()?;
        let kept = damage.map(|_| set_aside(&self.path())).transpose()?;
        let before = state.clone();
        let done = work(&mut state);
        if state != before || kept.is_some() {
            self.write(&state)?;
        }
        Ok((done, kept))
    }

    fn write(&self, state: &State) -> Result<(), GateError> {
        let path = self.path();
        let invalid = |source: serde_json::Error| FileError {
            path: path.clone(),
            what: "can't be put as JSON",
            source: source.into(),
        };
        let mut text = serde_json::to_vec_pretty(state).map_err(invalid)?;
        text.push(b'\n');
        Ok(write_atomic(&path, &text)?)
    }
}

// === impl Bypass ===

impl Bypass {
    /// A gate that stands open from now on.
    #[must_use]
    pub fn new(by: &str, now: &Moment, lasts: Option<Duration>) -> Self {
        Self { by: by.to_owned(), since: now.clone(), timer: lasts.map(|lasts| Timer::new(now, lasts)) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Reason;

    const WINDOW: Duration = Duration::from_secs(600);

    fn lab() -> (tempfile::TempDir, Gate, Rng) {
        let directory = tempfile::tempdir().unwrap();
        let gate = Gate::open(&directory.path().join("lib"));
        (directory, gate, Rng::with_seed(7))
    }

    #[test]
    fn a_new_node_starts_at_once_and_its_next_start_waits() {
        let (_directory, gate, mut chance) = lab();
        let now = Moment::now();
        assert_eq!(gate.look().unwrap().state, State::new_node());
        assert_eq!(gate.ask(&now, WINDOW, &mut chance).unwrap(), (Verdict::Start(Reason::New), None));
        let (verdict, _) = gate.ask(&now, WINDOW, &mut chance).unwrap();
        let Verdict::Wait(wait) = verdict else { panic!("{verdict:?}") };
        assert!(wait >= WINDOW && wait <= 2 * WINDOW, "{wait:?}");
        assert_eq!(gate.ask(&now, WINDOW, &mut chance).unwrap().0, verdict, "a turn is kept");
        assert_eq!(fs::metadata(gate.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_node_on_which_an_agent_has_run_waits_though_its_gate_is_new() {
        let (_directory, gate, mut chance) = lab();
        fs::create_dir_all(gate.directory.join(TRACE)).unwrap();
        assert_eq!(gate.look().unwrap(), Looked { state: State::unknown(), damage: None });
        let (verdict, _) = gate.ask(&Moment::now(), WINDOW, &mut chance).unwrap();
        assert!(matches!(verdict, Verdict::Wait(_)), "{verdict:?}");
    }

    #[test]
    fn a_grant_before_the_first_start_leaves_the_node_new() {
        let (_directory, gate, mut chance) = lab();
        let now = Moment::now();
        gate.bypass(Some(Bypass::new("ann", &now, None))).unwrap();
        gate.bypass(None).unwrap();
        assert_eq!(gate.ask(&now, WINDOW, &mut chance).unwrap().0, Verdict::Start(Reason::New));
        gate.grant("ann", &now, WINDOW).unwrap();
        assert_eq!(gate.look().unwrap().state.grant.unwrap().by, "ann");
        assert_eq!(gate.ask(&now, WINDOW, &mut chance).unwrap().0, Verdict::Start(Reason::Granted));
        assert!(matches!(gate.ask(&now, WINDOW, &mut chance).unwrap().0, Verdict::Wait(_)), "one start");
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_its_node_waits_like_any_other() {
        for damage in ["", "{", "{\"format\":9}", "{\"format\":1,\"streak\":-1}", "\0\0\0"] {
            let (_directory, gate, mut chance) = lab();
            fs::create_dir_all(gate.path().parent().unwrap()).unwrap();
            fs::write(gate.path(), damage).unwrap();
            assert!(gate.look().unwrap().damage.is_some());
            let (verdict, kept) = gate.ask(&Moment::now(), WINDOW, &mut chance).unwrap();
            assert!(matches!(verdict, Verdict::Wait(wait) if wait <= WINDOW), "{damage:?}: {verdict:?}");
            assert_eq!(fs::read_to_string(kept.unwrap()).unwrap(), damage);
            let again = gate.ask(&Moment::now(), WINDOW, &mut chance).unwrap();
            assert!(matches!(again, (Verdict::Wait(_), None)), "{again:?}");
        }
    }

    #[test]
    fn of_many_who_ask_at_once_one_starts() {
        let (_directory, gate, _) = lab();
        let starts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|seed| {
                    let gate = &gate;
                    scope
                        .spawn(move || gate.ask(&Moment::now(), WINDOW, &mut Rng::with_seed(seed)).unwrap().0)
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(is_start).count()
        });
        assert_eq!(starts, 1);
    }

    fn is_start(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Start(_))
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let gate = Gate::open(&directory.path().join("file"));
        let error = gate.ask(&Moment::now(), WINDOW, &mut Rng::with_seed(1)).unwrap_err().to_string();
        assert!(error.contains("file") && error.contains("--lib-dir"), "{error}");
    }
}
