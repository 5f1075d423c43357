//! The many ways to name an endpoint.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// How a request names an endpoint.
///
/// Cilium's forms (`agent` reference 5.2) and two of ours: `netns:NAME` and `owner:NAME`. A bare address and
/// a bare word are understood too.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum EndpointRef {
    /// `5`, `cilium-local:5`: the id on this node. 0 asks for a new id where an endpoint is created.
    Id(u16),
    /// `cilium-global:CLUSTER:NODE:ID`.
    Global {
        /// Cluster name.
        cluster: String,
        /// Node name.
        node: String,
        /// Id on that node.
        id: u16,
    },
    /// `container-id:ID`.
    ContainerId(String),
    /// `container-name:NAME`.
    ContainerName(String),
    /// `docker-endpoint:ID`.
    DockerEndpoint(String),
    /// `pod-name:NAMESPACE:NAME`; `/` separates as well as `:`.
    PodName {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
    },
    /// `cep-name:NAMESPACE:NAME`.
    CepName {
        /// Kubernetes namespace.
        namespace: String,
        /// Name of the CiliumEndpoint.
        name: String,
    },
    /// `cni-attachment-id:CONTAINER:INTERFACE`.
    CniAttachment {
        /// Container id.
        container: String,
        /// Interface inside the container.
        interface: String,
    },
    /// `ipv4:ADDRESS`, `ipv6:ADDRESS`, or the address alone.
    Ip(IpAddr),
    /// `netns:NAME` or `netns:PATH`.
    Netns(String),
    /// `owner:NAME`: the name that a sticky address belongs to.
    Owner(String),
    /// A bare word: an owner, else a namespace, else a container's or pod's name.
    Name(String),
}

/// A text that names no endpoint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} {problem}")]
pub struct EndpointRefError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

const MAX_LEN: usize = 512;
const FORMS: &str = "names no endpoint: use its id, container-id:ID, container-name:NAME, \
    pod-name:NAMESPACE:NAME, cni-attachment-id:CONTAINER:INTERFACE, ipv4:ADDRESS, ipv6:ADDRESS, netns:NAME or \
    owner:NAME";
const ID: &str = "is no endpoint id: a number from 0 to 65535";

impl FromStr for EndpointRef {
    type Err = EndpointRefError;

    fn from_str(text: &str) -> Result<Self, EndpointRefError> {
        parse(text).map_err(|problem| EndpointRefError { text: text.chars().take(80).collect(), problem })
    }
}

fn parse(text: &str) -> Result<EndpointRef, &'static str> {
    if text.len() > MAX_LEN || text.chars().any(char::is_control) {
        return Err("is longer than 512 bytes or has control characters");
    }
    if let Ok(address) = text.parse() {
        return Ok(EndpointRef::Ip(address));
    }
    let Some((form, rest)) = text.split_once(':') else { return bare(text) };
    if rest.is_empty() {
        return Err("has nothing after the colon");
    }
    let own = || rest.to_owned();
    match form {
        "cilium-local" => id(rest).map(EndpointRef::Id),
        "cilium-global" => global(rest),
        "container-id" => Ok(EndpointRef::ContainerId(own())),
        "container-name" => Ok(EndpointRef::ContainerName(own())),
        "docker-endpoint" => Ok(EndpointRef::DockerEndpoint(own())),
        "pod-name" => {
            pair(rest, &[':', '/']).map(|(namespace, name)| EndpointRef::PodName { namespace, name })
        }
        "cep-name" => {
            pair(rest, &[':', '/']).map(|(namespace, name)| EndpointRef::CepName { namespace, name })
        }
        "cni-attachment-id" => pair(rest, &[':'])
            .map(|(container, interface)| EndpointRef::CniAttachment { container, interface }),
        "ipv4" => rest
            .parse::<Ipv4Addr>()
            .map(|address| EndpointRef::Ip(address.into()))
            .map_err(|_| "is no IPv4 address"),
        "ipv6" => rest
            .parse::<Ipv6Addr>()
            .map(|address| EndpointRef::Ip(address.into()))
            .map_err(|_| "is no IPv6 address"),
        "netns" => Ok(EndpointRef::Netns(own())),
        "owner" => Ok(EndpointRef::Owner(own())),
        _ => Err(FORMS),
    }
}

fn bare(text: &str) -> Result<EndpointRef, &'static str> {
    match text.as_bytes() {
        [] => Err(FORMS),
        digits if digits.iter().all(u8::is_ascii_digit) => id(text).map(EndpointRef::Id),
        _ => Ok(EndpointRef::Name(text.to_owned())),
    }
}

fn id(text: &str) -> Result<u16, &'static str> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ID);
    }
    text.parse().map_err(|_| ID)
}

