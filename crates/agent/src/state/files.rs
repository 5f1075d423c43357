//! Files of state that are whole or not there, and what happens to those that cannot be read.

use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::EndpointFile;
use crate::AgentError;

/// The directory `lib-dir`.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

/// A file that could not be read and was kept aside; whoever asked for it says so.
#[derive(Debug, Clone)]
pub(crate) struct Damaged {
    /// Where it lies now.
    pub kept: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

impl StateDir {
    /// Opens the directory, making it and what is below it (mode 0700).
    pub fn open(root: &Path) -> Result<Self, AgentError> {
        let dir = Self { root: root.to_owned() };
        for path in [dir.root.clone(), dir.endpoints(), dir.policies()] {
            make(&path)?;
        }
        Ok(dir)
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes down how many nodes the cluster has, for the start gate.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remember_size(&self, nodes: NonZeroU32) -> io::Result<()> {
        villus_gate::size::remember(&self.root, nodes).map_err(io::Error::other)
    }

    /// Where endpoints' files are.
    pub fn endpoints(&self) -> PathBuf {
        self.path(villus_gate::TRACE)
    }

    /// Where imported policies are.
    pub fn policies(&self) -> PathBuf {
        self.path("policies")
    }

    fn endpoint(&self, id: u16) -> PathBuf {
        self.endpoints().join(format!("{id}.json"))
    }

    /// The second copy of an endpoint's file: a workload must not lose its network to a spoiled block of the disk.
    fn copy(&self, id: u16) -> PathBuf {
        self.endpoints().join(format!("{id}.copy"))
    }

    /// Writes an endpoint's file, and its copy. The copy need not be on the disk yet: the file is.
    pub fn save_endpoint(&self, file: &EndpointFile) -> io::Result<()> {
        let content = serde_json::to_vec_pretty(file).map_err(io::Error::other)?;
        write_atomic(&self.endpoint(file.id), &content)?;
        fs::write(self.copy(file.id), content)
    }

    /// Removes an endpoint's file and its copy; that there is none is fine.
    pub fn remove_endpoint(&self, id: u16) -> io::Result<()> {
        gone_is_fine(fs::remove_file(self.endpoint(id)))?;
        gone_is_fine(fs::remove_file(self.copy(id)))
    }

    /// Reads all endpoints' files. What cannot be read is kept aside, and its copy is taken where that can be read.
    pub fn load_endpoints(&self) -> io::Result<(Vec<EndpointFile>, Vec<Damaged>)> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(self.endpoints())? {
            let path = entry?.path();
            let Some(id) = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|id| id.parse::<u16>().ok())
            else {
                continue;
            };
            match read_endpoint(&path, id) {
                Ok(file) => good.push(file),
                Err(mut reason) => {
                    let copy = read_endpoint(&self.copy(id), id);
                    if copy.is_ok() {
                        reason.push_str("; its copy was taken instead");
                    }
                    bad.push(keep_aside(&path, reason)?);
                    if let Ok(file) = copy {
                        write_json(&path, &file)?;
                        good.push(file);
                    }
                }
            }
        }
        good.sort_by_key(|file| file.id);
        self.remove_stray_copies()?;
        Ok((good, bad))
    }

    /// Removes the copies of endpoints that have no file: their deletion broke off.
    fn remove_stray_copies(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.endpoints())? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "copy") && !path.with_extension("json").exists() {
                gone_is_fine(fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    /// Reads the endpoints' files that can be read, and moves nothing.
    pub fn peek_endpoints(&self) -> io::Result<Vec<EndpointFile>> {
        let entries = fs::read_dir(self.endpoints())?.flatten().map(|entry| entry.path());
        let entries = entries.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let texts = entries.filter_map(|path| fs::read(path).ok());
        Ok(texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect())
    }

    /// Reads a JSON file; `None` if it is not there. What cannot be read is kept aside.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> io::Result<Result<Option<T>, Damaged>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
            Err(error) => return Err(error),
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Ok(Ok(Some(value))),
            Err(error) => Ok(Err(keep_aside(&path, error.to_string())?)),
        }
    }

    /// Writes a JSON file.
    pub fn save<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        write_json(&self.path(name), value)
    }

    /// Files that were kept aside, now or earlier.
    pub fn damaged(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for dir in [self.root.clone(), self.endpoints(), self.policies()] {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            found.extend(entries.map(|e| e.path()).filter(|p| p.to_string_lossy().contains(".damaged-")));
        }
        found.sort();
        found
    }
}

