//! The path's programs, loaded beside everything else: the kernel takes a while to verify them, and until they are
//! there those of the agent before go on.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use villus_datapath::{AllCpus, Error, Hook, Maps, Object, Pins, Program, Result};

use crate::AgentError;

/// The program that only a node with policy of its own runs, or one that masquerades; for the former it is loaded when all
/// others are there.
const LATER: [Hook; 1] = [Hook::ToNetwork];

/// Programs that are loaded or on their way. Clones share them.
#[derive(Clone)]
pub(crate) struct Programs(Arc<Loading>);

#[derive(Default)]
struct Loading {
    /// What each endpoint, uplink and the tunnel needs.
    first: OnceLock<Result<Object>>,
    /// [`LATER`], where they are not among the first.
    later: OnceLock<Result<Object>>,
    /// Whether they are.
    at_once: bool,
    /// Why those that masquerade are not among them though they should be.
    refused: OnceLock<String>,
    /// The start has nothing else to do.
    all: AllCpus,
}

impl Programs {
    /// Begins to load those that the node may need, and leaves a CPU to the rest of the start until [`Self::hurry`].
    pub fn load(pins: Arc<Pins>, maps: Arc<Maps>, has_tunnel: bool) -> std::result::Result<Self, AgentError> {
        let at_once = maps.nat.is_some();
        let programs = Self(Arc::new(Loading { at_once, ..Loading::default() }));
        let loading = programs.0.clone();
        std::thread::Builder::new()
            .name("villus-load".into())
            .spawn(move || {
                let begin = Instant::now();
                let first =
                    |hook: &Hook| (at_once || !LATER.contains(hook)) && (has_tunnel || !hook.is_of_tunnel());
                let hooks: Vec<Hook> = Hook::ALL.into_iter().filter(first).collect();
                let mut object = Object::load_beside(&pins, &maps, &hooks, &loading.all);
                if let Err(error) = object.as_ref().map(drop).map_err(ToString::to_string)
                    && at_once
                {
                    object = Object::load_without_nat(&pins, &hooks);
                    if object.is_ok() {
                        let _ = loading.refused.set(error);
                    }
                }
                tracing::debug!(took = ?begin.elapsed(), good = object.is_ok(), "programs are loaded");
                let _ = loading.first.set(object);
                if !at_once {
                    let _ = loading.later.set(Object::load(&pins, &maps, &LATER));
                }
            })
            .map_err(AgentError::Runtime)?;
        Ok(programs)
    }

    /// Whether those are there that a node without policy of its own needs.
    pub fn are_loaded(&self) -> bool {
        self.0.first.get().is_some()
    }

    /// Why the kernel takes none of the programs that masquerade, though it takes the others.
    pub fn refused(&self) -> Option<&str> {
        self.0.refused.get().map(String::as_str)
    }

    /// Nothing else of the start has a use for a CPU.
    pub fn hurry(&self) {
        self.0.all.say();
    }

    /// Blocks until [`Self::are_loaded`].
    ///
    /// # Errors
    /// They could not be loaded.
    pub fn wait(&self) -> Result<()> {
        self.hurry();
        object(&self.0.first).map(drop)
    }

    /// Blocks until all are there, or could not be loaded.
    pub fn wait_for_all(&self) {
        self.0.first.wait();
        if !self.0.at_once {
            self.0.later.wait();
        }
    }

    /// The program of a hook; blocks until it is there.
    ///
    /// # Errors
    /// It could not be loaded, or this node has no use for it.
    pub fn program(&self, hook: Hook) -> Result<&Program> {
        self.hurry();
        let later = !self.0.at_once && LATER.contains(&hook);
        object(if later { &self.0.later } else { &self.0.first })?.program(hook)
    }
}

fn object(loading: &OnceLock<Result<Object>>) -> Result<&Object> {
    loading.wait().as_ref().map_err(|error| Error::Object { what: error.to_string() })
}
