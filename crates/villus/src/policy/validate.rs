//! `villus policy validate`.

use clap::Args;
use serde::Serialize;
use villus_policy::{ObjectKey, Problem, parse};

use super::files::{self, File};
use crate::{
    failure::{FAILED, Failure},
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus policy validate policies/ web.yaml\n\nExit code 1 if anything is wrong. What is not enforced is wrong."
)]
pub struct ValidateArgs {
    /// Files of YAML or JSON, directories of them, - for standard input.
    #[arg(required = true, value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What one file holds and what is wrong with it.
#[derive(Serialize)]
struct Checked {
    file: String,
    valid: bool,
    policies: Vec<ObjectKey>,
    /// What policies can refer to: groups of prefixes, services and their backends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    referents: Vec<ObjectKey>,
    problems: Vec<Problem>,
}

impl Checked {
    fn of(file: &File) -> Self {
        match parse(&file.name, &file.text) {
            Ok(parsed) => Self {
                file: file.name.clone(),
                valid: true,
                policies: parsed.policies.into_iter().map(|policy| policy.key).collect(),
                referents: parsed.referents.into_iter().map(|referent| referent.key).collect(),
                problems: parsed.warnings,
            },
            Err(refused) => Self {
                file: file.name.clone(),
                valid: false,
                policies: Vec::new(),
                referents: Vec::new(),
                problems: refused.problems,
            },
        }
    }

    fn text(&self) -> String {
        let names: Vec<String> =
            self.policies.iter().chain(&self.referents).map(ToString::to_string).collect();
        let verdict = match (self.valid, names.as_slice()) {
            (false, _) => "not valid".to_owned(),
            (true, []) => "valid, no policy".to_owned(),
            (true, names) => format!("valid: {}", names.join(", ")),
        };
        let word = if self.valid { "warning: " } else { "" };
        self.problems
            .iter()
            .fold(format!("{}: {verdict}\n", self.file), |text, problem| format!("{text}  {word}{problem}\n"))
    }
}

pub fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let checked: Vec<Checked> = files::read(&args.files)?.iter().map(Checked::of).collect();
    args.output.print(&checked, || checked.iter().map(Checked::text).collect())?;
    if checked.iter().all(|checked| checked.valid) { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

/// Fails if any of the files is wrong, having said what is.
pub fn refuse(files: &[File]) -> Result<(), Failure> {
    let wrong: Vec<Checked> = files.iter().map(Checked::of).filter(|checked| !checked.valid).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    for problem in wrong.iter().flat_map(|checked| &checked.problems) {
        out::complain(&problem.to_string());
    }
    let names: Vec<&str> = wrong.iter().map(|checked| checked.file.as_str()).collect();
    Err(Failure::new(format!("not imported: {} cannot be enforced as written", names.join(", ")))
        .fix("correct what is named above; nothing was changed"))
}
