//! A remote in words.

use std::collections::BTreeSet;

use crate::status::{RemoteStatus, State};

impl RemoteStatus {
    /// How it is, for people: the first line says all in short, the others begin with `└`.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.headline(), format!("└ {}", self.status)];
        lines.extend(self.refused.iter().chain(&self.file).map(|problem| format!("└ {problem}")));
        let config = &self.config;
        if config.retrieved {
            lines.push(format!(
                "└ remote configuration: retrieved=true, cluster-id={}, kvstoremesh={}, sync-canaries={}",
                config.cluster_id, config.kvstoremesh, config.sync_canaries
            ));
        }
        lines.push(format!("└ synchronization status: {}", self.synchronization()));
        let problems: BTreeSet<&String> =
            self.prefixes.iter().filter_map(|one| one.problem.as_ref()).collect();
        lines.extend(problems.into_iter().map(|problem| format!("└ {problem}")));
        let held: u64 = self.prefixes.iter().map(|one| one.held).sum();
        if held > 0 {
            let until = self.prefixes.iter().filter_map(|one| one.held_until).max();
            let until = until.map(|at| at.to_string()).unwrap_or_default();
            lines.push(format!("└ {held} copies that the remote lacks stay until {until}"));
        }
        lines
    }

    fn headline(&self) -> String {
        let word = match (&self.removal_at, self.ready) {
            (Some(at), _) => format!("removing, copies go at {at}"),
            (None, true) => "ready".to_owned(),
            (None, false) => "not-ready".to_owned(),
        };
        let last = self.last_failure.map_or("never".to_owned(), |at| at.to_string());
        format!(
            "{}: {word}, {} nodes, {} endpoints, {} identities, {} services, {} failures (last: {last})",
            self.name,
            self.num_nodes,
            self.num_endpoints,
            self.num_identities,
            self.num_shared_services,
            self.num_failures
        )
    }

    /// What is not synced, and since when.
    pub fn synchronization(&self) -> String {
        let late = self.prefixes.iter().filter(|one| one.state != State::Synced);
        let late: Vec<String> =
            late.map(|one| format!("{} {} since {}", one.kind, one.state.name(), one.since)).collect();
        if late.is_empty() { "all synced".to_owned() } else { late.join(", ") }
    }
}
