//! `villus policy hold` and `release`: with the agent, or written down for it while it is gone.

use clap::Args;
use villus_api::{EndpointRef, model::HoldRequest};
use villus_emergency::Event;

use crate::{
    connect::{Host, endpoint_ref},
    failure::Failure,
    kernel::PlaceArgs,
    out,
};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus policy hold 794 --reason 'looking into INC-1432'\n\nThe map stays as it is, \
                  also over a restart of the agent, until `villus policy release`."
)]
pub struct HoldArgs {
    /// The endpoint; only its id if the agent does not run.
    #[arg(value_parser = endpoint_ref)]
    endpoint: EndpointRef,
    /// Why, for those who come later.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus policy release 794")]
pub struct ReleaseArgs {
    /// The endpoint; only its id if the agent does not run.
    #[arg(value_parser = endpoint_ref)]
    endpoint: EndpointRef,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

pub fn hold(host: &Host, args: &HoldArgs) -> Result<(), Failure> {
    let request = HoldRequest { reason: args.reason.clone(), dry_run: args.dry_run };
    match host.client()?.hold(&args.endpoint, &request) {
        Ok(hold) => out::line(&format!("{}held: endpoint {}", would(args.dry_run), hold.endpoint)),
        Err(error) if error.no_agent() => {
            let endpoint = id(&args.endpoint).ok_or(error)?;
            if !args.dry_run {
                args.places.journal()?.append(Event::Hold { endpoint, reason: args.reason.clone() })?;
            }
            let when = "from the agent's next start";
            out::line(&format!("{}held {when}: endpoint {endpoint}", would(args.dry_run)))
        }
        Err(error) => Err(error.into()),
    }
}

pub fn release(host: &Host, args: &ReleaseArgs) -> Result<(), Failure> {
    let client = host.client()?;
    if args.dry_run {
        return out::line(&format!("would be released: endpoint {}", args.endpoint));
    }
    match client.release(&args.endpoint) {
        Ok(()) => out::line(&format!("released: endpoint {}", args.endpoint)),
        Err(error) if error.no_agent() => {
            let endpoint = id(&args.endpoint).ok_or(error)?;
            args.places.journal()?.append(Event::Release { endpoint })?;
            out::line(&format!("released from the agent's next start: endpoint {endpoint}"))
        }
        Err(error) => Err(error.into()),
    }
}

const fn would(dry_run: bool) -> &'static str {
    if dry_run { "would be " } else { "" }
}

const fn id(endpoint: &EndpointRef) -> Option<u16> {
    match endpoint {
        EndpointRef::Id(id) => Some(*id),
        _ => None,
    }
}
