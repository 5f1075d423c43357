//! Older options that others have taken the place of.

use crate::{kind::Kind, kind::int, value::Value};

/// An older option whose value becomes values of other options.
#[derive(Debug)]
pub struct Translation {
    /// The older name.
    pub name: &'static str,
    /// Values it takes.
    pub kind: Kind,
    /// One-letter flag.
    pub short: Option<char>,
    /// A value that asks for nothing this version lacks; empty where every value is good.
    pub off: &'static str,
    becomes: Becomes,
}

#[derive(Debug)]
enum Becomes {
    /// For each value, the options it sets.
    Options(&'static [(&'static str, &'static [(&'static str, &'static str)])]),
    /// A number of seconds becomes a duration of this option.
    Seconds(&'static str),
}

pub(super) const TRANSLATIONS: [Translation; 4] = [
    Translation {
        name: "tunnel",
        kind: Kind::Choice(&["vxlan", "geneve", "disabled"]),
        short: Some('t'),
        off: "disabled",
        becomes: Becomes::Options(&[
            ("vxlan", &[("routing-mode", "tunnel"), ("tunnel-protocol", "vxlan")]),
            ("geneve", &[("routing-mode", "tunnel"), ("tunnel-protocol", "geneve")]),
            ("disabled", &[("routing-mode", "native")]),
        ]),
    },
    Translation {
        name: "disable-ipv4",
        kind: Kind::Bool,
        short: None,
        off: "",
        becomes: Becomes::Options(&[
            ("true", &[("enable-ipv4", "false")]),
            ("false", &[("enable-ipv4", "true")]),
        ]),
    },
    Translation {
        name: "enable-tcx",
        kind: Kind::Bool,
        short: None,
        off: "",
        becomes: Becomes::Options(&[
            ("true", &[("attach-mode", "auto")]),
            ("false", &[("attach-mode", "tc")]),
        ]),
    },
    Translation {
        name: "conntrack-garbage-collector-interval",
        kind: int(0, 86_400),
        short: None,
        off: "",
        becomes: Becomes::Seconds("conntrack-gc-interval"),
    },
];

// === impl Translation ===

impl Translation {
    /// The options that a value sets, with their texts.
    #[must_use]
    pub fn of(&self, value: &Value) -> Vec<(&'static str, String)> {
        let text = value.to_string();
        match self.becomes {
            Becomes::Seconds(name) => vec![(name, format!("{text}s"))],
            Becomes::Options(table) => table
                .iter()
                .filter(|(from, _)| *from == text)
                .flat_map(|(_, to)| to.iter().map(|(name, value)| (*name, (*value).to_string())))
                .collect(),
        }
    }

    /// Names of the options that take its place.
    #[must_use]
    pub fn targets(&self) -> Vec<&'static str> {
        let mut names = match self.becomes {
            Becomes::Seconds(name) => vec![name],
            Becomes::Options(table) => table.iter().flat_map(|(_, to)| to.iter().map(|(n, _)| *n)).collect(),
        };
        names.sort_unstable();
        names.dedup();
        names
    }
}
