//! Identities that nobody allocates: reserved for everybody, well known, or fixed by an operator
//! (reference `kvstore` 1.7).

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;
use villus_labels::{
    KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, KEY_SERVICE_ACCOUNT, Label, LabelError, Labels,
    NumericIdentity, source,
};

/// Distance between the two numbers of a well-known component: the second is for pods that carry the name of
/// their namespace as a label of the namespace.
const WITH_NAMESPACE_NAME: u32 = 8;
/// The label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
const KUBE_SYSTEM: &str = "kube-system";

/// A component that every agent numbers alike.
struct Component {
    number: u32,
    service_account: &'static str,
    /// Its labels, besides namespace, service account and cluster.
    labels: &'static [(&'static str, &'static str)],
}

/// Name services, in [`KUBE_SYSTEM`]. Those of Cilium's own etcd are gone from the field and left out.
const DNS: [Component; 4] = [
    Component { number: 102, service_account: "kube-dns", labels: &[("k8s-app", "kube-dns")] },
    Component {
        number: 103,
        service_account: "kube-dns",
        labels: &[("k8s-app", "kube-dns"), ("eks.amazonaws.com/component", "kube-dns")],
    },
    Component { number: 104, service_account: "coredns", labels: &[("k8s-app", "kube-dns")] },
    Component {
        number: 106,
        service_account: "coredns",
        labels: &[("k8s-app", "kube-dns"), ("eks.amazonaws.com/component", "coredns")],
    },
];
const OPERATOR: Component = Component {
    number: 105,
    service_account: "cilium-operator",
    labels: &[
        ("name", "cilium-operator"),
        ("io.cilium/app", "operator"),
        ("app.kubernetes.io/part-of", "cilium"),
        ("app.kubernetes.io/name", "cilium-operator"),
    ],
};

/// The identities that resolve without asking anybody.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    labels: BTreeMap<NumericIdentity, Labels>,
    numbers: HashMap<Labels, NumericIdentity>,
}

/// Why a fixed identity was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReservedError {
    /// The number is not one an operator may fix.
    #[error("fixed-identity-mapping: {0} is not in 128..=255")]
    Number(u32),
    /// The number is none.
    #[error("fixed-identity-mapping: `{0}` is no number; write NUMBER=NAME, as in 128=kv-store")]
    NoNumber(String),
    /// The number or the name is there already.
    #[error("fixed-identity-mapping: `{number}={name}` is there already, as `{old}`")]
    Twice {
        /// The number asked for.
        number: u32,
        /// The name asked for.
        name: String,
        /// What there is.
        old: String,
    },
    /// The name can't be a label.
    #[error("fixed-identity-mapping: `{name}`: {source}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: LabelError,
    },
}

// === impl Reserved ===

impl Reserved {
    /// Those reserved for everybody: host, world and so on.
    pub fn new() -> Self {
        let mut reserved = Self::default();
        for (number, _) in NumericIdentity::reserved() {
            if let Some(labels) = number.reserved_labels() {
                reserved.insert(number, labels);
            }
        }
        reserved
    }

    /// Adds the well-known components of a Kubernetes cluster; `namespace` is the one the operator runs in
    /// (`enable-well-known-identities`).
    ///
    /// # Errors
    /// When the cluster's name or the namespace can't be the value of a label.
    pub fn with_well_known(mut self, cluster: &str, namespace: &str) -> Result<Self, LabelError> {
        let dns = DNS.iter().map(|component| (component, KUBE_SYSTEM));
        for (component, namespace) in dns.chain([(&OPERATOR, namespace)]) {
            let account = component.service_account;
            let own = [(KEY_NAMESPACE, namespace), (KEY_SERVICE_ACCOUNT, account), (KEY_CLUSTER, cluster)];
            let all = own.iter().chain(component.labels);
            let labels = all.map(|(key, value)| Label::new(source::K8S, key, value));
            let labels = Labels::new(labels.collect::<Result<Vec<_>, _>>()?)?;
            let name_key = format!("{KEY_NAMESPACE_LABELS}{NAMESPACE_NAME}");
            let named = labels.with(Label::new(source::K8S, &name_key, namespace)?);
            self.insert(NumericIdentity(component.number), labels);
            self.insert(NumericIdentity(component.number + WITH_NAMESPACE_NAME), named);
        }
        Ok(self)
    }

