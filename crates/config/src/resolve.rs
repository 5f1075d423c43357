//! From what the sources say to one checked value for every option.

use crate::{
    finding::{Finding, Severity},
    registry::{self, Known, Translation},
    source::{Origin, Raw},
    spec::{OptionSpec, Support},
    value::Value,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The value of one option and where it came from.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Setting {
    /// The option's current name.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
    /// The source that has the last word.
    pub origin: Origin,
    /// The name under which the source has it, where that is an older one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spelled: Option<String>,
    /// What the agent does with it: `served`, `kept`, `later` and so on, see [`Support::word`].
    pub support: &'static str,
}

/// All settings by name, and what was found on the way.
pub(crate) struct Resolved {
    pub(crate) settings: BTreeMap<&'static str, Setting>,
    pub(crate) findings: Vec<Finding>,
}

/// One source's word on one option.
struct Candidate {
    raw: Raw,
    /// The text for the option itself, where an older option was translated.
    text: String,
    spelling: Spelling,
}

/// How a source spells an option; the later wins within one source.
#[derive(Clone, Copy)]
enum Spelling {
    Translated(&'static Translation),
    Older,
    Current,
}

/// Resolves what the sources say: one candidate wins for each option, and each is checked.
pub(crate) fn resolve(raws: Vec<Raw>, findings: Vec<Finding>) -> Resolved {
    let mut out = Resolved { settings: BTreeMap::new(), findings };
    let mut by_option: BTreeMap<&'static str, Vec<Candidate>> = BTreeMap::new();
    for raw in raws {
        for (name, candidate) in out.interpret(raw) {
            by_option.entry(name).or_default().push(candidate);
        }
    }
    for spec in registry::options() {
        let setting = match by_option.remove(spec.name) {
            Some(candidates) => out.decide(spec, candidates),
            None => None,
        };
        let setting = setting.or_else(|| default(spec));
        out.settings.extend(setting.map(|s| (spec.name, s)));
    }
    out
}

fn default(spec: &'static OptionSpec) -> Option<Setting> {
    let value = spec.kind.parse(spec.default).ok()?;
    Some(Setting {
        name: spec.name,
        value,
        origin: Origin::Default,
        spelled: None,
        support: spec.support.word(),
    })
}

// === impl Resolved ===

impl Resolved {
    /// The options that one entry of a source is about.
    fn interpret(&mut self, raw: Raw) -> Vec<(&'static str, Candidate)> {
        match registry::lookup(&raw.name) {
            None => {
                self.findings.push(unknown(raw));
                Vec::new()
            }
            Some(Known::Option(spec)) => {
                vec![(spec.name, Candidate { text: raw.text.clone(), raw, spelling: Spelling::Current })]
            }
            Some(Known::Alias(spec)) => {
                self.note(
                    &raw,
                    format!("older name of {}", spec.name),
                    format!("rename it to {}", spec.name),
                );
                vec![(spec.name, Candidate { text: raw.text.clone(), raw, spelling: Spelling::Older })]
            }
            Some(Known::Translated(translation)) => self.translate(translation, raw),
        }
    }

    fn translate(&mut self, translation: &'static Translation, raw: Raw) -> Vec<(&'static str, Candidate)> {
        let value = match translation.kind.parse(&raw.text) {
            Ok(value) => value,
            Err(reason) => {
                self.findings.push(of(&raw, Severity::Error, reason, correct(&raw.origin)));
                return Vec::new();
            }
        };
        let targets = translation.of(&value);
        let now = targets.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" and ");
        self.note(&raw, format!("older option, read as {now}"), format!("write {now} instead"));
        let candidate =
            |text| Candidate { raw: raw.clone(), text, spelling: Spelling::Translated(translation) };
        targets.into_iter().map(|(name, text)| (name, candidate(text))).collect()
    }

    /// Picks the winner of one option's candidates and checks it.
    fn decide(&mut self, spec: &'static OptionSpec, mut candidates: Vec<Candidate>) -> Option<Setting> {
        candidates.sort_by_key(Candidate::rank);
        let winner = candidates.pop()?;
        if !matches!(spec.support, Support::Unneeded(_)) {
            for loser in &candidates {
                self.overridden(spec, loser, &winner);
            }
        }
        let value = match spec.kind.parse(&winner.text) {
            Ok(value) => value,
            Err(reason) => {
                self.findings.push(of(&winner.raw, Severity::Error, reason, correct(&winner.raw.origin)));
                return None;
            }
        };
        self.findings.extend(verdict(spec, &winner, &value));
        let spelled = (winner.raw.name != spec.name).then(|| winner.raw.name.clone());
        Some(Setting {
            name: spec.name,
            value,
            origin: winner.raw.origin,
            spelled,
            support: spec.support.word(),
        })
    }

    /// A value that another source overrides is not in force: it only matters if it is wrong, or if one
    /// source contradicts itself.
    fn overridden(&mut self, spec: &OptionSpec, loser: &Candidate, winner: &Candidate) {
        let by = format!("overridden by {} ({})", winner.raw.name, winner.raw.origin);
        let reason = match spec.kind.parse(&loser.text) {
            Err(reason) => format!("{reason}; {by}"),
            Ok(value) => {
                let same_source = loser.raw.origin.rank() == winner.raw.origin.rank();
                if !same_source || spec.kind.parse(&winner.text) == Ok(value) {
                    return;
                }
                by
            }
        };
        let fix = loser.raw.origin.removal();
        self.findings.push(of(&loser.raw, Severity::Warning, reason, fix));
    }

    fn note(&mut self, raw: &Raw, reason: String, fix: String) {
        self.findings.push(of(raw, Severity::Note, reason, fix));
    }
}

// === impl Candidate ===

impl Candidate {
    fn rank(&self) -> (u8, u8) {
        let spelling = match self.spelling {
            Spelling::Translated(_) => 0,
            Spelling::Older => 1,
            Spelling::Current => 2,
        };
        (self.raw.origin.rank(), spelling)
    }
}

fn of(raw: &Raw, severity: Severity, reason: String, fix: String) -> Finding {
    Finding {
        severity,
        option: raw.name.clone(),
        value: Some(raw.text.clone()),
        origin: raw.origin.clone(),
        reason,
        fix,
    }
}

fn correct(origin: &Origin) -> String {
    format!("correct the value, or {}", origin.removal())
}

fn unknown(raw: Raw) -> Finding {
    let fix = match registry::nearest(&raw.name) {
        Some(near) => format!("did you mean {near}? Otherwise {}", raw.origin.removal()),
        None => raw.origin.removal(),
    };
    of(&raw, Severity::Error, "no option of this name is known".into(), fix)
}

/// What is to be said about a value that is one of its kind.
fn verdict(spec: &OptionSpec, winner: &Candidate, value: &Value) -> Option<Finding> {
    let raw = &winner.raw;
    let is = |texts: &[&str]| texts.iter().any(|text| spec.kind.parse(text).is_ok_and(|v| v == *value));
    let warn = |reason: String| {
        let fix = format!("nothing need be done; to be rid of this warning, {}", raw.origin.removal());
        Some(of(raw, Severity::Warning, reason, fix))
    };
    match spec.support {
        Support::Served => None,
        Support::Command if raw.origin.rank() > 2 => None,
        Support::Command => Some(of(
            raw,
            Severity::Error,
            "can be set by a flag or in the environment only".into(),
            raw.origin.removal(),
        )),
        Support::Kept(_) | Support::Tuning(_) if is(&[spec.default]) => None,
        Support::Kept(note) => warn(note.into()),
        Support::Tuning(feature) => warn(format!("has no effect: this version does not have {feature} yet")),
        Support::Unneeded(why) => warn(format!("changes nothing: {why}")),
        Support::Later { off, .. } if is(off) => None,
        Support::Fixed { only, .. } if is(only) => None,
        Support::Later { feature, off } => {
            Some(of(raw, Severity::Error, format!("not supported yet: {feature}"), without(winner, off)))
        }
        Support::Fixed { only, why } => {
            Some(of(raw, Severity::Error, format!("not supported: {why}"), without(winner, only)))
        }
    }
}

/// How to go without what a setting asks for.
fn without(winner: &Candidate, values: &[&'static str]) -> String {
    let value = match winner.spelling {
        Spelling::Translated(translation) => translation.off,
        _ => values.first().copied().unwrap_or_default(),
    };
    let removal = winner.raw.origin.removal();
    if value.is_empty() { removal } else { format!("{removal}, or set it to {value}") }
}
