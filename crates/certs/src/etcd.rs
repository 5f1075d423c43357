//! Users and roles of etcd: what an agent's certificate may write.
//!
//! etcd checks ranges of keys, nothing else. So a node's own key and the addresses of its own ranges are its own; identities, locks
//! and what all write below one prefix are everybody's.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;
use villus_kvstore::keys;

use crate::{AGENTS, CertsError, Holder, Range, agent_user};

/// `<cluster>/…`: policies that all agents of a cluster apply.
const POLICIES: &str = "villus/policies/v1";
/// `<cluster>/<node>`: which of them a node has realised.
const REALISED: &str = "villus/realised/v1";
/// `<cluster>/leader`: which operator leads.
const OPERATORS: &str = "villus/operator/v1";
/// `<cluster>/…`: external resources.
const EXTERNAL: &str = "villus/external/v1";
/// Below it lies what is Villus' own.
const OWN: &str = "villus/";
/// The role of those who may change the cluster's policies.
pub const POLICY_WRITERS: &str = "villus:policy-writers";
/// The role of the cluster's operators.
pub const OPERATOR: &str = "villus:operators";
/// The role of who copies other clusters' entries into this cluster's store.
pub const KVSTOREMESH: &str = "villus:kvstoremesh";
/// The role of other clusters that copy from this cluster's store.
pub const MESH_READERS: &str = "villus:mesh-readers";
/// What `villus kvstoremesh` writes beside copies: its lock, and what it knows of each remote.
const MESH_LOCK: &str = "cilium/kvstoremesh-lock";
const MESH_RECORDS: &str = "cilium/.kvstoremesh";

/// A cluster whose agents get users.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
    address_space: String,
    nodes: BTreeMap<String, Vec<Range>>,
    policy_writers: Vec<String>,
    operators: Vec<String>,
    meshes: Vec<String>,
    mesh_readers: Vec<String>,
}

/// A right to keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Permission {
    /// `read` or `readwrite`.
    pub right: &'static str,
    /// A key, or the beginning of keys.
    pub key: String,
    /// Which of both.
    pub prefix: bool,
}

/// A role and what it may do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub permissions: Vec<Permission>,
}

/// A user, known by the common name of its certificate, and its roles.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its roles.
    pub roles: Vec<String>,
}

/// All users and roles of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Access {
    /// The roles.
    pub roles: Vec<Role>,
    /// The users.
    pub users: Vec<User>,
}

// === impl Permission ===

impl Permission {
    fn read(key: impl Into<String>) -> Self {
        Self { right: "read", key: key.into(), prefix: true }
    }

    fn write_below(key: impl Into<String>) -> Self {
        Self { right: "readwrite", key: key.into(), prefix: true }
    }

    fn write(key: impl Into<String>) -> Self {
        Self { right: "readwrite", key: key.into(), prefix: false }
    }
}

// === impl Cluster ===

impl Cluster {
    /// A cluster without nodes. `address_space` is the part of address keys that the agents write: `default`, or the
    /// cluster's name.
    ///
    /// # Errors
    /// A name that cannot be part of a key.
    pub fn new(name: &str, address_space: &str) -> Result<Self, CertsError> {
        for part in [name, address_space] {
            if part.is_empty() || part.contains('/') {
                let reason = "cannot be part of a key: it is empty or has a `/`";
                return Err(CertsError::Name { name: part.to_owned(), reason });
            }
        }
        Ok(Self {
            name: name.to_owned(),
            address_space: address_space.to_owned(),
            nodes: BTreeMap::new(),
            policy_writers: Vec::new(),
            operators: Vec::new(),
            meshes: Vec::new(),
            mesh_readers: Vec::new(),
        })
    }

    /// Adds a node and the addresses that it alone writes. Twice the same node adds up.
    ///
    /// # Errors
    /// The name is none, or addresses overlap with those of another node.
    pub fn add(&mut self, node: &str, ranges: Vec<Range>) -> Result<(), CertsError> {
        Holder::agent(node)?;
        let overlaps = |range: &Range, other: &Range| {
            range.net().contains(&other.net()) || other.net().contains(&range.net())
        };
        let others = || self.nodes.iter().filter(|(name, _)| *name != node).flat_map(|(_, ranges)| ranges);
        if ranges.iter().any(|range| others().any(|other| overlaps(range, other))) {
            let reason = "has addresses that another node has too; give each node its own";
            return Err(CertsError::Name { name: node.to_owned(), reason });
        }
        self.nodes.entry(node.to_owned()).or_default().extend(ranges);
        Ok(())
    }

    /// Adds a user who may change the cluster's policies.
    ///
    /// # Errors
    /// The name is none.
    pub fn add_policy_writer(&mut self, user: &str) -> Result<(), CertsError> {
        Holder::user(user, None)?;
        self.policy_writers.push(user.to_owned());
        Ok(())
    }

    /// Adds the user of an operator.
    ///
    /// # Errors
    /// The name is none.
    pub fn add_operator(&mut self, user: &str) -> Result<(), CertsError> {
        Holder::user(user, None)?;
        self.operators.push(user.to_owned());
        Ok(())
    }

    /// Adds the user of `villus kvstoremesh` of this cluster, which copies other clusters' entries here.
    ///
    /// # Errors
    /// The name is none.
    pub fn add_mesh(&mut self, user: &str) -> Result<(), CertsError> {
        Holder::user(user, None)?;
        self.meshes.push(user.to_owned());
        Ok(())
    }

