//! `villus certs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use villus_certs::{
    CertsError, Holder, Issued, Pki, Range, Renewal,
    etcd::{Access, Cluster},
    kubernetes,
};
use villus_print::Table;

use crate::{
    failure::{FAILED, Failure},
    out::{self, OutputArgs},
};

#[derive(Subcommand, Debug)]
pub enum CertsCommand {
    /// Make the authority that signs everything else.
    #[command(after_help = "Example:\n  villus certs init --dir pki --name example-ca")]
    Init {
        /// Common name of the authority.
        #[arg(long, value_name = "NAME", default_value = "villus-ca")]
        name: String,
        /// Days it is valid.
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make the certificates of agents: each its own user, all in one group.
    #[command(after_help = "Example:\n  villus certs agent node1 node2 --dir pki")]
    Agent {
        /// The nodes.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        term: TermArgs,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make the certificate of a member of etcd.
    #[command(
        after_help = "Example:\n  villus certs server etcd1 --address 10.0.0.1,etcd1.example.org --dir pki"
    )]
    Server {
        /// Its name.
        name: String,
        /// A name or address under which it is reached.
        #[arg(long = "address", required = true, value_name = "HOST", value_delimiter = ',')]
        addresses: Vec<String>,
        #[command(flatten)]
        term: TermArgs,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make the certificate of a person or a program, such as etcd's root or who may change policies.
    #[command(
        after_help = "Examples:\n  villus certs user root --dir pki\n  villus certs user ann --group security --dir pki"
    )]
    User {
        /// The user.
        name: String,
        /// Its group in Kubernetes.
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        #[command(flatten)]
        term: TermArgs,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List certificates and how long they are valid.
    #[command(
        after_help = "Example:\n  villus certs list --dir pki\n\nExit code 1 if one of them cannot be read or has ended."
    )]
    List {
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make certificates anew that end soon. Agents take them without a restart.
    #[command(
        after_help = "Examples:\n  villus certs renew --dir pki --dry-run\n  villus certs renew node1 --within 366 --new-key --dir pki"
    )]
    Renew {
        /// Only those of these nodes, servers or users.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Only those that end within so many days.
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        within: i64,
        /// Also make a new key. Key and certificate are then two files that change one after the other.
        #[arg(long)]
        new_key: bool,
        /// Say what would be renewed, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        term: TermArgs,
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the users and roles of etcd under which each agent writes its own node and addresses alone.
    #[command(
        after_help = "Example:\n  villus certs etcd --cluster c1 --node node1=10.0.1.0/24,fd00:1:2:3::/64 --node node2=10.0.2.0/24 \\\n    \
                      --policy-writer ann --operator villus-operator --kvstoremesh villus-mesh --mesh-reader c2 \\\n    > access.sh\n\n\
                      The script runs etcdctl, which takes ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY from its\n\
                      environment. What etcd cannot keep apart is in docs/operations.md."
    )]
    Etcd {
        /// Name of the cluster.
        #[arg(long, value_name = "NAME", value_parser = cluster_name)]
        cluster: String,
        /// A node, and the addresses and ranges that it alone writes.
        #[arg(long = "node", required = true, value_name = "NAME[=RANGE,…]", value_parser = node)]
        nodes: Vec<Node>,
        /// The part of address keys that the agents write: `default`, or the cluster's name.
        #[arg(long, value_name = "NAME", default_value = "default")]
        address_space: String,
        /// A user who may change the cluster's policies.
        #[arg(long = "policy-writer", value_name = "USER")]
        policy_writers: Vec<String>,
        /// The user of an operator of the cluster, who may also end nodes that do not come back.
        #[arg(long = "operator", value_name = "USER")]
        operators: Vec<String>,
        /// The user of `villus kvstoremesh` of this cluster, which copies other clusters' entries to `cilium/cache`.
        #[arg(long = "kvstoremesh", value_name = "USER")]
        meshes: Vec<String>,
        /// The user by which another cluster's `villus kvstoremesh` or agents read this store.
        #[arg(long = "mesh-reader", value_name = "USER")]
        mesh_readers: Vec<String>,
        /// Also print what switches authentication on: from then on who has no user may do nothing.
        #[arg(long)]
        enable: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the objects of Kubernetes that let agents read and that limit their requests.
    #[command(after_help = "Example:\n  villus certs kubernetes | kubectl apply --dry-run=server -f -")]
    Kubernetes {
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Args, Debug)]
pub struct PlaceArgs {
    /// Directory of the authority and of what it signed.
    #[arg(long, value_name = "PATH", default_value = "/etc/villus/pki", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct TermArgs {
    /// Days it is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..))]
    days: u32,
}

/// A node of `--node`.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    ranges: Vec<Range>,
}

