//! The configuration, and what of it can be changed while the agent runs.

use std::collections::BTreeMap;

use villus_api::model::{
    DaemonConfiguration, DaemonConfigurationSpec, DaemonConfigurationStatus, Endpoint, EndpointConfigPatch,
};
use villus_api::{ApiError, ApiResult, EndpointRef};
use villus_config::config::{Aggregation, Enforcement};
use villus_config::{Origin, Setting};

use super::model::AUDIT;
use crate::kernel::Runtime;
use crate::node::Node;

const AGGREGATION: &str = "MonitorAggregationLevel";
const DROPS: &str = "DropNotification";
const TRACES: &str = "TraceNotification";
const VERDICTS: &str = "PolicyVerdictNotification";

impl Node {
    /// The configuration.
    pub(super) fn configuration(&mut self) -> DaemonConfiguration {
        let spec = spec_of(&self.runtime);
        let set = |setting: &&Setting| setting.origin != Origin::Default;
        let text = |setting: &Setting| (setting.name.to_owned(), setting.value.to_string());
        DaemonConfiguration {
            spec: spec.clone(),
            status: DaemonConfigurationStatus {
                realized: spec,
                options: self
                    .config
                    .settings()
                    .map(|s| (s.name.to_owned(), s.value.to_string().into()))
                    .collect(),
                sources: self
                    .config
                    .settings()
                    .filter(set)
                    .map(|setting| (text(setting).0, setting.origin.to_string()))
                    .collect(),
                device_mtu: self.network.mtu,
                route_mtu: self.network.mtu,
                warnings: self.config.warnings.iter().map(ToString::to_string).collect(),
            },
        }
    }

    /// Changes what can be changed, all of it or nothing.
    pub(super) fn configure(&mut self, spec: &DaemonConfigurationSpec) -> ApiResult<()> {
        let mut runtime = self.runtime;
        for (name, text) in &spec.options {
            let on = || on_of(name, text);
            match name.as_str() {
                AUDIT => runtime.audit = on()?,
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
        let before = std::mem::replace(&mut self.runtime, runtime);
        if before.enforcement != runtime.enforcement {
            let settings =
                crate::policy::settings(&self.config, runtime.enforcement).map_err(ApiError::internal)?;
            self.repository.set_settings(settings);
            if self.sources.complete {
                self.follow_policies();
                self.follow_host();
            }
        }
        if before.audit && !runtime.audit {
            // What audit let pass is judged now.
            self.rejudge.extend(self.endpoints.keys().copied());
            self.wake.rejudge.notify_one();
        }
        if self.open {
            self.write_config().map_err(ApiError::internal)?;
        }
        Ok(())
    }

    /// Changes an endpoint's options.
    pub(super) fn configure_endpoint(
        &mut self,
        id: &EndpointRef,
        patch: &EndpointConfigPatch,
    ) -> ApiResult<Endpoint> {
        let id = self.find(id)?;
        let mut audit = None;
        for (name, text) in &patch.options {
            match name.as_str() {
                AUDIT => audit = Some(on_of(name, text)?),
                _ => return Err(unknown(name)),
            }
        }
        if let (Some(audit), Some(endpoint)) = (audit, self.endpoints.get_mut(&id)) {
            endpoint.file.audit = Some(audit);
            endpoint.note("OK", format!("audit mode {}", if audit { "on" } else { "off" }));
            self.install(id).map_err(ApiError::internal)?;
            self.save_endpoint(id);
            self.note_host_audit();
            self.rejudge.insert(id);
            self.wake.rejudge.notify_one();
        }
        Ok(self.model(id))
    }
}

fn spec_of(runtime: &Runtime) -> DaemonConfigurationSpec {
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
            (AUDIT.to_owned(), on(runtime.audit)),
            (DROPS.to_owned(), on(runtime.drops)),
            (TRACES.to_owned(), on(runtime.traces)),
            (VERDICTS.to_owned(), on(runtime.verdicts)),
            (AGGREGATION.to_owned(), aggregation.to_owned()),
        ]),
        policy_enforcement: Some(enforcement.to_owned()),
    }
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

fn unknown(name: &str) -> ApiError {
    ApiError::bad_field(name, format!("`{name}` cannot be changed while the agent runs"))
        .hint(format!("what can be: {AUDIT}, {AGGREGATION}, {DROPS}, {TRACES}, {VERDICTS}"))
}
