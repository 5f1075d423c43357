//! All that policies can refer to by name, and who is meant by it now.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use villus_labels::{KEY_NAMESPACE, Label, Labels, NumericIdentity, Selector, source};

use crate::{
    Kind, NamedPort, ObjectKey, Referent, ServiceBase, ServiceRef, named_port::with_named_ports,
    referent::Content,
};

/// Groups of prefixes, services, backends and named ports. Of two objects of one kind, namespace and name from
/// different origins the one counts whose origin sorts first.
#[derive(Default, Debug)]
pub struct Referents {
    objects: BTreeMap<ObjectKey, Arc<Referent>>,
    /// Namespace and service, and the objects that hold its backends.
    backends: BTreeMap<(Arc<str>, Arc<str>), BTreeSet<ObjectKey>>,
    /// Every named port that somebody has, and how many identities have it.
    ports: BTreeMap<NamedPort, usize>,
    by_identity: BTreeMap<NumericIdentity, BTreeSet<NamedPort>>,
}

impl Referents {
    // === objects ===

    /// Puts an object in place, in place of another with its key. Returns whether anything is different.
    pub fn upsert(&mut self, referent: Referent) -> bool {
        if self.objects.get(&referent.key).is_some_and(|old| old.content == referent.content) {
            return false;
        }
        self.remove(&referent.key.clone());
        if let (Content::Backends { service, .. }, Some(namespace)) =
            (&referent.content, &referent.key.namespace)
        {
            let place = (namespace.clone(), service.clone());
            self.backends.entry(place).or_default().insert(referent.key.clone());
        }
        self.objects.insert(referent.key.clone(), Arc::new(referent));
        true
    }

