//! `villus emergency allow`.

use std::{collections::BTreeMap, time::Duration, time::SystemTime};

use clap::Args;
use villus_abi::{Direction, endpoint::HOST_ID};
use villus_datapath::{PolicyView, policy_endpoints, view_policy};
use villus_emergency::{Allow, Order, Plan, carry_out, direction_text, key_text, name, rfc3339};

use super::{check_root, timer, who};
use crate::{
    connect::{Host, THE_NODE},
    failure::{FAILED, Failure},
    kernel::{Kernel, PlaceArgs},
    out,
};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus emergency allow --endpoint 794 --for 15m\n  villus emergency allow --all --dry-run\n  \
                  villus emergency allow --endpoint 10.15.0.3 --ingress --override-deny\n  \
                  villus emergency allow --host --override-deny --for 30m\n\n\
                  Works without an agent; an agent that runs or starts keeps the entries and shows them. Take it back\n\
                  with `villus emergency undo`."
)]
pub struct AllowArgs {
    /// The endpoint: its id, the name of its map, or one of its addresses; may be given several times.
    #[arg(long, value_name = "ID", value_delimiter = ',', required_unless_present_any = ["all", "host"])]
    endpoint: Vec<String>,
    /// All endpoints of this node; not those that come later, and not the node itself.
    #[arg(long, conflicts_with = "endpoint")]
    all: bool,
    /// The node itself, for who has locked himself out of it. With =PATH the agent's socket, as before the command.
    #[arg(
        id = "host",
        long = "host",
        value_name = "PATH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = THE_NODE
    )]
    host: Option<String>,
    /// Only packets to the endpoints.
    #[arg(long)]
    ingress: bool,
    /// Only packets from the endpoints.
    #[arg(long)]
    egress: bool,
    /// Also take out entries that deny, which otherwise win; undoing puts them back.
    #[arg(long)]
    override_deny: bool,
    /// Undo it after this time.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = villus_config::duration::parse(text)?;
    if duration.is_zero() {
        Err("the time must be longer than nothing, as in 15m".into())
    } else {
        Ok(duration)
    }
}

impl AllowArgs {
    fn is_for_node(&self) -> bool {
        self.host.as_deref() == Some(THE_NODE)
    }

    fn order(&self, kernel: &Kernel, host: &Host, all: &BTreeMap<u16, PolicyView>) -> Result<Order, Failure> {
        let mut endpoints: Vec<u16> = if self.all {
            all.keys().copied().filter(|id| *id != HOST_ID).collect()
        } else {
            self.endpoint.iter().map(|text| kernel.endpoint(text, host)).collect::<Result<_, _>>()?
        };
        endpoints.extend(self.is_for_node().then_some(HOST_ID));
        endpoints.sort_unstable();
        endpoints.dedup();
        let directions = match (self.ingress, self.egress) {
            (true, false) => vec![Direction::Ingress],
            (false, true) => vec![Direction::Egress],
            _ => Direction::ALL.to_vec(),
        };
        Ok(Order { endpoints, directions, override_deny: self.override_deny })
    }
}

pub fn run(host: &Host, args: &AllowArgs) -> Result<(), Failure> {
    check_root()?;
    let paths = args.places.paths()?;
    let kernel = args.places.kernel()?;
    let (views, identities) = endpoints(&kernel)?;
    let order = args.order(&kernel, host, &views)?;
    let plan = Plan::new(&views, &identities, &order);
    if plan.is_empty() && plan.already.is_empty() {
        plan.warnings.iter().for_each(|warning| out::complain(&format!("villus: {warning}")));
        let missing = order.endpoints.iter().any(|id| !views.contains_key(id));
        let fix = if missing && args.is_for_node() {
            "no policy selects the node: look for what else keeps you out, such as nftables"
        } else if missing {
            "see `villus bpf endpoint list` for the endpoints of this node"
        } else {
            "repeat it with --override-deny: everything is denied by one entry, which must give way"
        };
        return Err(Failure::new("nothing was opened").fix(fix));
    }
    for (endpoint, direction) in &plan.already {
        out::line(&format!("{}: {} is open already", name(*endpoint), direction_text(*direction)))?;
    }
    if args.dry_run {
        describe(&plan, "would be ")?;
        return warn(&plan);
    }
    if plan.is_empty() {
        return warn(&plan);
    }
    // Written down first: whatever happens next can be undone.
    let until = args.duration.and_then(|duration| SystemTime::now().checked_add(duration));
    let journal = villus_emergency::Journal::open(&paths.lib_dir);
    let allow = journal.append_allow(Allow {
        by: who(),
        command: "emergency allow".to_owned(),
        until: until.map(rfc3339).unwrap_or_default(),
        changes: plan.changes.clone(),
        ..Allow::default()
    })?;
    let outcome = carry_out(&kernel.pins, &kernel.maps, &plan.changes);
    describe(&plan, "")?;
    warn(&plan)?;
    if let Some(duration) = args.duration {
        match timer::start(&paths, allow.id, duration) {
            Ok(pid) => out::line(&format!("deed {}: undone at {} by process {pid}", allow.id, allow.until))?,
            Err(error) => {
                out::complain(&format!("villus: no process could be left behind to undo it: {error}"));
                out::complain(&format!("  undo it by hand: villus emergency undo {}", allow.id));
            }
        }
    }
    out::line(&format!("take it back with: villus emergency undo {}", allow.id))?;
    for (endpoint, error) in &outcome.failed {
        out::complain(&format!("villus: {} was not opened: {error}", name(*endpoint)));
    }
    if outcome.failed.is_empty() { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

type Endpoints = (BTreeMap<u16, PolicyView>, BTreeMap<u16, u32>);

/// The policies and identities of all endpoints.
fn endpoints(kernel: &Kernel) -> Result<Endpoints, Failure> {
    let (mut views, mut identities) = (BTreeMap::new(), BTreeMap::new());
    for id in policy_endpoints(&kernel.pins)? {
        views.insert(id, view_policy(&kernel.pins, &kernel.maps, id)?);
        if let Some(record) = kernel.maps.endpoints.get(&u32::from(id))? {
            identities.insert(id, record.identity);
        }
    }
    Ok((views, identities))
}

fn describe(plan: &Plan, would: &str) -> Result<(), Failure> {
    for change in &plan.changes {
        let name = name(change.endpoint);
        for key in &change.insert {
            out::line(&format!("{name}: {would}allowed: {}", key_text(key)))?;
        }
        for taken in &change.take {
            out::line(&format!("{name}: {would}no longer denied: {}", key_text(&taken.key)))?;
        }
    }
    Ok(())
}

fn warn(plan: &Plan) -> Result<(), Failure> {
    plan.warnings.iter().try_for_each(|warning| out::line(&format!("Warning: {warning}")))
}
