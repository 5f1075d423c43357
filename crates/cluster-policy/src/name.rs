//! Names of objects, as keys have them and as people write them.

use std::fmt;

use serde::{Deserialize, Serialize};
use villus_policy::ObjectKey;

/// Stands in keys for the namespace of what has none; no namespace can be called so.
const NO_NAMESPACE: &str = "-";

/// Kind, namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Its kind, as objects of Kubernetes spell it.
    pub kind: String,
    /// Its namespace; none for what is in no namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

// === impl ObjectName ===

impl ObjectName {
    /// The end of its key: `<kind>/<namespace>/<name>`, with `-` for no namespace.
    pub fn suffix(&self) -> String {
        format!("{}/{}/{}", self.kind, self.namespace.as_deref().unwrap_or(NO_NAMESPACE), self.name)
    }

    /// Reads the end of a key.
    pub fn of_suffix(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && ![kind, namespace, name].contains(&"");
        whole.then(|| Self {
            kind: kind.to_owned(),
            namespace: (namespace != NO_NAMESPACE).then(|| namespace.to_owned()),
            name: name.to_owned(),
        })
    }

    /// Whether somebody means it by `NAME`, `NAMESPACE/NAME` or `KIND/NAMESPACE/NAME`.
    pub fn is_meant_by(&self, text: &str) -> bool {
        match text.matches('/').count() {
            0 => self.name == text,
            1 => text.split_once('/').is_some_and(|(namespace, name)| {
                self.name == name && self.namespace.as_deref().unwrap_or(NO_NAMESPACE) == namespace
            }),
            _ => self.suffix() == text,
        }
    }
}

impl From<&ObjectKey> for ObjectName {
    fn from(key: &ObjectKey) -> Self {
        let namespace = key.namespace.as_deref().map(str::to_owned);
        Self { kind: key.kind.name().to_owned(), namespace, name: key.name.to_string() }
    }
}

impl fmt::Display for ObjectName {
    /// `CiliumNetworkPolicy shop/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_meant_in_three_ways() {
        let web = ObjectName::of_suffix("CiliumNetworkPolicy/shop/web").unwrap();
        let all = ObjectName::of_suffix("CiliumClusterwideNetworkPolicy/-/web").unwrap();
        assert_eq!(
            (web.to_string().as_str(), all.namespace.as_ref()),
            ("CiliumNetworkPolicy shop/web", None)
        );
        for (text, of_web, of_all) in [
            ("web", true, true),
            ("shop/web", true, false),
            ("-/web", false, true),
            ("CiliumNetworkPolicy/shop/web", true, false),
            ("CiliumClusterwideNetworkPolicy/-/web", false, true),
            ("db", false, false),
            ("", false, false),
        ] {
            assert_eq!((web.is_meant_by(text), all.is_meant_by(text)), (of_web, of_all), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written(text in "[a-zA-Z/-]{0,20}") {
            if let Some(name) = ObjectName::of_suffix(&text) {
                prop_assert_eq!(name.suffix(), text);
                prop_assert!(name.is_meant_by(&name.suffix()));
            }
        }
    }
}
