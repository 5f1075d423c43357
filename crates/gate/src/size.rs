//! How many nodes the cluster has, as last known on this node's disk.

use std::{fs, io, num::NonZeroU32, path::Path};

use serde::{Deserialize, Serialize};
use villus_durable::{FileError, write_atomic};

/// Name of the file in the agent's `lib-dir`.
pub const FILE: &str = "cluster-size.json";
/// Taken where nobody knows.
pub const ASSUMED: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// A size and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Size {
    /// Nodes of the cluster.
    pub nodes: NonZeroU32,
    /// Who says so.
    pub source: Source,
}

/// Who says how large the cluster is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A local option.
    Option,
    /// What the agent last wrote down.
    Disk,
    /// Nobody.
    Assumed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: NonZeroU32,
}

/// Writes down how many nodes there are, if that is not what is written there already.
///
/// # Errors
/// When the file system refuses.
pub fn remember(lib_dir: &Path, nodes: NonZeroU32) -> Result<(), FileError> {
    let path = lib_dir.join(FILE);
    if matches!(known(lib_dir), Ok(Some(there)) if there == nodes) {
        return Ok(());
    }
    let invalid = |source: serde_json::Error| FileError {
        path: path.clone(),
        what: "can't be put as JSON",
        source: source.into(),
    };
    write_atomic(&path, &serde_json::to_vec(&File { nodes }).map_err(invalid)?)
}

/// How many nodes there were when the agent last wrote it down.
///
/// # Errors
/// The file is there and says nothing that can be understood.
pub fn known(lib_dir: &Path) -> Result<Option<NonZeroU32>, String> {
    let path = lib_dir.join(FILE);
    let wrong = |error: String| format!("{}: {error}", path.display());
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(error.to_string())),
        Ok(bytes) => parse(&bytes).map(Some).map_err(wrong),
    }
}

fn parse(bytes: &[u8]) -> Result<NonZeroU32, String> {
    serde_json::from_slice(bytes).map(|file: File| file.nodes).map_err(|error| error.to_string())
}

/// The size to go by: the option, else what is on disk, else [`ASSUMED`]; and what is wrong with the file, if it is.
#[must_use]
pub fn find(option: Option<NonZeroU32>, lib_dir: &Path) -> (Size, Option<String>) {
    let (nodes, source, problem) = match (option, known(lib_dir)) {
        (Some(nodes), _) => (nodes, Source::Option, None),
        (None, Ok(Some(nodes))) => (nodes, Source::Disk, None),
        (None, Ok(None)) => (ASSUMED, Source::Assumed, None),
        (None, Err(problem)) => (ASSUMED, Source::Assumed, Some(problem)),
    };
    (Size { nodes, source }, problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_option_comes_before_the_disk_and_the_disk_before_a_guess() {
        let directory = tempfile::tempdir().unwrap();
        let nodes = |n| NonZeroU32::new(n).unwrap();
        let found = |option| find(option, directory.path());
        assert_eq!(found(None).0, Size { nodes: ASSUMED, source: Source::Assumed });
        remember(directory.path(), nodes(7)).unwrap();
        remember(directory.path(), nodes(7)).unwrap();
        assert_eq!(found(None), (Size { nodes: nodes(7), source: Source::Disk }, None));
        assert_eq!(found(Some(nodes(3))).0, Size { nodes: nodes(3), source: Source::Option });
        std::fs::write(directory.path().join(FILE), "{\"nodes\":0}").unwrap();
        let (size, problem) = found(None);
        assert_eq!(size.source, Source::Assumed);
        assert!(problem.unwrap().contains(FILE));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(&bytes);
        }
    }
}
