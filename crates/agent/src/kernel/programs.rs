//! The path's programs, loaded beside everything else: the kernel takes a while to verify them, and until they are
//! there those of the agent before go on.

use std::sync::{Arc, OnceLock};

use villus_datapath::{Error, Maps, Object, Pins, Result};

use crate::AgentError;

/// Programs that are loaded or on their way. Clones share them.
#[derive(Clone)]
pub(crate) struct Programs(Arc<OnceLock<Result<Object>>>);

impl Programs {
    /// Begins to load.
    pub fn load(pins: Arc<Pins>, maps: Arc<Maps>) -> std::result::Result<Self, AgentError> {
        let programs = Self(Arc::new(OnceLock::new()));
        let place = programs.0.clone();
        std::thread::Builder::new()
            .name("villus-load".into())
            .spawn(move || {
                let begin = std::time::Instant::now();
                let object = Object::load(&pins, &maps);
                tracing::debug!(took = ?begin.elapsed(), good = object.is_ok(), "programs are loaded");
                let _ = place.set(object);
            })
            .map_err(AgentError::Runtime)?;
        Ok(programs)
    }

    /// Whether they are there.
    pub fn are_loaded(&self) -> bool {
        self.0.get().is_some()
    }

    /// The programs; blocks until they are there.
    ///
    /// # Errors
    /// They could not be loaded.
    pub fn wait(&self) -> Result<&Object> {
        self.0.wait().as_ref().map_err(|error| Error::Object { what: error.to_string() })
    }
}
