//! Files of policies that may be half written: what is cut between two documents reads as a whole file that holds less.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use villus_policy::{ObjectKey, ParsedFile};

use crate::node::Node;

/// How long a version that holds less must have been still before it is taken for the whole.
const STILL: Duration = Duration::from_secs(2);

/// Which file a path means: another one was renamed to it when this changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FileId(Option<(u64, u64)>);

impl FileId {
    /// The file at a path, if there is one.
    pub fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino())))
    }
}

/// A version of a file that may be half of one, and since when it is as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Half {
    version: u64,
    since: Instant,
}

impl Node {
    /// Whether a version of a file may be the beginning of one that is being written: something that is in force is not in
    /// it, or it ends where the last good version goes on; and neither was another file put in its place nor has it been
    /// still for [`STILL`].
    pub(super) fn may_be_half(&mut self, path: &Path, version: u64, text: &str, parsed: &ParsedFile) -> bool {
        let is_edited = self.sources.files.get(path).is_some_and(|known| known.id == FileId::of(path));
        if !is_edited || !self.holds_less(&path.display().to_string(), text, parsed) {
            return false;
        }
        let now = Instant::now();
        let fresh = Half { version, since: now };
        let half = self.sources.halves.entry(path.to_owned()).or_insert(fresh);
        if half.version != version {
            *half = fresh;
        }
        now.duration_since(half.since) < STILL
    }

    fn holds_less(&self, name: &str, text: &str, parsed: &ParsedFile) -> bool {
        let policies = parsed.policies.iter().map(|policy| &policy.key);
        let new: BTreeSet<&ObjectKey> =
            policies.chain(parsed.referents.iter().map(|referent| &referent.key)).collect();
        let policies = self.repository.known().map(|policy| &policy.key);
        let referents = self.repository.referents().objects().map(|referent| &referent.key);
        let mut held = policies.chain(referents).filter(|key| *key.origin == *name);
        held.any(|key| !new.contains(key))
            || std::fs::read_to_string(self.good_version(name))
                .is_ok_and(|good| good.len() > text.len() && good.starts_with(text.trim_end()))
    }
}
