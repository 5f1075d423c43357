//! `villus monitor`.

use clap::Args;
use villus_api::model::MonitorQuery;
use villus_flows::{Filter, FilterSpec, LineFormat, Names, Numeric, Record};

use crate::{connect::Host, failure::Failure, identity_names::EventNames, out};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus monitor --type drop\n  villus monitor --related-to 794 --port 443 -v\n  \
                  villus monitor --last 100 --no-follow -j\n\nEach filter takes a list separated by commas: one of \
                  them must hold, and every filter that is given."
)]
pub struct MonitorArgs {
    /// Types of events: drop, trace, policy-verdict.
    #[arg(short, long = "type", value_name = "TYPE", value_delimiter = ',')]
    types: Vec<String>,
    /// Ids of endpoints that sent the packet.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    from: Vec<String>,
    /// Ids of endpoints the packet is for.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    to: Vec<String>,
    /// Ids of endpoints on either side.
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    related_to: Vec<String>,
    /// Numeric identities on either side.
    #[arg(long, value_name = "IDENTITY", value_delimiter = ',')]
    identity: Vec<String>,
    /// Addresses or prefixes on either side.
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    ip: Vec<String>,
    /// Ports on either side.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    port: Vec<String>,
    /// Protocols, by name or number.
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    protocol: Vec<String>,
    /// Drop reasons, by number or text.
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    /// Begin with so many events of the past.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    last: u32,
    /// End after the past instead of waiting for new events.
    #[arg(long)]
    no_follow: bool,
    /// One JSON object per line.
    #[arg(short, long)]
    json: bool,
    /// A second line with everything else that is known.
    #[arg(short, long)]
    verbose: bool,
    /// Numbers only.
    #[arg(short, long)]
    numeric: bool,
}

impl MonitorArgs {
    fn filter(&self) -> Result<FilterSpec, Failure> {
        let spec = FilterSpec {
            types: self.types.join(","),
            from: self.from.join(","),
            to: self.to.join(","),
            related_to: self.related_to.join(","),
            identity: self.identity.join(","),
            ip: self.ip.join(","),
            port: self.port.join(","),
            protocol: self.protocol.join(","),
            reason: self.reason.join(","),
        };
        Filter::try_from(&spec).map_err(|error| Failure::usage(format!("--{error}")))?;
        Ok(spec)
    }
}

pub fn run(host: &Host, args: &MonitorArgs) -> Result<(), Failure> {
    let query = MonitorQuery { filter: args.filter()?, last: args.last, follow: !args.no_follow };
    if args.numeric {
        follow(host, args, &query, LineFormat { names: Numeric, verbose: args.verbose })
    } else {
        follow(host, args, &query, LineFormat { names: EventNames::new(), verbose: args.verbose })
    }
}

fn follow<N: Names>(
    host: &Host,
    args: &MonitorArgs,
    query: &MonitorQuery,
    format: LineFormat<N>,
) -> Result<(), Failure> {
    let client = host.client()?;
    for record in client.monitor(query)? {
        let record = record?;
        let line = match (args.json, &record) {
            (true, record) => serde_json::to_string(record).map_err(Failure::new)?,
            (false, Record::Event(event)) => format.line(event),
            (false, lost) => format.record(lost),
        };
        out::line(&line)?;
    }
    if query.follow {
        return Err(Failure::new("the agent has ended the stream of events")
            .fix("it stops or restarts; run the command again"));
    }
    Ok(())
}