fn read_endpoint(path: &Path, id: u16) -> Result<EndpointFile, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(EndpointFile::FORMAT) => {}
        Some(format) => {
            return Err(format!("its format is {format}, this version reads {}", EndpointFile::FORMAT));
        }
        None => return Err("it has no format".into()),
    }
    let file: EndpointFile = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if file.id != id || id == 0 {
        return Err(format!("it is about endpoint {}", file.id));
    }
    Ok(file)
}

fn make(path: &Path) -> Result<(), AgentError> {
    let error = |action| move |source| AgentError::File { action, path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(error("make"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(path, mode).map_err(error("set the mode of"))
}

fn keep_aside(path: &Path, reason: String) -> io::Result<Damaged> {
    let seconds = jiff::Timestamp::now().as_second();
    let kept = PathBuf::from(format!("{}.damaged-{seconds}", path.display()));
    fs::rename(path, &kept)?;
    Ok(Damaged { kept, reason })
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec_pretty(value).map_err(io::Error::other)?)
}

/// Replaces a file (mode 0600): after a crash at any time either the old or the new content is there.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    villus_durable::write_atomic(path, content).map_err(|error| io::Error::new(error.source.kind(), error))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn example() -> EndpointFile {
        EndpointFile {
            format: EndpointFile::FORMAT,
            boot_id: "b".into(),
            id: 7,
            identity: 300,
            labels: vec!["k8s:app=web".into()],
            named_ports: std::iter::once("http=80/TCP".parse().unwrap()).collect(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            names: Default::default(),
            sticky: false,
            audit: None,
            allow_dhcp: false,
            device: None,
            created: String::new(),
        }
    }

    #[test]
    fn an_unreadable_endpoint_is_kept_aside_and_the_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let file = example();
        state.save_endpoint(&file).unwrap();
        for (id, text) in [(8, "{"), (9, r#"{"format": 99}"#), (10, "{}")] {
            fs::write(state.endpoint(id), text).unwrap();
        }
        state.save_endpoint(&EndpointFile { id: 11, ..file.clone() }).unwrap();
        fs::rename(state.endpoint(11), state.endpoint(12)).unwrap();

        let (good, bad) = state.load_endpoints().unwrap();
        assert_eq!(good.iter().map(|file| file.id).collect::<Vec<_>>(), [7]);
        assert_eq!(bad.len(), 4);
        assert_eq!(state.damaged().len(), 4);
        assert_eq!(state.load_endpoints().unwrap().0.len(), 1);
    }

    #[test]
    fn a_spoiled_file_is_read_from_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let file = EndpointFile { id: 7, ..example() };
        state.save_endpoint(&file).unwrap();
        fs::write(state.endpoint(7), "\0\0").unwrap();
        let (good, bad) = state.load_endpoints().unwrap();
        assert_eq!((good.len(), bad.len()), (1, 1));
        assert_eq!(good[0].labels, file.labels);
        assert!(bad[0].reason.contains("copy"), "{}", bad[0].reason);
        assert_eq!(state.load_endpoints().unwrap().1.len(), 0, "it is whole again");
        state.remove_endpoint(7).unwrap();
        fs::write(state.copy(9), "{}").unwrap();
        state.load_endpoints().unwrap();
        assert_eq!(fs::read_dir(state.endpoints()).unwrap().count(), 1, "what was kept aside");
    }
}
