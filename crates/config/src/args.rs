//! The options as flags of a command line.

use crate::{
    kind::Kind,
    registry,
    spec::{Group, OptionSpec, Support},
};
use clap::{
    Arg, ArgAction, ArgMatches, ValueHint,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
    parser::ValueSource,
};

/// One argument for every name that an option has or had, for `Command::args`.
///
/// Options that this version serves are listed in the help, under the headings of their groups; all others
/// are accepted and hidden. Values are not checked here but with those of all other sources, so that the
/// operator sees one list. Truth values may be given as `--name` alone.
#[must_use]
pub fn all() -> Vec<Arg> {
    let mut args = Vec::new();
    for (order, group) in Group::ALL.into_iter().enumerate() {
        for spec in registry::options().iter().filter(|s| s.group == group) {
            args.push(option(spec, order));
            args.extend(spec.aliases.iter().map(|alias| named(alias, &spec.kind).hide(true)));
        }
    }
    for translation in registry::translations() {
        let arg = named(translation.name, &translation.kind).hide(true);
        args.push(match translation.short {
            Some(letter) => arg.short(letter),
            None => arg,
        });
    }
    args
}

fn option(spec: &'static OptionSpec, order: usize) -> Arg {
    let shown = matches!(spec.support, Support::Served | Support::Command | Support::Kept(_));
    let mut arg = named(spec.name, &spec.kind)
        .help(spec.help)
        .help_heading(spec.group.title())
        .display_order(order)
        .hide(!shown);
    if !spec.default.is_empty() {
        arg = arg.help(format!("{} [default: {}]", spec.help, spec.default));
    }
    match spec.short {
        Some(letter) => arg.short(letter),
        None => arg,
    }
}

fn named(name: &'static str, kind: &Kind) -> Arg {
    let action = if kind.joins_with().is_some() { ArgAction::Append } else { ArgAction::Set };
    let arg = Arg::new(name)
        .long(name)
        .action(action.clone())
        .value_parser(Unchecked(words(kind)))
        .value_name(value_name(kind))
        .hide_possible_values(true)
        .value_hint(hint(name, kind));
    let arg = if matches!(action, ArgAction::Set) { arg.overrides_with(name) } else { arg };
    match kind {
        Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        // Cilium's older switches are flags without a value too, whatever became of them.
        Kind::Ignored => arg.num_args(0..=1).require_equals(true).default_missing_value(""),
        _ => arg.num_args(1).allow_hyphen_values(true),
    }
}

fn words(kind: &Kind) -> Vec<&'static str> {
    match kind {
        Kind::Bool => vec!["true", "false"],
        Kind::Choice(words) => words.iter().copied().filter(|w| !w.is_empty()).collect(),
        _ => Vec::new(),
    }
}

fn value_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "BOOL",
        Kind::Int { .. } => "NUMBER",
        Kind::Duration { .. } => "DURATION",
        Kind::Ratio | Kind::Float => "RATIO",
        Kind::Choice(_) => "WORD",
        Kind::Words(_) | Kind::List | Kind::Devices => "LIST",
        Kind::Map => "KEY=VALUE",
        Kind::Path { .. } | Kind::Socket => "PATH",
        Kind::Ipv4OrAuto | Kind::Ipv6OrAuto => "ADDRESS",
        Kind::Ipv4Pool | Kind::Ipv6Pool | Kind::Ipv4Cidr | Kind::Ipv6Cidr | Kind::Cidrs => "PREFIX",
        Kind::Listen => "ADDRESS:PORT",
        Kind::Mode => "MODE",
        Kind::RateLimits => "LIMITS",
        Kind::ChangeLimit => "SHARE",
        Kind::Output => "PATH",
        Kind::Text | Kind::ClusterName | Kind::Ignored => "TEXT",
    }
}

fn hint(name: &str, kind: &Kind) -> ValueHint {
    match kind {
        Kind::Path { .. } if name.ends_with("dir") || name.ends_with("root") || name == "static-cnp-path" => {
            ValueHint::DirPath
        }
        Kind::Path { .. } | Kind::Socket => ValueHint::FilePath,
        _ => ValueHint::Other,
    }
}

/// The flags that the command line really has, with their texts; repeated lists are joined.
pub(crate) fn given(matches: &ArgMatches) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for name in registry::names() {
        let Ok(Some(values)) = matches.try_get_many::<String>(name) else { continue };
        if matches.value_source(name) != Some(ValueSource::CommandLine) {
            continue;
        }
        let kind = match registry::lookup(name) {
            Some(registry::Known::Option(spec) | registry::Known::Alias(spec)) => spec.kind,
            Some(registry::Known::Translated(translation)) => translation.kind,
            None => continue,
        };
        let values: Vec<&str> = values.map(String::as_str).collect();
        let text = values.join(kind.joins_with().unwrap_or_default());
        out.push((name.to_string(), text));
    }
    out
}

/// Takes any text, and tells shells which ones make sense.
#[derive(Clone)]
struct Unchecked(Vec<&'static str>);

impl TypedValueParser for Unchecked {
    type Value = String;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(cmd, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        if self.0.is_empty() {
            return None;
        }
        Some(Box::new(self.0.iter().map(|word| PossibleValue::new(*word))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> clap::Command {
        clap::Command::new("agent").args(all())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn flags_are_read_as_written() {
        let line = [
            "agent",
            "-D",
            "--enable-ipv6=false",
            "--policy-audit-mode",
            "--mtu",
            "1450",
            "--mtu=1400",
            "--devices=eth0",
            "--devices",
            "eth1,eth2",
            "-t",
            "disabled",
            "--labels=reserved:.* k8s:app",
            "--tofqdns-enable-poller=false",
            "--metrics",
            "-cilium_x",
        ];
        let matches = command().try_get_matches_from(line).unwrap();
        let given: std::collections::BTreeMap<_, _> = given(&matches).into_iter().collect();
        let want = [
            ("debug", "true"),
            ("enable-ipv6", "false"),
            ("policy-audit-mode", "true"),
            ("mtu", "1400"),
            ("devices", "eth0,eth1,eth2"),
            ("tunnel", "disabled"),
            ("labels", "reserved:.* k8s:app"),
            ("tofqdns-enable-poller", "false"),
            ("metrics", "-cilium_x"),
        ];
        assert_eq!(given, want.map(|(n, t)| (n.to_string(), t.to_string())).into());
    }

    #[test]
    fn help_lists_what_is_served_under_headings() {
        let help = command().render_long_help().to_string();
        assert!(help.contains("Connection tracking:"));
        assert!(help.contains("--enable-ipv4"));
        assert!(!help.contains("--bpf-lb-map-max"));
        assert!(!help.contains("--masquerade"));
    }
}
