//! `villus policy validate`.

use clap::Args;
use serde::Serialize;
use villus_policy::{ObjectKey, ParsedFile, Policy, Problem, Referents, parse, unresolved};

use super::files::{self, File};
use crate::{
    failure::{FAILED, Failure},
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus policy validate policies/ web.yaml\n\nExit code 1 if anything is wrong. What is not enforced is wrong. \
                  Groups and services that a policy names and none of the files has are said: until they come, it means nobody there."
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
    /// What its policies refer to and no file has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

impl Checked {
    /// Checks files, and what they refer to in each other.
    fn all(files: &[File]) -> Vec<Self> {
        let parsed: Vec<_> = files.iter().map(|file| parse(&file.name, &file.text)).collect();
        let mut referents = Referents::default();
        for referent in parsed.iter().flatten().flat_map(|parsed| &parsed.referents) {
            referents.upsert(referent.clone());
        }
        let checked = files.iter().zip(parsed).map(|(file, parsed)| match parsed {
            Ok(parsed) => Self::valid(file, parsed, &referents),
            Err(refused) => Self {
                file: file.name.clone(),
                valid: false,
                policies: Vec::new(),
                referents: Vec::new(),
                problems: refused.problems,
                missing: Vec::new(),
            },
        });
        checked.collect()
    }

    fn valid(file: &File, parsed: ParsedFile, referents: &Referents) -> Self {
        let missing_of = |policy: &Policy| {
            let objects = unresolved(policy, referents).into_iter().filter(|missing| !missing.is_port);
            let line = |missing: villus_policy::Unresolved| {
                let at = missing.position.map(|at| format!(":{}", at.line)).unwrap_or_default();
                let name = &policy.key;
                format!(
                    "{}{at}: {name} {} names {}, which none of these files has: until it comes, it means nobody",
                    file.name, missing.path, missing.what
                )
            };
            objects.map(line).collect::<Vec<_>>()
        };
        Self {
            file: file.name.clone(),
            valid: true,
            missing: parsed.policies.iter().flat_map(missing_of).collect(),
            policies: parsed.policies.into_iter().map(|policy| policy.key).collect(),
            referents: parsed.referents.into_iter().map(|referent| referent.key).collect(),
            problems: parsed.warnings,
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
        let problems = self.problems.iter().map(|problem| format!("  {word}{problem}\n"));
        let missing = self.missing.iter().map(|missing| format!("  warning: {missing}\n"));
        [format!("{}: {verdict}\n", self.file)].into_iter().chain(problems).chain(missing).collect()
    }
}

pub fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let checked = Checked::all(&files::read(&args.files)?);
    args.output.print(&checked, || checked.iter().map(Checked::text).collect())?;
    if checked.iter().all(|checked| checked.valid) { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

/// Fails if any of the files is wrong, having said what is.
pub fn refuse(files: &[File]) -> Result<(), Failure> {
    let wrong: Vec<Checked> = Checked::all(files).into_iter().filter(|checked| !checked.valid).collect();
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