    /// Adds the user of another cluster that copies from here: it reads.
    ///
    /// # Errors
    /// The name is none.
    pub fn add_mesh_reader(&mut self, user: &str) -> Result<(), CertsError> {
        Holder::user(user, None)?;
        self.mesh_readers.push(user.to_owned());
        Ok(())
    }

    /// The users and roles.
    #[must_use]
    pub fn access(&self) -> Access {
        let below = |parts: &[&str]| format!("{}/", keys::join_key(parts));
        let common = Role {
            name: AGENTS.to_owned(),
            permissions: vec![
                Permission::read(below(&[keys::BASE])),
                Permission::read(OWN),
                Permission::write_below(below(&[keys::IDENTITIES])),
                Permission::write_below(below(&[keys::INIT_LOCK])),
                Permission::write_below(below(&[keys::SYNCED, &self.name])),
                Permission::write(keys::join_key([keys::CLUSTER_CONFIG, &self.name])),
            ],
        };
        let mut access = Access { roles: vec![common], users: Vec::new() };
        for (node, ranges) in &self.nodes {
            let user = agent_user(node);
            let own =
                |tree: &str| Permission::write(keys::join_key([tree, self.name.as_str(), node.as_str()]));
            let mut permissions = vec![own(keys::NODES), own(REALISED)];
            permissions.extend(ranges.iter().map(|range| Permission {
                right: "readwrite",
                key: keys::join_key([keys::IPS, &self.address_space, range.key()]),
                prefix: range.is_prefix(),
            }));
            access.roles.push(Role { name: user.clone(), permissions });
            access.users.push(User { name: user.clone(), roles: vec![AGENTS.to_owned(), user] });
        }
        let roles = [
            (
                POLICY_WRITERS,
                &self.policy_writers,
                vec![Permission::write_below(below(&[POLICIES, &self.name]))],
            ),
            (
                OPERATOR,
                &self.operators,
                vec![
                    Permission::write_below(below(&[keys::IDENTITIES])),
                    Permission::write_below(below(&[keys::INIT_LOCK])),
                    Permission::write(keys::HEARTBEAT),
                    Permission::write_below(below(&[OPERATORS, &self.name])),
                    Permission::write_below(below(&[EXTERNAL, &self.name])),
                    Permission::write_below(below(&[keys::IPS, &self.address_space])),
                    // What lies under the leases of a node that does not come back.
                    Permission::write_below(below(&[keys::NODES, &self.name])),
                    Permission::write_below(below(&[REALISED, &self.name])),
                    Permission::write(keys::join_key([keys::CLUSTER_CONFIG, &self.name])),
                ],
            ),
            (
                KVSTOREMESH,
                &self.meshes,
                vec![
                    Permission::write_below(below(&[keys::CACHE])),
                    Permission::write_below(below(&[keys::CLUSTER_CONFIG])),
                    Permission::write_below(below(&[keys::SYNCED])),
                    Permission::write_below(below(&[keys::INIT_LOCK])),
                    Permission::write_below(below(&[MESH_LOCK])),
                    Permission::write_below(below(&[MESH_RECORDS])),
                ],
            ),
            (MESH_READERS, &self.mesh_readers, Vec::new()),
        ];
        for (name, users, mut permissions) in roles {
            if users.is_empty() {
                continue;
            }
            permissions.splice(0..0, [Permission::read(below(&[keys::BASE])), Permission::read(OWN)]);
            access.roles.push(Role { name: name.to_owned(), permissions });
            let user = |user: &String| User { name: user.clone(), roles: vec![name.to_owned()] };
            access.users.extend(users.iter().map(user));
        }
        access
    }
}

/// How the script begins. etcd refuses to add what is there.
const PREAMBLE: &str = "\
set -eu
role() { etcdctl role get \"$1\" >/dev/null 2>&1 || etcdctl role add \"$1\"; }
user() { etcdctl user get \"$1\" >/dev/null 2>&1 || etcdctl user add --no-password \"$1\"; }
";

// === impl Access ===

impl Access {
    /// The commands that make them, as a script of shell: `etcdctl` finds its endpoints and the certificate of the user
    /// `root` in its environment. It ends at the first command that fails; what is there already is left as it is, so that
    /// it can be run again when nodes are added.
    #[must_use]
    pub fn script(&self) -> String {
        let mut text = PREAMBLE.to_owned();
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to memory does not fail.
            let _ = writeln!(text, "{words}");
        };
        for role in &self.roles {
            let name = quoted(&role.name);
            line(format_args!("role {name}"));
            for Permission { right, key, prefix } in &role.permissions {
                let flag = if *prefix { "--prefix=true " } else { "" };
                line(format_args!("etcdctl role grant-permission {flag}{name} {right} {}", quoted(key)));
            }
        }
        for user in &self.users {
            let name = quoted(&user.name);
            line(format_args!("user {name}"));
            for role in &user.roles {
                line(format_args!("etcdctl user grant-role {name} {}", quoted(role)));
            }
        }
        text
    }

    /// The commands that switch authentication on, once: from then on who has no user may do nothing.
    #[must_use]
    pub const fn enable_script() -> &'static str {
        "user root\netcdctl user grant-role root root\netcdctl auth enable\n"
    }
}

/// A word of shell. Names and keys are checked to hold no quotes; this holds whatever they hold.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
