//! From the labels of a request to those of an endpoint.

use std::collections::BTreeMap;

use villus_api::{ApiError, ApiResult};
use villus_config::Config;
use villus_labels::{
    KEY_CLUSTER, KEY_FIXED_IDENTITY, KEY_NAMESPACE, Label, LabelError, LabelFilter, Labels, source,
};

use crate::AgentError;

/// Which labels an endpoint has and which of them make its identity.
#[derive(Debug, Clone)]
pub(crate) struct LabelRules {
    filter: LabelFilter,
    cluster: Label,
    /// Labels of the identities whose numbers the operator has fixed, by name.
    fixed: BTreeMap<String, Labels>,
}

/// Labels of an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Labelled {
    /// All of them.
    pub all: Labels,
    /// Those that make its identity.
    pub identity: Labels,
}

impl LabelRules {
    /// The rules of the options.
    pub fn new(config: &Config) -> Result<Self, AgentError> {
        let filter = LabelFilter::parse(&config.identity.label_rules)
            .map_err(|error| AgentError::Option { option: "labels", reason: error.to_string() })?;
        let cluster = Label::new(source::K8S, KEY_CLUSTER, &config.node.cluster_name)
            .map_err(|error| AgentError::Option { option: "cluster-name", reason: error.to_string() })?;
        let labels = |name: &String| {
            let label = Label::new(source::RESERVED, name, "");
            Ok((name.clone(), label.and_then(|label| Labels::new([label]))?))
        };
        let fixed = config.identity.fixed.values().map(labels).collect::<Result<_, LabelError>>();
        let fixed = fixed.map_err(|error| AgentError::Option {
            option: "fixed-identity-mapping",
            reason: error.to_string(),
        })?;
        Ok(Self { filter, cluster, fixed })
    }

    /// Reads the labels of a request. Those without a source are `k8s`; namespace and cluster are added where they are
    /// missing.
    pub fn read(&self, texts: &[String], namespace: Option<&str>) -> ApiResult<Labelled> {
        let mut labels = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            let wrong = |message: String| ApiError::bad_field(format!("labels[{n}]"), message);
            let label =
                Label::parse_with_source(text, source::K8S).map_err(|error| wrong(error.to_string()))?;
            label.check_kubernetes_lengths().map_err(|error| wrong(error.to_string()))?;
            if label.source() == source::RESERVED {
                return Err(wrong(format!("`{text}`: labels of the source `reserved` are the agent's own"))
                    .hint("use another source, such as k8s"));
            }
            labels.push(label);
        }
        let labels = Labels::new(labels).map_err(|error| ApiError::bad_field("labels", error.to_string()))?;
        self.complete(labels, namespace)
    }

    fn complete(&self, mut labels: Labels, namespace: Option<&str>) -> ApiResult<Labelled> {
        if labels.get(KEY_NAMESPACE).is_none() {
            let label = Label::new(source::K8S, KEY_NAMESPACE, namespace.unwrap_or("default"))
                .map_err(|error| ApiError::bad_field("k8s-namespace", error.to_string()))?;
            labels = labels.with(label);
        }
        if labels.get(KEY_CLUSTER).is_none() {
            labels = labels.with(self.cluster.clone());
        }
        let fixed = labels.get(KEY_FIXED_IDENTITY).and_then(|label| self.fixed.get(label.value()));
        let identity = fixed.cloned().unwrap_or_else(|| self.filter.identity_labels(&labels));
        Ok(Labelled { all: labels, identity })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules() -> LabelRules {
        LabelRules::new(&Config::default()).unwrap()
    }

    #[test]
    fn namespace_and_cluster_are_added_unless_given() {
        let labelled = rules().read(&["app=web".into()], None).unwrap();
        let texts: Vec<String> = labelled.all.iter().map(|label| label.full_text().to_owned()).collect();
        assert_eq!(
            texts,
            [
                "k8s:app=web",
                "k8s:io.cilium.k8s.policy.cluster=default",
                "k8s:io.kubernetes.pod.namespace=default"
            ]
        );
        let own = rules().read(&["k8s:io.kubernetes.pod.namespace=shop".into()], Some("other")).unwrap();
        assert_eq!(own.all.namespace(), Some("shop"));
    }

    #[test]
    fn the_file_of_prefixes_and_the_option_make_one_filter() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prefixes.json");
        let text = r#"{"version": 1, "valid-prefixes": [{"source": "k8s", "prefix": "app"}]}"#;
        std::fs::write(&file, text).unwrap();
        let sources = villus_config::Sources::new()
            .flag("label-prefix-file", file.to_str().unwrap())
            .flag("labels", "k8s:team k8s:!app-version");
        let rules = LabelRules::new(&Config::load(sources).unwrap()).unwrap();
        let texts = ["app=web", "app-version=3", "team=a", "other=x"].map(str::to_owned);
        let labelled = rules.read(&texts, None).unwrap();
        let relevant: Vec<&str> = labelled.identity.iter().map(Label::key).collect();
        assert_eq!(relevant, ["app", KEY_CLUSTER, KEY_NAMESPACE, "team"]);
    }

    #[test]
    fn a_workload_may_ask_for_an_identity_that_the_operator_has_fixed() {
        let sources = villus_config::Sources::new().flag("fixed-identity-mapping", "128=kv-store");
        let rules = LabelRules::new(&Config::load(sources).unwrap()).unwrap();
        let of = |label: &str| rules.read(&["app=web".into(), label.to_owned()], None).unwrap().identity;
        assert_eq!(of("io.cilium.fixed-identity=kv-store").to_kvstore(), "reserved:kv-store=;");
        assert!(of("io.cilium.fixed-identity=other").to_kvstore().contains("k8s:app=web;"));
    }

    #[test]
    fn wrong_labels_are_refused_by_their_place() {
        for text in ["reserved:host", "k8s:", &format!("k8s:{}=x", "a".repeat(300))] {
            let error = rules().read(&["k8s:ok=1".into(), text.to_owned()], None).unwrap_err();
            assert_eq!((error.status, error.field.as_deref()), (400, Some("labels[1]")), "{text}");
        }
        assert!(rules().read(&["k8s:a=1".into(), "k8s:a=2".into()], None).is_err());
    }
}
