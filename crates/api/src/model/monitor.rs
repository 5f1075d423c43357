//! The stream of events.

use serde::{Deserialize, Serialize};
use villus_flows::FilterSpec;

/// Query of `GET /villus/monitor`. The answer is one JSON object per line, each a `villus_flows::Record`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct MonitorQuery {
    /// Which events.
    #[serde(flatten)]
    pub filter: FilterSpec,
    /// So many of the past first.
    pub last: u32,
    /// Go on with new ones; else end after the past.
    pub follow: bool,
}

impl Default for MonitorQuery {
    fn default() -> Self {
        Self { filter: FilterSpec::default(), last: 0, follow: true }
    }
}

impl MonitorQuery {
    /// The query parameters that are understood.
    pub const PARAMETERS: [&str; 11] = [
        "type",
        "from",
        "to",
        "related-to",
        "identity",
        "ip",
        "port",
        "protocol",
        "reason",
        "last",
        "follow",
    ];
}
