//! Where options come from.

mod dir;
pub(crate) mod env;
mod yaml;

use crate::finding::{Finding, Severity};
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Origin {
    /// No source sets the option.
    Default,
    /// A flag of the command line.
    Flag {
        /// Its name, without dashes in front.
        name: String,
    },
    /// An environment variable.
    Env {
        /// Its name.
        variable: String,
    },
    /// A file of the directory of options.
    Dir {
        /// The file.
        path: PathBuf,
    },
    /// An entry of the YAML file.
    File {
        /// The file.
        path: PathBuf,
        /// Line of the entry, from 1; 0 where the file as a whole is meant.
        line: usize,
    },
}

impl Origin {
    /// Rank of the source: the higher wins.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Dir { .. } => 2,
            Self::Env { variable } if variable.starts_with("VILLUS_") => 4,
            Self::Env { .. } => 3,
            Self::Flag { .. } => 5,
        }
    }

    /// How an operator takes the setting back.
    pub(crate) fn removal(&self) -> String {
        match self {
            Self::Default => "leave it".into(),
            Self::Flag { name } => format!("remove the flag --{name}"),
            Self::Env { variable } => format!("unset {variable}"),
            Self::Dir { path } => format!("remove the file {}", path.display()),
            Self::File { path, line } => format!("remove line {line} of {}", path.display()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag { name } => write!(f, "--{name}"),
            Self::Env { variable } => write!(f, "${variable}"),
            Self::Dir { path } => path.display().fmt(f),
            Self::File { path, line: 0 } => path.display().fmt(f),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One option as a source has it, before anything was checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Raw {
    /// Name as written, in the spelling of options.
    pub(crate) name: String,
    /// Text as written, trimmed.
    pub(crate) text: String,
    /// Where.
    pub(crate) origin: Origin,
}

/// Flags, environment, directory and file from which a configuration is made.
///
/// The rank is: flag, `VILLUS_` variable, `CILIUM_` variable, directory, YAML file, default. The directory
/// and the file can themselves be named by a flag or a variable (`config-dir`, `config`).
#[derive(Clone, Default, Debug)]
pub struct Sources {
    raws: Vec<Raw>,
    findings: Vec<Finding>,
    dir: Option<PathBuf>,
    file: Option<PathBuf>,
}

impl Sources {
    /// No source: all defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a flag by its name, without dashes in front.
    #[must_use]
    pub fn flag(mut self, name: &str, text: &str) -> Self {
        self.push(name, text, Origin::Flag { name: name.into() });
        self
    }

    /// Adds the flags of a command line that [`crate::args::all`] has read.
    #[must_use]
    pub fn matches(self, matches: &clap::ArgMatches) -> Self {
        crate::args::given(matches).into_iter().fold(self, |sources, (name, text)| sources.flag(&name, &text))
    }

    /// Adds environment variables: `VILLUS_…`, `CILIUM_…` and `K8S_NODE_NAME`; all others are not looked
    /// at. Empty ones count as not set.
    #[must_use]
    pub fn env(
        mut self,
        variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    ) -> Self {
        for (variable, text) in variables {
            env::read(&variable, &text, &mut self);
        }
        self
    }

    /// Adds the environment of this process.
    #[must_use]
    pub fn process_env(self) -> Self {
        self.env(std::env::vars_os())
    }

    /// Names the directory with one file per option, as if by `--config-dir`.
    #[must_use]
    pub fn dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.dir = Some(path.into());
        self
    }

    /// Names the YAML file, as if by `--config`.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    fn push(&mut self, name: &str, text: &str, origin: Origin) {
        self.raws.push(Raw { name: name.into(), text: text.trim().into(), origin });
    }

    fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Reads directory and file, and returns everything the sources say.
    pub(crate) fn read(mut self) -> (Vec<Raw>, Vec<Finding>) {
        if let Some(path) = self.dir.clone().or_else(|| self.named("config-dir")) {
            dir::read(&path, &mut self);
        }
        if let Some(path) = self.file.clone().or_else(|| self.named("config")) {
            yaml::read(&path, &mut self);
        }
        (self.raws, self.findings)
    }

    /// The path that a flag or variable gives for `config-dir` or `config`.
    fn named(&self, name: &str) -> Option<PathBuf> {
        let given = self.raws.iter().filter(|raw| raw.name == name && raw.origin.rank() > 2);
        given
            .max_by_key(|raw| raw.origin.rank())
            .filter(|raw| !raw.text.is_empty())
            .map(|raw| raw.text.clone().into())
    }
}

/// A file's text for options, or what is wrong with it.
fn text_of(path: &Path) -> Result<String, (String, String)> {
    const LIMIT: u64 = 1 << 20;
    let failed =
        |e: std::io::Error| (format!("cannot be read: {e}"), "make it readable, or remove it".to_string());
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(("not a regular file".into(), "put a regular file there, or remove it".into()));
    }
    if meta.len() > LIMIT {
        return Err(("greater than 1 MiB, which no option is".into(), "remove it".into()));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|_| ("not UTF-8 text".into(), "write it as UTF-8 text".into()))
}

pub(crate) fn error(origin: Origin, option: &str, reason: String, fix: String) -> Finding {
    Finding { severity: Severity::Error, option: option.into(), value: None, origin, reason, fix }
}
