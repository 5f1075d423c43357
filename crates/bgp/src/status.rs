//! What BIRD's sessions say.

use serde::Serialize;
use villus_print::Table;

use crate::Reply;

/// Numbers of lines: BIRD itself, a protocol, its details.
const VERSION: u16 = 1000;
const ROUTER: u16 = 1011;
const PROTOCOL: u16 = 1002;
const DETAILS: u16 = 1006;

/// BIRD and its sessions of BGP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Its version: `BIRD 2.0.12`.
    pub version: String,
    /// Its router id.
    pub router_id: String,
    /// Its sessions, in BIRD's order.
    pub sessions: Vec<Session>,
}

/// A session of BGP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Session {
    /// Name of the protocol in BIRD's configuration.
    pub name: String,
    /// BGP's own state: `Established`, `Active`, `Idle`, …
    pub state: String,
    /// Since when, as BIRD writes it.
    pub since: String,
    /// The neighbour.
    pub neighbour: String,
    /// Its autonomous system.
    pub neighbour_as: String,
    /// Why it is not established, or the last error.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// What it carries.
    pub channels: Vec<Channel>,
}

/// A family that a session carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Channel {
    /// `ipv4` or `ipv6`.
    pub name: String,
    /// Routes taken.
    pub imported: u64,
    /// Routes announced.
    pub exported: u64,
}

// === impl Session ===

impl Session {
    /// Whether routes go to and fro.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.state == "Established"
    }
}

// === impl Status ===

impl Status {
    /// Reads the answers to `show status` and `show protocols all`. What is not known is passed over.
    #[must_use]
    pub fn read(bird: &Reply, protocols: &Reply) -> Self {
        let mut status = Self {
            version: bird.of(VERSION).next().unwrap_or_default().to_owned(),
            router_id: bird
                .of(ROUTER)
                .find_map(|line| line.strip_prefix("Router ID is "))
                .unwrap_or_default()
                .to_owned(),
            sessions: Vec::new(),
        };
        let mut is_bgp = false;
        for line in &protocols.lines {
            match line.code {
                PROTOCOL => {
                    let session = protocol(&line.text);
                    is_bgp = session.is_some();
                    status.sessions.extend(session);
                }
                DETAILS if is_bgp => {
                    if let Some(session) = status.sessions.last_mut() {
                        session.detail(&line.text);
                    }
                }
                _ => {}
            }
        }
        status
    }

    /// Whether there are sessions and all of them are established.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.sessions.is_empty() && self.sessions.iter().all(Session::is_established)
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let up = self.sessions.iter().filter(|session| session.is_established()).count();
        let mut table =
            Table::new(["SESSION", "NEIGHBOUR", "AS", "STATE", "SINCE", "ANNOUNCED", "TAKEN", "PROBLEM"]);
        for session in &self.sessions {
            let sum =
                |count: fn(&Channel) -> u64| session.channels.iter().map(count).sum::<u64>().to_string();
            table.row([
                session.name.clone(),
                session.neighbour.clone(),
                session.neighbour_as.clone(),
                session.state.clone(),
                session.since.clone(),
                sum(|channel| channel.exported),
                sum(|channel| channel.imported),
                session.problem.clone(),
            ]);
        }
        let router = &self.router_id;
        format!(
            "{}, router {router}: {up} of {} sessions established\n{}",
            self.version,
            self.sessions.len(),
            table.render()
        )
    }
}

/// A session out of `up1  BGP  ---  up  14:03:02.123  Established  …`; none if it is another protocol.
fn protocol(text: &str) -> Option<Session> {
    let mut words = text.split_whitespace();
    let (name, kind, _table, _state) = (words.next()?, words.next()?, words.next()?, words.next()?);
    if kind != "BGP" {
        return None;
    }
    let rest: Vec<&str> = words.collect();
    // Since when is one word or, for another day, two: a date and a time.
    let dated =
        rest.get(1).is_some_and(|word| word.contains(':') && word.starts_with(|c: char| c.is_ascii_digit()));
    let (since, info) = rest.split_at(rest.len().min(if dated { 2 } else { 1 }));
    let (state, problem) = info.split_first().map_or(("", &[][..]), |(state, problem)| (*state, problem));
    Some(Session {
        name: name.to_owned(),
        state: state.to_owned(),
        since: since.join(" "),
        problem: problem.join(" "),
        ..Session::default()
    })
}

impl Session {
    fn detail(&mut self, text: &str) {
        let text = text.trim();
        if let Some(name) = text.strip_prefix("Channel ") {
            self.channels.push(Channel { name: name.to_owned(), ..Channel::default() });
            return;
        }
        let Some((key, value)) = text.split_once(':') else { return };
        let value = value.trim();
        match key {
            "BGP state" => self.state = value.to_owned(),
            "Neighbor address" => self.neighbour = value.to_owned(),
            "Neighbor AS" => self.neighbour_as = value.to_owned(),
            "Last error" => self.problem = value.to_owned(),
            "Routes" => {
                if let Some(channel) = self.channels.last_mut() {
                    channel.imported = count(value, "imported");
                    channel.exported = count(value, "exported");
                }
            }
            _ => {}
        }
    }
}

/// The number before a word: `3 imported, 1 exported, 2 preferred`.
fn count(text: &str, word: &str) -> u64 {
    let part = text.split(',').map(str::trim).find_map(|part| part.strip_suffix(word));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}