    /// Removes an object. Returns whether it was there.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        let Some(old) = self.objects.remove(key) else { return false };
        if let (Content::Backends { service, .. }, Some(namespace)) = (&old.content, &key.namespace) {
            let place = (namespace.clone(), service.clone());
            if let Some(keys) = self.backends.get_mut(&place) {
                keys.remove(key);
                if keys.is_empty() {
                    self.backends.remove(&place);
                }
            }
        }
        true
    }

    /// Makes these objects all that there is from an origin. Returns whether anything is different.
    pub fn replace_origin(&mut self, origin: &str, referents: Vec<Referent>) -> bool {
        let mut changed = false;
        let kept: BTreeSet<&ObjectKey> = referents.iter().map(|referent| &referent.key).collect();
        let gone = self.objects.keys().filter(|key| *key.origin == *origin && !kept.contains(key));
        for key in gone.cloned().collect::<Vec<_>>() {
            changed |= self.remove(&key);
        }
        for referent in referents {
            changed |= self.upsert(referent);
        }
        changed
    }

    /// The objects, in order of their keys.
    pub fn objects(&self) -> impl Iterator<Item = &Referent> {
        self.objects.values().map(|referent| &**referent)
    }

    /// The objects that count, in order of their keys.
    pub fn in_force(&self) -> impl Iterator<Item = &Referent> {
        self.objects().filter(|referent| {
            let key = &referent.key;
            self.named(key.kind, key.namespace.as_ref(), &key.name).is_some_and(|named| named.key == *key)
        })
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&Referent> {
        self.objects.get(key).map(|referent| &**referent)
    }

    /// The objects that do not count because another origin holds one of the same kind, namespace and name, each with
    /// the one that does.
    pub fn shadowed(&self) -> impl Iterator<Item = (&ObjectKey, &ObjectKey)> {
        self.objects.keys().filter_map(|key| {
            let counts = &self.named(key.kind, key.namespace.as_ref(), &key.name)?.key;
            (counts != key).then_some((key, counts))
        })
    }

    /// The objects of a kind, of those with one name only the one that counts.
    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Referent> {
        let first = ObjectKey { kind, namespace: None, name: "".into(), origin: "".into() };
        let mut last: Option<&ObjectKey> = None;
        self.objects.range(first..).take_while(move |(key, _)| key.kind == kind).filter_map(
            move |(key, referent)| {
                let shadowed =
                    last.is_some_and(|last| last.namespace == key.namespace && last.name == key.name);
                last = Some(key);
                (!shadowed).then_some(&**referent)
            },
        )
    }

    fn named(&self, kind: Kind, namespace: Option<&Arc<str>>, name: &Arc<str>) -> Option<&Referent> {
        let first = ObjectKey { kind, namespace: namespace.cloned(), name: name.clone(), origin: "".into() };
        let (key, referent) = self.objects.range(first..).next()?;
        let is_it = key.kind == kind && key.namespace.as_ref() == namespace && key.name == *name;
        is_it.then_some(&**referent)
    }

    // === groups ===

    /// The prefixes of a CiliumCIDRGroup.
    #[must_use]
    pub fn group(&self, name: &Arc<str>) -> Option<&[IpNet]> {
        match &self.named(Kind::CiliumCidrGroup, None, name)?.content {
            Content::Group { prefixes, .. } => Some(prefixes),
            _ => None,
        }
    }

    /// The prefixes of each group whose labels are selected.
    pub fn groups(&self, selector: &Selector) -> impl Iterator<Item = &[IpNet]> {
        self.of_kind(Kind::CiliumCidrGroup).filter_map(|referent| match &referent.content {
            Content::Group { labels, prefixes } if selector.matches(labels) => Some(prefixes.as_slice()),
            _ => None,
        })
    }

    // === services ===

    /// The services that are meant.
    fn services<'a>(&'a self, wanted: &'a ServiceRef) -> Vec<(&'a ObjectKey, Option<&'a Selector>)> {
        let meant = |referent: &&Referent| match (&wanted.which, &referent.content) {
            (ServiceBase::Name(name), _) => referent.key.name == *name,
            (ServiceBase::Labels(selector), Content::Service { labels, .. }) => selector.matches(labels),
            _ => false,
        };
        let found: Vec<&Referent> = match wanted {
            ServiceRef { namespace: Some(namespace), which: ServiceBase::Name(name) } => {
                self.named(Kind::Service, Some(namespace), name).into_iter().collect()
            }
            _ => self
                .of_kind(Kind::Service)
                .filter(|referent| wanted.namespace.is_none() || referent.key.namespace == wanted.namespace)
                .filter(meant)
                .collect(),
        };
        found
            .into_iter()
            .filter_map(|referent| match &referent.content {
                Content::Service { pods, .. } => Some((&referent.key, pods.as_ref())),
                _ => None,
            })
            .collect()
    }

    /// Whether any service is meant.
    #[must_use]
    pub fn has_service(&self, wanted: &ServiceRef) -> bool {
        !self.services(wanted).is_empty()
    }

    /// The pods of the services that select pods, tied to the namespaces of the services.
    pub fn backend_pods<'a>(&'a self, wanted: &'a ServiceRef) -> impl Iterator<Item = Selector> + 'a {
        self.services(wanted).into_iter().filter_map(|(key, pods)| {
            let namespace = Label::new(source::K8S, KEY_NAMESPACE, key.namespace.as_deref()?).ok()?;
            Some(pods?.requiring(&namespace))
        })
    }

    /// The addresses of the backends of the services that select no pods, each as a prefix.
    pub fn backend_prefixes<'a>(&'a self, wanted: &'a ServiceRef) -> impl Iterator<Item = IpNet> + 'a {
        let services = self.services(wanted).into_iter().filter(|(_, pods)| pods.is_none());
        services.flat_map(|(key, _)| self.addresses(key)).map(IpNet::from)
    }

    fn addresses(&self, service: &ObjectKey) -> Vec<IpAddr> {
        let Some(namespace) = service.namespace.clone() else { return Vec::new() };
        let keys = self.backends.get(&(namespace, service.name.clone())).into_iter().flatten();
        let contents = keys.filter_map(|key| Some(&self.get(key)?.content));
        let addresses = contents.flat_map(|content| match content {
            Content::Backends { addresses, .. } => addresses.as_slice(),
            _ => &[],
        });
        addresses.copied().collect()
    }

    // === named ports ===

    /// Every port that somebody has under a name.
    pub fn ports_of<'a>(&'a self, name: &'a str, proto: u8) -> impl Iterator<Item = NamedPort> + 'a {
        // Sorted by name, then protocol.
        let ports = self.ports.keys().skip_while(move |port| port.name() < name);
        ports.take_while(move |port| port.name() == name).filter(move |port| port.proto() == proto).cloned()
    }

    /// Every named port that somebody has.
    pub(crate) fn named_ports(&self) -> BTreeSet<NamedPort> {
        self.ports.keys().cloned().collect()
    }

    /// Says which named ports the workloads of an identity have. Returns whether it is news.
    pub fn set_named_ports(&mut self, identity: NumericIdentity, ports: BTreeSet<NamedPort>) -> bool {
        let old = match ports.is_empty() {
            true => self.by_identity.remove(&identity),
            false => self.by_identity.insert(identity, ports.clone()),
        };
        let old = old.unwrap_or_default();
        for port in ports.difference(&old) {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
        for port in old.difference(&ports) {
            if let Some(users) = self.ports.get_mut(port) {
                *users -= 1;
                if *users == 0 {
                    self.ports.remove(port);
                }
            }
        }
        old != ports
    }

    /// The named ports of the workloads of every identity that has some.
    #[must_use]
    pub const fn all_ports(&self) -> &BTreeMap<NumericIdentity, BTreeSet<NamedPort>> {
        &self.by_identity
    }

    /// The named ports of an identity's workloads, all together.
    pub fn ports_of_identity(&self, identity: NumericIdentity) -> impl Iterator<Item = &NamedPort> {
        self.by_identity.get(&identity).into_iter().flatten()
    }

    /// The labels of an identity with those of its workloads' named ports.
    #[must_use]
    pub fn with_ports(&self, identity: NumericIdentity, labels: &Labels) -> Labels {
        match self.by_identity.get(&identity) {
            Some(ports) => with_named_ports(labels, ports),
            None => labels.clone(),
        }
    }
}
