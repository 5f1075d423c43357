//! The reference of all options, as Markdown.

use crate::{
    registry,
    spec::{Group, OptionSpec, Support},
};
use std::fmt::Write as _;

/// The text of `docs/options.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(INTRO);
    out.push_str("\n## Options that work\n");
    for group in Group::ALL {
        section(&mut out, group);
    }
    older(&mut out);
    features(&mut out);
    silent(&mut out);
    tuning(&mut out);
    unneeded(&mut out);
    out
}

const INTRO: &str = "\
# Options of the agent

This file is written from the table in `crates/config`; a test keeps it so.
`UPDATE_DOCS=1 cargo test -p villus-config` writes it anew.

An option has the same name everywhere:

| source | form | rank |
| --- | --- | --- |
| flag | `--enable-ipv6=false`; truth values also as `--debug` | 1 |
| environment | `VILLUS_ENABLE_IPV6=false`; an empty variable counts as not set | 2 |
| environment, as Cilium has it | `CILIUM_ENABLE_IPV6=false` | 3 |
| directory, `--config-dir` | a file `enable-ipv6` with the text `false` | 4 |
| YAML file, `--config` | `enable-ipv6: false` | 5 |

The first rank that sets an option decides. In the directory, white space around the text is cut, an empty file
is the empty value (an error where there is none, as for numbers), links are followed, and subdirectories and
names that begin with a dot are skipped, so that a mounted ConfigMap works as it is. In YAML, lists and mappings
may be written as such.

What no one knows, what is no value, and what asks for a feature that is not there stops the start; all that is
wrong is said at once, each with its place and its fix. `villus config check DIR` says the same about a directory
without starting anything; `villus config` shows every value of a running agent and where it came from.

One thing is deliberately not strict. Options of Kubernetes and of metrics
(`k8s-kubeconfig-path`, `prometheus-serve-addr`) do not stop the start although this version serves none of them, so
that the directory of a node that runs today starts unchanged: the agent goes without, and says so in its log and in
`villus status`. Options that would change which packets pass, or how, are never passed over like that.

Durations are written as in Go: `30s`, `5m`, `2h30m`. Truth values are `true` and `false`, or `1` and `0`.
";

fn section(out: &mut String, group: Group) {
    let mut specs = registry::served(group).peekable();
    if specs.peek().is_none() {
        return;
    }
    let _ = writeln!(
        out,
        "\n### {}\n\n| option | value | default | meaning |\n| --- | --- | --- | --- |",
        group.title()
    );
    for spec in specs {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            spec.name,
            value(spec),
            code(spec.default),
            meaning(spec)
        );
    }
}

fn value(spec: &OptionSpec) -> String {
    let label = spec.kind.label();
    match label.split_once(',') {
        _ if spec.unit.is_empty() => label,
        Some((bounds, zero)) => format!("{bounds} {},{zero}", spec.unit),
        None => format!("{label} {}", spec.unit),
    }
}

fn meaning(spec: &OptionSpec) -> String {
    let mut text = spec.help.to_string();
    if let Support::Kept(note) = spec.support {
        let _ = write!(text, " *Checked and kept for a later version, with a warning: {note}.*");
    }
    if let Some(letter) = spec.short {
        let _ = write!(text, " Short: `-{letter}`.");
    }
    text
}

fn code(text: &str) -> String {
    if text.is_empty() { "empty".into() } else { format!("`{text}`") }
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn older(out: &mut String) {
    out.push_str("\n## Older names\n\nAccepted from every source, with a note.\n\n| older name | today |\n| --- | --- |\n");
    let mut rows: Vec<(&str, String)> = Vec::new();
    for spec in registry::options() {
        rows.extend(spec.aliases.iter().map(|alias| (*alias, list([spec.name]))));
    }
    rows.extend(registry::translations().iter().map(|t| (t.name, list(t.targets()))));
    rows.sort();
    for (name, today) in rows {
        let _ = writeln!(out, "| `{name}` | {today} |");
    }
}

fn features(out: &mut String) {
    out.push_str(
        "\n## Options whose feature is still to come, or that leave no choice\n\nThe values listed pass in silence; \
         others stop the start.\n\n| option | passes | others ask for, or why not |\n| --- | --- | --- |\n",
    );
    for spec in registry::options() {
        let (values, text) = match spec.support {
            Support::Later { feature, off } => (off, feature),
            Support::Fixed { only, why } => (only, why),
            _ => continue,
        };
        if is_silent(values) {
            continue;
        }
        let passes = values.iter().map(|v| code(v)).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "| `{}` | {passes} | {text} |", spec.name);
    }
}

/// Both truth values pass: the switch belongs to a feature that Cilium has on by itself.
fn is_silent(values: &[&str]) -> bool {
    values.contains(&"true") && values.contains(&"false")
}

fn silent(out: &mut String) {
    out.push_str(
        "\n## Switches that pass either way\n\nOf features still to come that Cilium turns on by itself: nobody who \
         sets them misses anything.\n\n| feature | options |\n| --- | --- |\n",
    );
    by_text(out, |spec| match spec.support {
        Support::Later { feature, off } if is_silent(off) => Some(feature),
        _ => None,
    });
}

fn tuning(out: &mut String) {
    out.push_str(
        "\n## Options that adjust what is still to come\n\nValues are checked; anything but the default warns that it \
         has no effect yet.\n\n| feature | options |\n| --- | --- |\n",
    );
    by_text(out, |spec| match spec.support {
        Support::Tuning(feature) => Some(feature),
        _ => None,
    });
}

fn unneeded(out: &mut String) {
    out.push_str(
        "\n## Options of Cilium that change nothing\n\nThey warn once, whatever their value.\n\n\
         | reason | options |\n| --- | --- |\n",
    );
    by_text(out, |spec| match spec.support {
        Support::Unneeded(why) => Some(why),
        _ => None,
    });
}

fn by_text(out: &mut String, text: impl Fn(&OptionSpec) -> Option<&'static str>) {
    let mut rows: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
    for spec in registry::options() {
        if let Some(text) = text(spec) {
            rows.entry(text).or_default().push(spec.name);
        }
    }
    for (text, names) in rows {
        let _ = writeln!(out, "| {text} | {} |", list(names));
    }
}
