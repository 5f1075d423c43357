//! What lies beside the committed object: hashes of it and of its sources, and the versions of the tools.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use super::toolchain::Toolchain;
use crate::tree;

/// Folders whose files make the object. Tests among them do not count.
const SOURCES: [&str; 3] = ["ebpf", "crates/abi", "crates/path"];

/// The record, written as TOML of one line per fact.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// SHA-256 of the object.
    pub object: String,
    /// [`hash_sources`] when it was built.
    pub sources: String,
    /// What built it.
    pub toolchain: Toolchain,
}

impl Record {
    /// Describes an object that was just built.
    pub fn of(root: &Path, toolchain: &Toolchain, object: &Path) -> Result<Self> {
        Ok(Self {
            object: tree::sha256_file(object)?,
            sources: hash_sources(root)?,
            toolchain: toolchain.clone(),
        })
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix('='));
            let value = line.and_then(|line| line.trim().strip_prefix('"')?.strip_suffix('"'));
            value.map(str::to_owned).with_context(|| format!("no value for {name}"))
        };
        Ok(Self {
            object: value("object")?,
            sources: value("sources")?,
            toolchain: Toolchain {
                rustc: value("rustc")?,
                llvm: value("llvm")?,
                bpf_linker: value("bpf-linker")?,
            },
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, sources, toolchain: Toolchain { rustc, llvm, bpf_linker } } = self;
        writeln!(f, "# Written by ./dev bpf beside villus.bpf.o, compared by ./dev lint.")?;
        writeln!(f, "# SHA-256 of the object, and of the names and bytes of the files it is made of.")?;
        writeln!(f, "object = \"{object}\"")?;
        writeln!(f, "sources = \"{sources}\"")?;
        writeln!(f, "# With these versions a build gives the same bytes.")?;
        writeln!(f, "rustc = \"{rustc}\"\nllvm = \"{llvm}\"\nbpf-linker = \"{bpf_linker}\"")
    }
}

/// SHA-256 over name and hash of every source file of the object.
pub fn hash_sources(root: &Path) -> Result<String> {
    let mut list = String::new();
    for file in tree::files(root)?.iter().filter(|file| is_source(file)) {
        list.push_str(&format!("{} {}\n", tree::sha256_file(&root.join(file))?, file.display()));
    }
    tree::sha256(list.as_bytes())
}

fn is_source(file: &Path) -> bool {
    let is_test = file.components().any(|part| {
        ["tests", "tests.rs", "proptest-regressions"].iter().any(|name| part.as_os_str() == *name)
    });
    let kinds = ["rs", "toml", "lock"];
    SOURCES.iter().any(|folder| file.starts_with(folder))
        && file.extension().is_some_and(|kind| kinds.iter().any(|known| kind == *known))
        && !is_test
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back() {
        let toolchain = Toolchain { rustc: "1.2~deb".into(), llvm: "1:3".into(), bpf_linker: "4".into() };
        let record = Record { object: "aa".into(), sources: "bb".into(), toolchain };
        assert_eq!(Record::parse(&record.to_string()).unwrap(), record);
    }

    #[test]
    fn a_record_without_a_field_names_it() {
        let error = Record::parse("object = \"aa\"\n").unwrap_err();
        assert_eq!(error.to_string(), "no value for sources");
    }

    #[test]
    fn tests_and_prose_are_no_sources() {
        let cases = [
            ("ebpf/src/main.rs", true),
            ("ebpf/Cargo.lock", true),
            ("crates/path/src/parse.rs", true),
            ("crates/path/src/parse/tests.rs", false),
            ("crates/path/tests/model.rs", false),
            ("crates/path/README.md", false),
            ("crates/policy/src/lib.rs", false),
        ];
        for (file, wanted) in cases {
            assert_eq!(is_source(Path::new(file)), wanted, "{file}");
        }
    }
}
