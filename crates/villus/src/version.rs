//! `villus version`.

use clap::Args;
use serde_json::json;

use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus version -o json")]
pub struct VersionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, args: &VersionArgs) -> Result<(), Failure> {
    let here = env!("CARGO_PKG_VERSION");
    let agent =
        host.brief_client().and_then(|client| client.status(true).ok()).map(|status| status.cilium.msg);
    args.output.print(&json!({ "client": here, "agent": agent }), || {
        let agent = agent.as_deref().unwrap_or("does not answer");
        format!("Client: {here}\nAgent:  {agent}\n")
    })
}