    /// Adds `reserved:<name>` under a number of the operator's choice (`fixed-identity-mapping`).
    ///
    /// # Errors
    /// When the number is not in 128..=255, or number or name are taken.
    pub fn with_fixed(mut self, number: u32, name: &str) -> Result<Self, ReservedError> {
        let id = NumericIdentity(number);
        if !(NumericIdentity::USER_RESERVED_MIN..NumericIdentity::ALLOCATED_MIN).contains(&id) {
            return Err(ReservedError::Number(number));
        }
        let label = Label::new(source::RESERVED, name, "");
        let labels = label.and_then(|label| Labels::new([label]));
        let labels = labels.map_err(|source| ReservedError::Name { name: name.to_owned(), source })?;
        let taken = self.numbers.get(&labels).map(ToString::to_string);
        let taken = taken.or_else(|| self.labels.get(&id).map(ToString::to_string));
        if let Some(old) = taken {
            return Err(ReservedError::Twice { number, name: name.to_owned(), old });
        }
        self.insert(id, labels);
        Ok(self)
    }

    /// Those of a cluster's configuration: `fixed` has numbers and names as `fixed-identity-mapping` gives them.
    ///
    /// # Errors
    /// When something of it can't be.
    pub fn with_mapping<'a>(
        self,
        fixed: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ReservedError> {
        fixed.into_iter().try_fold(self, |reserved, (number, name)| {
            let number = number.parse().map_err(|_| ReservedError::NoNumber(number.to_owned()))?;
            reserved.with_fixed(number, name)
        })
    }

    /// The number of exactly these labels.
    pub fn number(&self, labels: &Labels) -> Option<NumericIdentity> {
        self.numbers.get(labels).copied()
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = (NumericIdentity, &Labels)> {
        self.labels.iter().map(|(number, labels)| (*number, labels))
    }

    fn insert(&mut self, number: NumericIdentity, labels: Labels) {
        self.numbers.insert(labels.clone(), number);
        self.labels.insert(number, labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_labels_have_their_numbers() {
        let reserved = Reserved::new();
        for (text, number) in
            [("reserved:host", 1), ("reserved:world", 2), ("reserved:health", 4), ("reserved:remote-node", 6)]
        {
            let labels = Labels::parse_list(text, "k8s").unwrap();
            assert_eq!(reserved.number(&labels), Some(NumericIdentity(number)));
        }
        let both = Labels::parse_list("reserved:kube-apiserver,reserved:remote-node", "k8s").unwrap();
        assert_eq!(reserved.number(&both), Some(NumericIdentity::KUBE_APISERVER));
        let more = Labels::parse_list("reserved:host,k8s:a=b", "k8s").unwrap();
        assert_eq!(reserved.number(&more), None, "only exactly these labels");
    }

    #[test]
    fn well_known_components_have_two_numbers_each() {
        let reserved = Reserved::new().with_well_known("c1", "cilium").unwrap();
        let text = "k8s:io.cilium.k8s.policy.cluster=c1;k8s:io.cilium.k8s.policy.serviceaccount=coredns;\
                    k8s:io.kubernetes.pod.namespace=kube-system;k8s:k8s-app=kube-dns;";
        let labels = Labels::parse_kvstore(text).unwrap();
        assert_eq!(reserved.number(&labels), Some(NumericIdentity(104)));
        let named = "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name";
        let labels = labels.with(Label::new("k8s", named, "kube-system").unwrap());
        assert_eq!(reserved.number(&labels), Some(NumericIdentity(112)));
        let numbers: Vec<u32> = reserved.iter().map(|(number, _)| number.0).filter(|n| *n >= 100).collect();
        assert_eq!(numbers, [102, 103, 104, 105, 106, 110, 111, 112, 113, 114]);
    }

    #[test]
    fn a_mapping_has_numbers_and_names() {
        let mapped = Reserved::new().with_mapping([("128", "kv-store"), ("255", "last")]).unwrap();
        let labels = Labels::parse_list("reserved:last", "k8s").unwrap();
        assert_eq!(mapped.number(&labels), Some(NumericIdentity(255)));
        let error = Reserved::new().with_mapping([("kv-store", "128")]).unwrap_err();
        assert_eq!(error, ReservedError::NoNumber("kv-store".to_owned()));
        assert!(error.to_string().contains("128=kv-store"), "{error}");
    }

    #[test]
    fn fixed_numbers_are_checked() {
        let reserved = Reserved::new().with_fixed(128, "kv-store").unwrap();
        let labels = Labels::parse_list("reserved:kv-store", "k8s").unwrap();
        assert_eq!(reserved.number(&labels), Some(NumericIdentity(128)));
        assert_eq!(reserved.clone().with_fixed(256, "x").unwrap_err(), ReservedError::Number(256));
        assert_eq!(reserved.clone().with_fixed(127, "x").unwrap_err(), ReservedError::Number(127));
        for (number, name) in [(128, "other"), (129, "kv-store"), (129, "host")] {
            let error = reserved.clone().with_fixed(number, name).unwrap_err();
            assert!(matches!(error, ReservedError::Twice { .. }), "{error}");
        }
        assert!(matches!(reserved.with_fixed(130, ""), Err(ReservedError::Name { .. })));
    }
}
