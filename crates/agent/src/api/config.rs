//! The configuration, and what of it can be changed while the agent runs.

use villus_api::model::{
    DaemonConfiguration, DaemonConfigurationSpec, DaemonConfigurationStatus, Endpoint, EndpointConfigPatch,
};
use villus_api::{ApiError, ApiResult, EndpointRef};
use villus_config::{Origin, Setting};

use crate::node::Node;
use crate::options::{self, AUDIT};

impl Node {
    /// The configuration.
    pub(super) fn configuration(&mut self) -> DaemonConfiguration {
        let spec = options::spec_of(&self.runtime);
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
        let runtime = options::changed_by(self.runtime, spec)?;
        options::keep(&self.state, &mut self.changed_options, spec).map_err(|error| {
            let remedy = villus_durable::remedy(&error);
            ApiError::internal(format!("the changed options cannot be written down: {error}")).hint(remedy)
        })?;
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
        self.follow_audits().map_err(ApiError::internal)?;
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
                AUDIT => audit = Some(options::audit_of(text)?),
                _ => return Err(options::unknown(name)),
            }
        }
        if let (Some(audit), Some(endpoint)) = (audit, self.endpoints.get_mut(&id)) {
            endpoint.file.audit = Some(audit);
            let effective = endpoint.audit();
            endpoint.note("OK", format!("audit mode is {effective}"));
            self.write_record(id).map_err(ApiError::internal)?;
            self.save_endpoint(id);
            self.note_host_audit();
            self.rejudge.insert(id);
            self.wake.rejudge.notify_one();
        }
        Ok(self.model(id))
    }
}