/// A name that an agent would take as its `cluster-name`.
fn cluster_name(text: &str) -> Result<String, String> {
    villus_config::kind::Kind::ClusterName.parse(text).map(|_| text.to_owned())
}

fn node(text: &str) -> Result<Node, String> {
    let (name, ranges) = text.split_once('=').unwrap_or((text, ""));
    let ranges = ranges.split(',').filter(|range| !range.is_empty());
    let ranges = ranges.map(str::parse).collect::<Result<_, villus_certs::RangeError>>();
    Ok(Node { name: name.to_owned(), ranges: ranges.map_err(|error| error.to_string())? })
}

pub fn run(command: CertsCommand) -> Result<(), Failure> {
    match command {
        CertsCommand::Init { name, days, place, output } => {
            show(&[Pki::at(&place.dir).init(&name, days)?], &output)
        }
        CertsCommand::Agent { nodes, term, place, output } => {
            let holders: Vec<Holder> =
                nodes.iter().map(|node| Holder::agent(node)).collect::<Result<_, _>>()?;
            issue(&holders, &term, &place, &output)
        }
        CertsCommand::Server { name, addresses, term, place, output } => {
            issue(&[Holder::server(&name, &addresses)?], &term, &place, &output)
        }
        CertsCommand::User { name, group, term, place, output } => {
            issue(&[Holder::user(&name, group.as_deref())?], &term, &place, &output)
        }
        CertsCommand::List { place, output } => list(&place, &output),
        CertsCommand::Renew { names, within, new_key, dry_run, term, place, output } => {
            let renewal = Renewal { days: term.days, within, names, new_key, dry_run };
            let renewed = Pki::at(&place.dir).renew(&renewal)?;
            output.print(&renewed, || match (renewed.is_empty(), dry_run) {
                (true, _) => format!("none ends within {within} days\n"),
                (false, true) => format!("would be renewed:\n{}", table(&renewed)),
                (false, false) => table(&renewed),
            })
        }
        CertsCommand::Etcd {
            cluster,
            nodes,
            address_space,
            policy_writers,
            operators,
            meshes,
            mesh_readers,
            enable,
            output,
        } => {
            let mut cluster = Cluster::new(&cluster, &address_space)?;
            for node in nodes {
                cluster.add(&node.name, node.ranges)?;
            }
            policy_writers.iter().try_for_each(|user| cluster.add_policy_writer(user))?;
            operators.iter().try_for_each(|user| cluster.add_operator(user))?;
            meshes.iter().try_for_each(|user| cluster.add_mesh(user))?;
            mesh_readers.iter().try_for_each(|user| cluster.add_mesh_reader(user))?;
            let access = cluster.access();
            let enable = if enable { Access::enable_script() } else { "" };
            output.print(&access, || access.script() + enable)
        }
        CertsCommand::Kubernetes { output } => {
            let objects = kubernetes::objects();
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
            let yaml = villus_print::Output::Yaml.render(&list, String::new).map_err(Failure::new)?;
            output.print(&list, || yaml)
        }
    }
}

fn issue(holders: &[Holder], term: &TermArgs, place: &PlaceArgs, output: &OutputArgs) -> Result<(), Failure> {
    let pki = Pki::at(&place.dir);
    let issued: Vec<Issued> =
        holders.iter().map(|holder| pki.issue(holder, term.days)).collect::<Result<_, _>>()?;
    show(&issued, output)
}

fn list(place: &PlaceArgs, output: &OutputArgs) -> Result<(), Failure> {
    let (mut good, mut wrong) = (Vec::new(), false);
    for one in Pki::at(&place.dir).list()? {
        match one {
            Ok(issued) => good.push(issued),
            Err(error) => {
                wrong = true;
                out::complain(&format!("villus: {error}"));
            }
        }
    }
    show(&good, output)?;
    let ended = good.iter().any(|issued| issued.days < 0);
    if wrong || ended { Err(Failure::silent(FAILED)) } else { Ok(()) }
}

fn show(issued: &[Issued], output: &OutputArgs) -> Result<(), Failure> {
    output.print(issued, || table(issued))
}

fn table(issued: &[Issued]) -> String {
    let mut table = Table::new(["USER", "GROUP", "DAYS LEFT", "CERTIFICATE"]);
    for one in issued {
        let left = if one.days < 0 { "ended".to_owned() } else { one.days.to_string() };
        let group = one.found.organisation.clone().unwrap_or_default();
        table.row([one.found.common_name.clone(), group, left, one.certificate.display().to_string()]);
    }
    table.render()
}

impl From<CertsError> for Failure {
    fn from(error: CertsError) -> Self {
        crate::failure::split(&error.to_string())
    }
}
