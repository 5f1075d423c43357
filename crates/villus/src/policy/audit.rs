//! `villus policy audit`: the endpoints of a selector, those of now and those to come.

use clap::{Args, Subcommand, ValueEnum};
use villus_api::model::{SelectorAudit, SelectorAuditDelete, SelectorAuditRequest};
use villus_print::Table;

use crate::{
    connect::Host,
    failure::Failure,
    out::{self, OutputArgs},
};

#[derive(Subcommand, Debug)]
pub enum AuditCommand {
    /// Audit the endpoints of a selector, those of now and those to come; survives restarts.
    Add(AddArgs),
    /// Show the selectors whose endpoints are audited, and which of this node those are.
    #[command(after_help = "Example:\n  villus policy audit list")]
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// End the audit of a selector's endpoints: policy is enforced for them.
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy audit add app=web,env=prod\n  villus policy audit add app=web --direction ingress\n\n\
                  What policy denies passes and is reported: `villus monitor --type policy-verdict`."
)]
pub struct AddArgs {
    /// Labels that endpoints must have, separated by commas.
    selector: String,
    /// Only one direction; both if not given.
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// Say what would be audited, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus policy audit delete app=web,env=prod")]
pub struct DeleteArgs {
    /// The selector, as `villus policy audit list` shows it.
    selector: String,
    /// Say what would be audited still, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// A direction of an endpoint's policy.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Towards endpoints.
    Ingress,
    /// From endpoints.
    Egress,
}

pub fn run(host: &Host, command: AuditCommand) -> Result<(), Failure> {
    let client = host.client()?;
    let (audits, output, dry_run) = match command {
        AuditCommand::List { output } => (client.audits()?, output, false),
        AuditCommand::Add(args) => {
            let audit = match args.direction {
                None => "true",
                Some(Direction::Ingress) => "ingress",
                Some(Direction::Egress) => "egress",
            };
            let request =
                SelectorAuditRequest { selector: args.selector, audit: audit.into(), dry_run: args.dry_run };
            (client.put_audit(&request)?, args.output, args.dry_run)
        }
        AuditCommand::Delete(args) => {
            let delete = SelectorAuditDelete { selector: args.selector, dry_run: args.dry_run };
            (client.delete_audit(&delete)?, args.output, args.dry_run)
        }
    };
    output.print(&audits, || table(&audits))?;
    if dry_run && output.is_text() {
        out::line("this would be so; nothing was changed")?;
    }
    Ok(())
}

fn table(audits: &[SelectorAudit]) -> String {
    if audits.is_empty() {
        return "no selector's endpoints are audited\n".to_owned();
    }
    let mut table = Table::new(["SELECTOR", "DIRECTION", "ENDPOINTS", "SINCE"]);
    for SelectorAudit { selector, audit, created, endpoints } in audits {
        let direction = if audit == "true" { "both" } else { audit };
        let mut ids: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        if ids.is_empty() {
            ids.push("-".into());
        }
        table.row([selector.as_str(), direction, &ids.join(","), created]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_listed_with_their_endpoints() {
        assert_eq!(table(&[]), "no selector's endpoints are audited\n");
        let audit = |selector: &str, audit: &str, endpoints: &[u16]| SelectorAudit {
            selector: selector.into(),
            audit: audit.into(),
            created: "2026-01-02T03:04:05Z".into(),
            endpoints: endpoints.to_vec(),
        };
        let text = table(&[audit("app=web", "true", &[1, 7]), audit("app=db", "egress", &[])]);
        assert_eq!(
            text,
            "SELECTOR   DIRECTION   ENDPOINTS   SINCE\n\
             app=web    both        1,7         2026-01-02T03:04:05Z\n\
             app=db     egress      -           2026-01-02T03:04:05Z\n"
        );
    }
}
