//! Typed access to settings while a configuration is made.

use crate::{
    finding::{Finding, Severity},
    resolve::Setting,
    source::Origin,
    value::Value,
};
use std::{collections::BTreeMap, path::PathBuf, str::FromStr, time::Duration};

/// Takes values out of settings. A name or type that the table of options does not have is a mistake of the
/// program, reported as an error; a test reads every field, so it cannot happen in a release.
pub(super) struct Reader<'a> {
    settings: &'a BTreeMap<&'static str, Setting>,
    findings: Vec<Finding>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a BTreeMap<&'static str, Setting>) -> Self {
        Self { settings, findings: Vec::new() }
    }

    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    fn take<T: Default>(&mut self, name: &'static str, pick: impl Fn(&Value) -> Option<T>) -> T {
        if let Some(value) = self.settings.get(name).and_then(|s| pick(&s.value)) {
            return value;
        }
        self.findings.push(Finding {
            severity: Severity::Error,
            option: name.into(),
            value: None,
            origin: Origin::Default,
            reason: "the table of options and the configuration disagree".into(),
            fix: "report this as a defect of Villus".into(),
        });
        T::default()
    }

    pub(super) fn bool(&mut self, name: &'static str) -> bool {
        self.take(name, |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A whole number; bounds that exceed `u32` saturate.
    pub(super) fn u32(&mut self, name: &'static str) -> u32 {
        self.take(name, |v| match v {
            Value::Int(n) => Some(u32::try_from(*n).unwrap_or(u32::MAX)),
            Value::Mode(bits) => Some(*bits),
            _ => None,
        })
    }

    /// A whole number of which 0 means "not given".
    pub(super) fn u32_unless_zero(&mut self, name: &'static str) -> Option<u32> {
        Some(self.u32(name)).filter(|n| *n != 0)
    }

    pub(super) fn f64(&mut self, name: &'static str) -> f64 {
        self.take(name, |v| match v {
            Value::Float(n) => Some(*n),
            _ => None,
        })
    }

    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        self.take(name, |v| match v {
            Value::Duration(d) => Some(*d),
            _ => None,
        })
    }

    pub(super) fn duration_unless_zero(&mut self, name: &'static str) -> Option<Duration> {
        Some(self.duration(name)).filter(|d| !d.is_zero())
    }

    pub(super) fn text(&mut self, name: &'static str) -> String {
        self.take(name, |v| match v {
            Value::Text(t) => Some(t.clone()),
            _ => None,
        })
    }

    pub(super) fn text_unless_empty(&mut self, name: &'static str) -> Option<String> {
        Some(self.text(name)).filter(|t| !t.is_empty())
    }

    pub(super) fn path(&mut self, name: &'static str) -> PathBuf {
        self.text(name).into()
    }

    pub(super) fn path_unless_empty(&mut self, name: &'static str) -> Option<PathBuf> {
        self.text_unless_empty(name).map(Into::into)
    }

    /// An address or prefix; `None` for `auto` and for the empty text.
    pub(super) fn net<T: FromStr>(&mut self, name: &'static str) -> Option<T> {
        self.text(name).parse().ok()
    }

    pub(super) fn list(&mut self, name: &'static str) -> Vec<String> {
        self.take(name, |v| match v {
            Value::List(l) => Some(l.clone()),
            _ => None,
        })
    }

    pub(super) fn map(&mut self, name: &'static str) -> BTreeMap<String, String> {
        self.take(name, |v| match v {
            Value::Map(m) => Some(m.clone()),
            _ => None,
        })
    }

    /// Whether some source sets the option.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.settings.get(name).is_some_and(|s| s.origin != Origin::Default)
    }
}
