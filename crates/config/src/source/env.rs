//! Options from environment variables.

use super::{Origin, Sources};
use crate::{
    finding::{Finding, Severity},
    registry,
};
use std::{collections::BTreeMap, ffi::OsStr, sync::LazyLock};

/// `VILLUS_` variables that other programs of this project read, or that Cilium's clients read under their
/// prefix: not options of the agent.
const OTHERS: [&str; 10] = [
    "CLUSTER_SIZE",
    "SOCK",
    "HEALTH_SOCK",
    "LOG",
    "K8S_NAMESPACE",
    "K8S_NODE_NAME",
    "CNI_CHAINING_MODE",
    "CNI_CONF",
    "CUSTOM_CNI_CONF",
    "VERSION",
];

static BY_VARIABLE: LazyLock<BTreeMap<String, &'static str>> =
    LazyLock::new(|| registry::names().map(|name| (variable("", name), name)).collect());

/// The variable of an option behind a prefix: capitals, dashes as underscores.
pub(crate) fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Takes one variable into `sources` if it is meant for the agent.
pub(super) fn read(variable: &OsStr, text: &OsStr, sources: &mut Sources) {
    let Some(variable) = variable.to_str() else { return };
    let (ours, rest) = match (variable.strip_prefix("VILLUS_"), variable.strip_prefix("CILIUM_")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ if variable == "K8S_NODE_NAME" => (false, "NODE_NAME"),
        _ => return,
    };
    if text.is_empty() {
        return;
    }
    let origin = Origin::Env { variable: variable.into() };
    let Some(name) = BY_VARIABLE.get(rest) else {
        return unknown(ours, rest, origin, sources);
    };
    let Some(text) = text.to_str() else {
        let fix = format!("set {variable} to UTF-8 text, or unset it");
        return sources.find(super::error(origin, name, "not UTF-8 text".into(), fix));
    };
    if variable.starts_with("CILIUM_") {
        sources.find(Finding {
            severity: Severity::Note,
            option: (*name).into(),
            value: Some(text.trim().into()),
            origin: origin.clone(),
            reason: "variables of Cilium are read after those of Villus".into(),
            fix: format!("rename it to VILLUS_{rest}"),
        });
    }
    sources.push(name, text, origin);
}

/// A variable with our prefix that is no option stops the start, unless it belongs to the project's own
/// scripts (`VILLUS_DEV_`, `VILLUS_TEST_`, `VILLUS_BENCH_`) or to a service of Kubernetes; one with Cilium's prefix may be meant for
/// another program.
fn unknown(ours: bool, rest: &str, origin: Origin, sources: &mut Sources) {
    let scripts = ["DEV_", "TEST_", "BENCH_"].iter().any(|p| rest.starts_with(p));
    if OTHERS.contains(&rest) || scripts || is_service_link(rest) {
        return;
    }
    let name = rest.to_ascii_lowercase().replace('_', "-");
    let (severity, reason) = if ours {
        (Severity::Error, "no option of this name is known".to_string())
    } else {
        (Severity::Warning, "no option of this name is known; the variable is ignored".to_string())
    };
    let fix = match registry::nearest(&name) {
        Some(near) => format!("did you mean {}?", variable("VILLUS_", near)),
        None => origin.removal(),
    };
    sources.find(Finding { severity, option: name, value: None, origin, reason, fix });
}

/// Variables that Kubernetes makes for a service named villus-… or cilium-…, such as
/// `VILLUS_AGENT_SERVICE_HOST` and `VILLUS_AGENT_PORT_9962_TCP_ADDR`.
fn is_service_link(rest: &str) -> bool {
    let port = rest.contains("_PORT_") && ["_TCP", "_UDP", "_SCTP"].iter().any(|p| rest.contains(p));
    rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT") || rest.ends_with("_PORT") || port
}
