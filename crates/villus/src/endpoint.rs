//! `villus endpoint`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use clap::{Args, Subcommand};
use villus_api::{
    EndpointRef,
    model::{Endpoint, EndpointChangeRequest, EndpointConfigPatch, EndpointPatch, Mac},
};
use villus_policy::NamedPort;
use villus_print::{EndpointRow, Table, endpoint_list};

use crate::{
    connect::{Host, endpoint_ref},
    failure::Failure,
    out::{self, OutputArgs},
};

const NAMES: &str = "Endpoints are named by id, address (10.0.0.1), owner:NAME, netns:NAME, container-id:ID,\n\
                     container-name:NAME, pod-name:NAMESPACE:NAME, or any of those names alone.";

#[derive(Subcommand, Debug)]
pub enum EndpointCommand {
    /// Create an endpoint in a network namespace, or on an interface that exists.
    Add(Box<AddArgs>),
    /// List endpoints.
    #[command(after_help = "Example:\n  villus endpoint list --labels k8s:app=web")]
    List {
        /// Only endpoints with all these labels, separated by commas.
        #[arg(short, long, value_delimiter = ',')]
        labels: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show everything about an endpoint, as a JSON list unless told otherwise.
    #[command(after_help = format!("Example:\n  villus endpoint get 794 -o jsonpath='{{[0].status.policy.realized}}'\n\n{NAMES}"))]
    Get {
        /// The endpoint.
        #[arg(value_parser = endpoint_ref)]
        endpoint: EndpointRef,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show or change an endpoint's labels, and with them its identity.
    #[command(after_help = format!("Example:\n  villus endpoint labels web-0 --add k8s:tier=front --delete k8s:canary\n\n{NAMES}"))]
    Labels(LabelsArgs),
    /// Delete endpoints.
    #[command(after_help = format!("Example:\n  villus endpoint delete web-0\n\n{NAMES}"))]
    Delete {
        /// The endpoints.
        #[arg(value_parser = endpoint_ref, required = true)]
        endpoints: Vec<EndpointRef>,
        /// Say what would be deleted, and delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show or change an endpoint's options.
    #[command(after_help = format!("Example:\n  villus endpoint config 794 PolicyAuditMode=true\n\n{NAMES}"))]
    Config {
        /// The endpoint.
        #[arg(value_parser = endpoint_ref)]
        endpoint: EndpointRef,
        /// Options to change.
        #[arg(value_name = "OPTION=VALUE")]
        change: Vec<String>,
        /// Say what would be changed, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show what happened to an endpoint.
    #[command(after_help = format!("Example:\n  villus endpoint log 794\n\n{NAMES}"))]
    Log {
        /// The endpoint.
        #[arg(value_parser = endpoint_ref)]
        endpoint: EndpointRef,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show an endpoint's health.
    #[command(name = "healthz", after_help = format!("Example:\n  villus endpoint healthz 794\n\n{NAMES}"))]
    Health {
        /// The endpoint.
        #[arg(value_parser = endpoint_ref)]
        endpoint: EndpointRef,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus endpoint add --netns web --labels k8s:app=web,k8s:tier=front --port http=8080/TCP\n  \
                  villus endpoint add --netns db --labels k8s:app=db --name db-0 --sticky --ip 10.15.0.9\n  \
                  villus endpoint add --adopt tap0 --ipv4 10.15.0.20 --mac 52:54:00:00:00:07 --labels k8s:app=vm"
)]
pub struct AddArgs {
    /// Network namespace: a name of `ip netns`, or a path.
    #[arg(long, value_name = "NAME", required_unless_present = "adopt")]
    netns: Option<String>,
    /// Labels, separated by commas; source k8s where none is given.
    #[arg(short, long, value_delimiter = ',', value_name = "SOURCE:KEY=VALUE")]
    labels: Vec<String>,
    /// The name that the addresses belong to.
    #[arg(long, value_name = "OWNER")]
    name: Option<String>,
    /// The same owner gets the same addresses again.
    #[arg(long, requires = "name")]
    sticky: bool,
    /// A port by its name, for policies that name ports; may be given several times.
    #[arg(long, value_name = "NAME=NUMBER[/PROTOCOL]", value_delimiter = ',')]
    port: Vec<NamedPort>,
    /// A fixed address; may be given several times. A family without one gets an address of the node's pool.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// A fixed IPv4 address; may be given several times.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ipv4: Vec<Ipv4Addr>,
    /// A fixed IPv6 address; may be given several times.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ipv6: Vec<Ipv6Addr>,
    /// Adopt this interface of the node (a tap, the host's end of a veth) instead of making a pair. It is never deleted;
    /// when it goes and comes back under its name, so does the endpoint.
    #[arg(long, value_name = "IF", visible_alias = "interface", conflicts_with = "netns")]
    adopt: Option<String>,
    /// Ethernet address of the workload; what is behind an adopted interface says it by itself if it is not given.
    #[arg(long, value_name = "MAC")]
    mac: Option<Mac>,
    /// Name of the interface inside the namespace; eth0 if not given.
    #[arg(long, value_name = "IF", conflicts_with = "adopt")]
    device: Option<String>,
    /// Let DHCP, router solicitations and advertisements pass; if not given as the agent's allow-dhcp says: for taps.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    allow_dhcp: Option<bool>,
    /// Largest layer-3 packet, bytes; the node's if not given.
    #[arg(long)]
    mtu: Option<u32>,
    /// A fixed id instead of a free one.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    id: u16,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub struct LabelsArgs {
    /// The endpoint.
    #[arg(value_parser = endpoint_ref)]
    endpoint: EndpointRef,
    /// Labels to add, or to replace by their keys.
    #[arg(short, long, value_delimiter = ',', value_name = "SOURCE:KEY=VALUE")]
    add: Vec<String>,
    /// Labels to remove.
    #[arg(short, long, value_delimiter = ',', value_name = "SOURCE:KEY")]
    delete: Vec<String>,
    /// All labels from now on.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["add", "delete"], value_name = "SOURCE:KEY=VALUE")]
    set: Option<Vec<String>>,
    /// Say what would be changed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, command: EndpointCommand) -> Result<(), Failure> {
    match command {
        EndpointCommand::Add(args) => add(host, &args),
        EndpointCommand::List { labels, output } => {
            let endpoints = host.client()?.endpoints(&labels)?;
            let rows: Vec<EndpointRow> = endpoints.iter().map(EndpointRow::from).collect();
            output.print(&endpoints, || endpoint_list(&rows))
        }
        EndpointCommand::Get { endpoint, output } => {
            // A list, as Cilium's command has it.
            let endpoints = [host.client()?.endpoint(&endpoint)?];
            output.print(&endpoints, || serde_json::to_string_pretty(&endpoints).unwrap_or_default() + "\n")
        }
        EndpointCommand::Labels(args) => labels(host, args),
        EndpointCommand::Delete { endpoints, dry_run } => delete(host, &endpoints, dry_run),
        EndpointCommand::Config { endpoint, change, dry_run, output } => {
            config(host, &endpoint, &change, dry_run, &output)
        }
        EndpointCommand::Log { endpoint, output } => {
            let log = host.client()?.endpoint_log(&endpoint)?;
            output.print(&log, || {
                let mut table = Table::new(["Timestamp", "Status", "State", "Message"]);
                for entry in &log {
                    table.row([entry.timestamp.as_str(), &entry.code, entry.state.name(), &entry.message]);
                }
                table.render()
            })
        }
        EndpointCommand::Health { endpoint, output } => {
            let health = host.client()?.endpoint_health(&endpoint)?;
            output.print(&health, || {
                let connected = if health.connected { "yes" } else { "no" };
                let mut table = Table::default();
                table.row(["Overall Health:", &health.overall_health]);
                table.row(["BPF Health:", &health.bpf]);
                table.row(["Policy Health:", &health.policy]);
                table.row(["Connected:", connected]);
                table.render()
            })
        }
    }
}

fn add(host: &Host, args: &AddArgs) -> Result<(), Failure> {
    let typed =
        args.ipv4.iter().copied().map(IpAddr::from).chain(args.ipv6.iter().copied().map(IpAddr::from));
    let addresses = args.ip.iter().copied().chain(typed).collect();
    let request = EndpointChangeRequest {
        netns: args.netns.clone(),
        labels: args.labels.clone(),
        named_ports: args.port.iter().map(ToString::to_string).collect(),
        owner: args.name.clone(),
        sticky: args.sticky,
        addresses,
        adopt_interface: args.adopt.clone(),
        mac: args.mac,
        container_interface_name: args.device.clone(),
        allow_dhcp: args.allow_dhcp,
        mtu: args.mtu,
        sync_build_endpoint: true,
        dry_run: args.dry_run,
        ..EndpointChangeRequest::default()
    };
    let endpoint = host.client()?.create_endpoint(&EndpointRef::Id(args.id), &request)?;
    args.output.print(&endpoint, || {
        let would = if args.dry_run { "would create: " } else { "" };
        format!("{would}{}", summary(&endpoint))
    })
}

/// `endpoint 794, identity 298951, 10.15.0.3 fd00::3, ready`, warnings below.
fn summary(endpoint: &Endpoint) -> String {
    let mut parts = vec![match endpoint.id {
        0 => "endpoint".to_owned(),
        id => format!("endpoint {id}"),
    }];
    if let Some(identity) = &endpoint.status.identity {
        parts.push(format!("identity {}", identity.id));
    }
    let addressing = &endpoint.status.networking.addressing;
    let v4 = addressing.iter().filter_map(|pair| pair.ipv4).map(|address| address.to_string());
    let v6 = addressing.iter().filter_map(|pair| pair.ipv6).map(|address| address.to_string());
    let addresses: Vec<String> = v4.chain(v6).collect();
    if !addresses.is_empty() {
        parts.push(addresses.join(" "));
    }
    parts.push(endpoint.status.state.to_string());
    let warnings = endpoint.status.villus.warnings.iter();
    warnings.fold(format!("{}\n", parts.join(", ")), |text, warning| format!("{text}Warning: {warning}\n"))
}

fn labels(host: &Host, args: LabelsArgs) -> Result<(), Failure> {
    let client = host.client()?;
    let shows = args.add.is_empty() && args.delete.is_empty() && args.set.is_none();
    let endpoint = if shows {
        client.endpoint(&args.endpoint)?
    } else {
        let patch = EndpointPatch {
            labels: args.set,
            add_labels: args.add,
            delete_labels: args.delete,
            dry_run: args.dry_run,
        };
        client.patch_endpoint(&args.endpoint, &patch)?
    };
    args.output.print(&endpoint.status.labels, || {
        let labels = &endpoint.status.labels;
        let identity = endpoint.status.identity.as_ref().map(|identity| identity.id).unwrap_or_default();
        let mut table = Table::default();
        table.rows([vec!["Identity:".into()], vec![identity.to_string()]]);
        table.rows([vec!["Labels:".into()], labels.security_relevant.clone()]);
        table.rows([vec!["Not relevant:".into()], labels.derived.clone()]);
        table.render()
    })
}

fn delete(host: &Host, endpoints: &[EndpointRef], dry_run: bool) -> Result<(), Failure> {
    let client = host.client()?;
    for endpoint in endpoints {
        if dry_run {
            out::print(&format!("would delete {}", summary(&client.endpoint(endpoint)?)))?;
            continue;
        }
        let answer = client.delete_endpoint(endpoint)?;
        for id in &answer.deleted {
            out::line(&format!("endpoint {id} deleted"))?;
        }
        if !answer.errors.is_empty() {
            let what = format!("endpoint {endpoint} left something behind: {}", answer.errors.join("; "));
            return Err(Failure::new(what).fix("the agent tries again; `villus status` shows what remains"));
        }
    }
    Ok(())
}

fn config(
    host: &Host,
    endpoint: &EndpointRef,
    change: &[String],
    dry_run: bool,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let client = host.client()?;
    let mut options = BTreeMap::new();
    for assignment in change {
        let (option, value) = assignment
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("{assignment:?} is not OPTION=VALUE")))?;
        options.insert(option.to_owned(), value.to_owned());
    }
    let shown = if options.is_empty() || dry_run {
        client.endpoint(endpoint)?
    } else {
        client.configure_endpoint(endpoint, &EndpointConfigPatch { options: options.clone() })?
    };
    if dry_run {
        for (option, value) in &options {
            let old = shown.status.realized.options.get(option).map_or("its default", String::as_str);
            out::line(&format!("would change {option} of endpoint {} from {old} to {value}", shown.id))?;
        }
        return Ok(());
    }
    let realized = &shown.status.realized.options;
    output.print(realized, || {
        let mut table = Table::new(["OPTION", "VALUE"]);
        realized.iter().for_each(|(option, value)| table.row([option, value]));
        table.render()
    })
}
