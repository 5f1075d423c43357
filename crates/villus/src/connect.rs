//! The agent on the other side of the socket.

use std::time::Duration;

use villus_api::{Client, EndpointRef};

use crate::failure::Failure;
use crate::out::{self, OutputArgs};

/// How long a command that does not need the agent waits for it.
const BRIEFLY: Duration = Duration::from_secs(2);

/// What `--host` means where it has no path behind it (`emergency allow`): no socket, but the node itself.
pub const THE_NODE: &str = "the node itself";

/// Where the agent listens.
pub struct Host {
    named: Option<String>,
}

impl Host {
    pub fn new(named: Option<String>) -> Self {
        Self { named: named.filter(|named| named != THE_NODE) }
    }

    /// A client that waits as long as requests take.
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::from_host(self.named.as_deref())?)
    }

    /// A client for what is good to know and not needed.
    pub fn brief_client(&self) -> Option<Client> {
        Client::from_host(self.named.as_deref()).ok().map(|client| client.with_timeout(BRIEFLY))
    }

    /// Tells people who have been shown what others say that the agent stands still, if it does.
    pub fn say_if_frozen(&self, output: &OutputArgs) {
        if !output.is_text() {
            return;
        }
        let Some(Ok(status)) = self.brief_client().map(|client| client.status_details()) else { return };
        let frozen = status.warnings.iter().find(|warning| warning.message.starts_with("frozen: "));
        if let Some(warning) = frozen {
            out::complain(&format!("villus: {}", warning.message));
        }
    }
}

/// Reads the name of an endpoint.
pub fn endpoint_ref(text: &str) -> Result<EndpointRef, String> {
    text.parse::<EndpointRef>().map_err(|error| error.problem.to_owned())
}