fn global(text: &str) -> Result<EndpointRef, &'static str> {
    let (rest, number) = text.rsplit_once(':').ok_or("is not cilium-global:CLUSTER:NODE:ID")?;
    let (cluster, node) = pair(rest, &[':']).map_err(|_| "is not cilium-global:CLUSTER:NODE:ID")?;
    Ok(EndpointRef::Global { cluster, node, id: id(number)? })
}

/// Two parts that are not empty.
fn pair(text: &str, separators: &[char]) -> Result<(String, String), &'static str> {
    match text.split_once(separators) {
        Some((first, second)) if !first.is_empty() && !second.is_empty() => {
            Ok((first.to_owned(), second.to_owned()))
        }
        _ => Err("needs two parts after the form's name, as in pod-name:NAMESPACE:NAME"),
    }
}

impl fmt::Display for EndpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Global { cluster, node, id } => write!(f, "cilium-global:{cluster}:{node}:{id}"),
            Self::ContainerId(id) => write!(f, "container-id:{id}"),
            Self::ContainerName(name) => write!(f, "container-name:{name}"),
            Self::DockerEndpoint(id) => write!(f, "docker-endpoint:{id}"),
            Self::PodName { namespace, name } => write!(f, "pod-name:{namespace}:{name}"),
            Self::CepName { namespace, name } => write!(f, "cep-name:{namespace}:{name}"),
            Self::CniAttachment { container, interface } => {
                write!(f, "cni-attachment-id:{container}:{interface}")
            }
            Self::Ip(IpAddr::V4(address)) => write!(f, "ipv4:{address}"),
            Self::Ip(IpAddr::V6(address)) => write!(f, "ipv6:{address}"),
            Self::Netns(name) => write!(f, "netns:{name}"),
            Self::Owner(name) => write!(f, "owner:{name}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<EndpointRef> for String {
    fn from(reference: EndpointRef) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for EndpointRef {
    type Error = EndpointRefError;

    fn try_from(text: String) -> Result<Self, EndpointRefError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_read() {
        let own = str::to_owned;
        let cases = [
            ("5", EndpointRef::Id(5)),
            ("cilium-local:794", EndpointRef::Id(794)),
            (
                "cilium-global:cluster1:node1:2404",
                EndpointRef::Global { cluster: own("cluster1"), node: own("node1"), id: 2404 },
            ),
            ("container-id:abc:def", EndpointRef::ContainerId(own("abc:def"))),
            ("container-name:web", EndpointRef::ContainerName(own("web"))),
            ("docker-endpoint:0a1b", EndpointRef::DockerEndpoint(own("0a1b"))),
            ("pod-name:ns1:pod1", EndpointRef::PodName { namespace: own("ns1"), name: own("pod1") }),
            ("pod-name:ns1/pod1", EndpointRef::PodName { namespace: own("ns1"), name: own("pod1") }),
            ("cep-name:ns1/pod1", EndpointRef::CepName { namespace: own("ns1"), name: own("pod1") }),
            (
                "cni-attachment-id:0a1b:eth0",
                EndpointRef::CniAttachment { container: own("0a1b"), interface: own("eth0") },
            ),
            ("ipv4:10.0.0.1", EndpointRef::Ip("10.0.0.1".parse().unwrap())),
            ("10.0.0.1", EndpointRef::Ip("10.0.0.1".parse().unwrap())),
            ("ipv6:fd00::1", EndpointRef::Ip("fd00::1".parse().unwrap())),
            ("fd00::1", EndpointRef::Ip("fd00::1".parse().unwrap())),
            ("netns:/run/netns/web", EndpointRef::Netns(own("/run/netns/web"))),
            ("owner:default/web-0", EndpointRef::Owner(own("default/web-0"))),
            ("client", EndpointRef::Name(own("client"))),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_forms_say_why() {
        for (text, needle) in [
            ("", "names no endpoint"),
            ("70000", "0 to 65535"),
            ("cilium-local:-1", "0 to 65535"),
            ("cilium-local:+1", "0 to 65535"),
            ("pod:ns1:x", "pod-name:NAMESPACE:NAME"),
            ("pod-name:x", "two parts"),
            ("pod-name::x", "two parts"),
            ("ipv4:fd00::1", "no IPv4"),
            ("ipv6:10.0.0.1", "no IPv6"),
            ("netns:", "nothing after"),
            ("cilium-global:a:b", "CLUSTER:NODE:ID"),
            ("a\nb", "control characters"),
        ] {
            let error = text.parse::<EndpointRef>().unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(text in "((pod-name|cep-name|netns|owner|cilium-local|container-id|cilium-global|cni-attachment-id|ipv4|ipv6):)?[a-z0-9:./-]{0,20}|.{0,20}") {
            if let Ok(reference) = text.parse::<EndpointRef>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference));
            }
        }
    }
}
