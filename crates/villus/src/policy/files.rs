//! Files of policies as a command line names them.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// A file's name and text.
pub struct File {
    pub name: String,
    pub text: String,
}

/// Reads files, the YAML and JSON files of directories, and standard input for `-`.
pub fn read(names: &[String]) -> Result<Vec<File>, Failure> {
    let mut files = Vec::new();
    for name in names {
        if name == "-" {
            let mut bytes = Vec::new();
            io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .map_err(|error| unreadable("standard input", &error))?;
            files.push(file("standard input".to_owned(), bytes)?);
            continue;
        }
        let path = Path::new(name);
        if !path.is_dir() {
            files.push(read_one(path)?);
            continue;
        }
        for path in policies_in(path)? {
            files.push(read_one(&path)?);
        }
    }
    Ok(files)
}

/// As [`read`]; a directory may also hold none.
pub fn read_any(names: &[String]) -> Result<Vec<File>, Failure> {
    let holds = |name: &&String| {
        let path = Path::new(name);
        !path.is_dir() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    };
    let names: Vec<String> = names.iter().filter(holds).cloned().collect();
    read(&names)
}

fn read_one(path: &Path) -> Result<File, Failure> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|error| unreadable(&name, &error))?;
    file(name, bytes)
}

fn file(name: String, bytes: Vec<u8>) -> Result<File, Failure> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(File { name, text }),
        Err(_) => Err(Failure::new(format!("{name} is not UTF-8 text")).fix("write it as UTF-8 text")),
    }
}

fn policies_in(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error: io::Error| unreadable(&dir.display().to_string(), &error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if known && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::new(format!("{} holds no *.yaml, *.yml or *.json file", dir.display())));
    }
    Ok(paths)
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read {name}: {error}"))
}
