//! Every option that Villus or Cilium knows, in one table.
//!
//! One file declares the options that work, one the features to come, one what merely adjusts those, one
//! what nobody needs any more. Names lead to a spec directly, as an older name, or
//! as a [`Translation`] into other options.

mod features;
mod routing;
mod served;
mod store;
mod translate;
mod tuning;
mod unneeded;

use crate::spec::{Group, OptionSpec, Support};
use std::{collections::BTreeMap, sync::LazyLock};

pub use translate::Translation;

static TABLE: LazyLock<Vec<OptionSpec>> = LazyLock::new(|| {
    let served = served::OPTIONS.iter().chain(routing::OPTIONS).chain(store::OPTIONS);
    let mut all: Vec<OptionSpec> = served.chain(features::OPTIONS).copied().collect();
    all.extend(features::without_effect());
    all.extend(tuning::options());
    all.extend(unneeded::options());
    all.sort_by_key(|spec| spec.name);
    all
});

static NAMES: LazyLock<BTreeMap<&'static str, Known>> = LazyLock::new(|| {
    let mut names = BTreeMap::new();
    for spec in TABLE.iter() {
        names.insert(spec.name, Known::Option(spec));
        for alias in spec.aliases {
            names.insert(*alias, Known::Alias(spec));
        }
    }
    for translation in &translate::TRANSLATIONS {
        names.insert(translation.name, Known::Translated(translation));
    }
    names
});

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub enum Known {
    /// An option of this name.
    Option(&'static OptionSpec),
    /// An older name of an option.
    Alias(&'static OptionSpec),
    /// An older option that others have taken the place of.
    Translated(&'static Translation),
}

/// All options, by name.
#[must_use]
pub fn options() -> &'static [OptionSpec] {
    &TABLE
}

/// Older options whose values turn into other options.
#[must_use]
pub fn translations() -> &'static [Translation] {
    &translate::TRANSLATIONS
}

/// What a name, current or older, stands for.
#[must_use]
pub fn lookup(name: &str) -> Option<Known> {
    NAMES.get(name).copied()
}

/// The option of this current name.
#[must_use]
pub fn option(name: &str) -> Option<&'static OptionSpec> {
    match lookup(name) {
        Some(Known::Option(spec)) => Some(spec),
        _ => None,
    }
}

/// All names that mean something, older ones included, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.keys().copied()
}

/// The known name nearest to a mistyped one; names that do something come first.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    let useful = TABLE.iter().filter(|s| !matches!(s.support, Support::Unneeded(_))).map(|s| s.name);
    crate::suggest::nearest(name, useful).or_else(|| crate::suggest::nearest(name, names()))
}

/// The options of one group that do something in this version.
pub fn served(group: Group) -> impl Iterator<Item = &'static OptionSpec> {
    TABLE.iter().filter(move |s| {
        s.group == group && matches!(s.support, Support::Served | Support::Command | Support::Kept(_))
    })
}

/// TCP flags by their bits in the header, lowest first.
pub(crate) fn tcp_flags() -> &'static [&'static str] {
    served::TCP_FLAGS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_default_is_a_value_and_every_name_is_unique() {
        let mut seen = BTreeSet::new();
        for spec in options() {
            assert!(seen.insert(spec.name), "{} twice", spec.name);
            for alias in spec.aliases {
                assert!(seen.insert(alias), "{alias} twice");
            }
            if !spec.default.is_empty() || spec.kind.takes_empty() {
                let value = spec.kind.parse(spec.default);
                assert!(value.is_ok(), "{}: {value:?}", spec.name);
            } else {
                assert!(matches!(spec.support, Support::Command), "{} has no default", spec.name);
            }
        }
        for translation in translations() {
            assert!(seen.insert(translation.name), "{} twice", translation.name);
        }
        let good = |n: &str| n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        assert!(seen.iter().all(|n| good(n)));
    }

    #[test]
    fn values_that_pass_in_silence_are_values_and_the_default_is_one() {
        for spec in options() {
            let (Support::Later { off: silent, .. } | Support::Fixed { only: silent, .. }) = spec.support
            else {
                continue;
            };
            let read = |text: &str| spec.kind.parse(text).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
            let silent: Vec<_> = silent.iter().map(|text| read(text)).collect();
            assert!(silent.contains(&read(spec.default)), "{}", spec.name);
        }
    }

    #[test]
    fn served_options_explain_themselves() {
        for spec in options() {
            if matches!(spec.support, Support::Served | Support::Command | Support::Kept(_)) {
                assert!(spec.help.ends_with('.'), "{}", spec.name);
                assert!(spec.group != Group::Other, "{}", spec.name);
            }
        }
    }

    #[test]
    fn nearest_prefers_options_that_do_something() {
        assert_eq!(nearest("enable-ipv5"), Some("enable-ipv4"));
        assert_eq!(nearest("k8s-syn-timeout"), Some("k8s-sync-timeout"));
        assert_eq!(nearest("bogus"), None);
    }
}
