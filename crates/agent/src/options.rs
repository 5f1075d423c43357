//! Options that can be changed while the agent runs, and what of such changes is kept for the next start (`keep-config`).

use std::collections::BTreeMap;

use villus_api::model::DaemonConfigurationSpec;
use villus_api::{ApiError, ApiResult};
use villus_config::Config;
use villus_config::config::{Aggregation, Enforcement};
use villus_policy::Audit;

use crate::AgentError;
use crate::conditions::Conditions;
use crate::kernel::Runtime;
use crate::state::StateDir;

/// Option of audit mode, of the agent and of an endpoint.
pub(crate) const AUDIT: &str = "PolicyAuditMode";
const AGGREGATION: &str = "MonitorAggregationLevel";
const DROPS: &str = "DropNotification";
const TRACES: &str = "TraceNotification";
const VERDICTS: &str = "PolicyVerdictNotification";

/// Below `lib-dir`, the options that were changed while an agent ran.
const OPTIONS: &str = "options.json";

/// The options at the start: those of the configuration, and with `keep-config` what was changed since, which wins.
///
/// # Errors
/// The file of changed options cannot be read for a reason that is not in it.
pub(crate) fn kept(
    config: &Config,
    state: &StateDir,
    conditions: &mut Conditions,
) -> Result<(Runtime, DaemonConfigurationSpec), AgentError> {
    const NAME: &str = "kept options";
    let runtime = Runtime::new(config);
    if !config.endpoints.keep_config {
        return Ok((runtime, DaemonConfigurationSpec::default()));
    }
    let read = |source| AgentError::File { action: "read", path: state.path(OPTIONS), source };
    let changed = match state.load::<DaemonConfigurationSpec>(OPTIONS).map_err(read)? {
        Ok(changed) => changed.unwrap_or_default(),
        Err(damaged) => {
            let what =
                format!("they were damaged ({}) and lie in {}", damaged.reason, damaged.kept.display());
            conditions.note(NAME, Some(what));
            return Ok((runtime, DaemonConfigurationSpec::default()));
        }
    };
    match changed_by(runtime, &changed) {
        Ok(runtime) => Ok((runtime, changed)),
        Err(error) => {
            conditions.note(
                NAME,
                Some(format!("{} is not taken over: {}", state.path(OPTIONS).display(), error.message)),
            );
            Ok((runtime, DaemonConfigurationSpec::default()))
        }
    }
}

/// Writes down what is changed now and was before.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn keep(
    state: &StateDir,
    changed: &mut DaemonConfigurationSpec,
    spec: &DaemonConfigurationSpec,
) -> std::io::Result<()> {
    let mut all = changed.clone();
    all.options.extend(spec.options.clone());
    if spec.policy_enforcement.is_some() {
        all.policy_enforcement.clone_from(&spec.policy_enforcement);
    }
    state.save(OPTIONS, &all)?;
    *changed = all;
    Ok(())
}

/// Options after a change.
///
/// # Errors
/// A name or a value that is not known; nothing is changed.
pub(crate) fn changed_by(mut runtime: Runtime, spec: &DaemonConfigurationSpec) -> ApiResult<Runtime> {
    for (name, text) in &spec.options {
        let on = || on_of(name, text);
        match name.as_str() {
            AUDIT => runtime.audit = audit_of(text)?,
            DROPS => runtime.drops = on()?,
            TRACES => runtime.traces = on()?,
            VERDICTS => runtime.verdicts = on()?,
            AGGREGATION => runtime.aggregation = aggregation_of(name, text)?,
            _ => return Err(unknown(name)),
        }
    }
    if let Some(text) = &spec.policy_enforcement {
        runtime.enforcement = enforcement_of(text)?;
    }
    Ok(runtime)
}

/// Options as the API shows them.
pub(crate) fn spec_of(runtime: &Runtime) -> DaemonConfigurationSpec {
    let on = |on: bool| if on { "Enabled" } else { "Disabled" }.to_owned();
    let aggregation = match runtime.aggregation {
        Aggregation::None => "None",
        Aggregation::Medium => "Medium",
    };
    let enforcement = match runtime.enforcement {
        Enforcement::Default => "default",
        Enforcement::Always => "always",
        Enforcement::Never => "never",
    };
    DaemonConfigurationSpec {
        options: BTreeMap::from([
            (AUDIT.to_owned(), audit_text(runtime.audit).to_owned()),
            (DROPS.to_owned(), on(runtime.drops)),
            (TRACES.to_owned(), on(runtime.traces)),
            (VERDICTS.to_owned(), on(runtime.verdicts)),
            (AGGREGATION.to_owned(), aggregation.to_owned()),
        ]),
        policy_enforcement: Some(enforcement.to_owned()),
    }
}

/// `Enabled`, `Disabled`, `ingress` or `egress`.
pub(crate) fn audit_text(audit: Audit) -> &'static str {
    match audit {
        Audit::BOTH => "Enabled",
        Audit::NONE => "Disabled",
        one => one.name(),
    }
}

pub(crate) fn audit_of(text: &str) -> ApiResult<Audit> {
    text.parse().map_err(|error| ApiError::bad_field(AUDIT, format!("{error}")))
}

fn on_of(name: &str, text: &str) -> ApiResult<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "enabled" | "enable" | "on" | "1" => Ok(true),
        "false" | "disabled" | "disable" | "off" | "0" => Ok(false),
        _ => Err(ApiError::bad_field(name, format!("`{text}` is neither true nor false"))),
    }
}

fn aggregation_of(name: &str, text: &str) -> ApiResult<Aggregation> {
    match text.to_ascii_lowercase().as_str() {
        "none" | "disabled" | "0" => Ok(Aggregation::None),
        "medium" | "3" => Ok(Aggregation::Medium),
        _ => Err(ApiError::bad_field(name, format!("`{text}` is neither none nor medium"))),
    }
}

fn enforcement_of(text: &str) -> ApiResult<Enforcement> {
    match text {
        "default" => Ok(Enforcement::Default),
        "always" => Ok(Enforcement::Always),
        "never" => Ok(Enforcement::Never),
        _ => Err(ApiError::bad_field(
            "policy-enforcement",
            format!("`{text}` is none of default, always and never"),
        )),
    }
}

pub(crate) fn unknown(name: &str) -> ApiError {
    ApiError::bad_field(name, format!("`{name}` cannot be changed while the agent runs"))
        .hint(format!("what can be: {AUDIT}, {AGGREGATION}, {DROPS}, {TRACES}, {VERDICTS}"))
}
