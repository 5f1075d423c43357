//! Identities and addresses as the API shows them.

use std::collections::BTreeMap;

use villus_api::model::{Identity, IdentityEndpoints, IpListEntry, IpMetadata, IpQuery};
use villus_api::{ApiError, ApiResult};
use villus_labels::{Label, Labels, MaxConnectedClusters, NumericIdentity, parse_prefix, source};

use super::model::identity_model;
use crate::node::Node;

impl Node {
    /// Identities that have all these labels.
    pub(super) fn identity_list(&mut self, labels: &[String]) -> ApiResult<Vec<Identity>> {
        let wanted = read(labels)?;
        let rows = self.identities.table.snapshot();
        let rows = rows.iter().filter(|(_, has)| has_all(has, &wanted));
        Ok(rows.map(|(id, labels)| self.with_ports(identity_model(*id, labels))).collect())
    }

    /// One identity.
    pub(super) fn identity_of(&mut self, id: u32) -> ApiResult<Identity> {
        let labels = self.identities.labels_of(NumericIdentity(id));
        let found = labels.map(|labels| self.with_ports(identity_model(NumericIdentity(id), &labels)));
        found.ok_or_else(|| {
            ApiError::not_found(format!("there is no identity {id}")).hint("`villus identity list` shows all")
        })
    }

    fn with_ports(&self, identity: Identity) -> Identity {
        let ports = self.repository.referents().ports_of_identity(NumericIdentity(identity.id));
        Identity { named_ports: ports.map(ToString::to_string).collect(), ..identity }
    }

    /// Identities that endpoints of this node have.
    pub(super) fn identity_endpoints(&mut self) -> Vec<IdentityEndpoints> {
        let mut all: BTreeMap<NumericIdentity, (Labels, u64)> = BTreeMap::new();
        for endpoint in self.endpoints.values().filter(|e| e.file.identity != 0 && e.gone_since.is_none()) {
            all.entry(endpoint.identity()).or_insert_with(|| (endpoint.identity_labels.clone(), 0)).1 += 1;
        }
        all.into_iter()
            .map(|(id, (labels, ref_count))| IdentityEndpoints {
                identity: self.with_ports(identity_model(id, &labels)),
                ref_count,
            })
            .collect()
    }

    /// The ipcache's winners.
    pub(super) fn ips(&mut self, query: &IpQuery) -> ApiResult<Vec<IpListEntry>> {
        let within = match query.cidr.as_str() {
            "" => None,
            text => Some(parse_prefix(text).map_err(|error| ApiError::bad_field("cidr", error.to_string()))?),
        };
        let labels: Vec<String> =
            query.labels.split(',').filter(|l| !l.is_empty()).map(str::to_owned).collect();
        let wanted = read(&labels)?;
        let rows = self.ipcache.snapshot();
        let mut entries = Vec::new();
        for (prefix, winner) in rows.iter() {
            let identity = winner.mapping.identity;
            if within.is_some_and(|within| !within.contains(prefix)) {
                continue;
            }
            if !wanted.is_empty()
                && !self.identities.labels_of(identity).is_some_and(|labels| has_all(&labels, &wanted))
            {
                continue;
            }
            entries.push(IpListEntry {
                cidr: prefix.to_string(),
                encrypt_key: winner.mapping.key,
                host_ip: winner.mapping.tunnel.map(|ip| ip.to_string()).unwrap_or_default(),
                identity: identity.0,
                metadata: IpMetadata {
                    name: winner.owner.to_string(),
                    namespace: String::new(),
                    source: winner.rank.name().to_owned(),
                    pending: winner.mapping.pending,
                    waits_for: match winner.mapping.pending {
                        true => self.waited_for(identity),
                        false => String::new(),
                    },
                    interim: identity.is_interim(),
                },
            });
        }
        Ok(entries)
    }

    /// Which identity the store has not told, by its number and the cluster that gives it; nothing where labels are known.
    fn waited_for(&self, identity: NumericIdentity) -> String {
        let clusters = MaxConnectedClusters::from_number(self.config.node.max_connected_clusters);
        let cluster = clusters.ok().and_then(|clusters| identity.cluster_id(clusters));
        match cluster {
            _ if self.identities.labels_of(identity).is_some() => String::new(),
            Some(cluster) if cluster != self.config.node.cluster_id => {
                format!("nobody tells of identity {identity}, of cluster {cluster}")
            }
            _ => format!("the store has no identity {identity}"),
        }
    }
}

fn read(labels: &[String]) -> ApiResult<Vec<Label>> {
    labels
        .iter()
        .map(|text| Label::parse_with_source(text, source::ANY))
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::bad_field("labels", error.to_string()))
}

fn has_all(labels: &Labels, wanted: &[Label]) -> bool {
    wanted.iter().all(|want| {
        labels.get(want.key()).is_some_and(|have| {
            have.value() == want.value() && [source::ANY, have.source()].contains(&want.source())
        })
    })
}
