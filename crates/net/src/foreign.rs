//! Rules of others that drop what workloads send through the node, with the lines that mend them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command;
use crate::error::NetError;
use crate::nat::{NAT_TABLE, nft};

const FIX: &str = "foreign rules could not be looked at";

/// A rule or policy of others that drops forwarded packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignDrop {
    /// Where, as `family table chain`.
    pub place: String,
    /// What it does and whose it probably is.
    pub what: String,
    /// The lines that let workloads' packets pass.
    pub mend: Vec<String>,
}

/// Looks for drops of forwarded packets in the calling thread's namespace: in nftables (where `nft` is there) and in
/// the older iptables (where its tables are in use). A drop that lets packets of all `devices` pass before is not
/// reported. A device is a name or one with `*` at its end, such as `lxc*`.
///
/// # Errors
/// [`NetError::Command`] when a listing fails.
pub fn foreign_drops(devices: &[&str]) -> Result<Vec<ForeignDrop>, NetError> {
    let mut drops = Vec::new();
    if let Ok(nft) = nft() {
        let text = command::run(&nft, &["-j", "-t", "list", "ruleset"], "", FIX)?;
        drops.extend(nft_drops(&text, devices));
    }
    for (names, commands, restore) in [
        ("/proc/net/ip_tables_names", ["iptables-legacy-save", "iptables-save"], "iptables"),
        ("/proc/net/ip6_tables_names", ["ip6tables-legacy-save", "ip6tables-save"], "ip6tables"),
    ] {
        let in_use = std::fs::read_to_string(names).is_ok_and(|tables| tables.lines().any(|t| t == "filter"));
        if let Some(save) = commands.iter().find_map(|name| command::find(name)).filter(|_| in_use) {
            let text = command::run(&save, &["-t", "filter"], "", FIX)?;
            drops.extend(iptables_drops(&text, restore, devices));
        }
    }
    Ok(drops)
}

/// The same from the text of `nft -j list ruleset`. What cannot be understood counts as no drop.
pub fn nft_drops(text: &str, devices: &[&str]) -> Vec<ForeignDrop> {
    let Ok(answer) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let objects = answer.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let chains = objects.iter().filter_map(|object| Chain::of(object.get("chain")?));
    let chains: Vec<Chain<'_>> = chains.collect();
    let rules: Vec<Rule<'_>> = objects.iter().filter_map(|object| Rule::of(object.get("rule")?)).collect();
    let forward = chains.iter().filter(|c| c.forwards && !(c.family == "inet" && c.table == NAT_TABLE));
    forward.filter_map(|chain| nft_drop(chain, &chains, &rules, devices)).collect()
}

/// A chain of nftables.
struct Chain<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
    forwards: bool,
    drops: bool,
}

/// A rule of nftables.
struct Rule<'a> {
    family: &'a str,
    table: &'a str,
    chain: &'a str,
    statements: &'a [Value],
}

// === impl Chain ===

impl<'a> Chain<'a> {
    fn of(object: &'a Value) -> Option<Self> {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        Some(Chain {
            family: text("family")?,
            table: text("table")?,
            name: text("name")?,
            forwards: text("hook") == Some("forward") && text("type") == Some("filter"),
            drops: text("policy") == Some("drop"),
        })
    }

    /// Made by `iptables-nft`, whose tables and chains are called so; to be changed by `iptables` only.
    fn is_of_iptables(&self) -> bool {
        matches!(self.family, "ip" | "ip6") && self.table == "filter" && self.name == "FORWARD"
    }
}

// === impl Rule ===

impl<'a> Rule<'a> {
    fn of(object: &'a Value) -> Option<Self> {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        Some(Rule {
            family: text("family")?,
            table: text("table")?,
            chain: text("chain")?,
            statements: object.get("expr")?.as_array()?,
        })
    }

    fn is_in(&self, chain: &Chain<'_>, name: &str) -> bool {
        (self.family, self.table, self.chain) == (chain.family, chain.table, name)
    }

    fn has(&self, statement: &str) -> bool {
        self.statements.iter().any(|s| s.get(statement).is_some())
    }

    /// Drops or rejects whatever comes to it.
    fn drops_everything(&self) -> bool {
        let conditions = ["match", "xt", "limit", "vmap", "ct count"];
        (self.has("drop") || self.has("reject")) && !conditions.iter().any(|condition| self.has(condition))
    }

    /// Accepts whatever has this device on this side (`iifname` or `oifname`).
    fn accepts(&self, side: &str, device: &str) -> bool {
        let matches: Vec<_> = self.statements.iter().filter_map(|statement| statement.get("match")).collect();
        let [only] = matches.as_slice() else { return false };
        let key = only.pointer("/left/meta/key").and_then(Value::as_str);
        let value = only.get("right").and_then(Value::as_str);
        self.has("accept") && key == Some(side) && value.is_some_and(|value| covers(value, device))
    }
}

fn nft_drop(
    chain: &Chain<'_>,
    chains: &[Chain<'_>],
    rules: &[Rule<'_>],
    devices: &[&str],
) -> Option<ForeignDrop> {
    let own: Vec<_> = rules.iter().filter(|rule| rule.is_in(chain, chain.name)).collect();
    let last = own.iter().position(|rule| rule.drops_everything());
    if !chain.drops && last.is_none() {
        return None;
    }
    let docker = chains.iter().any(|c| {
        c.family == chain.family && c.table == chain.table && matches!(c.name, "DOCKER-USER" | "DOCKER")
    });
    let hook_for_users = docker.then_some("DOCKER-USER");
    let reached = own.iter().take(last.unwrap_or(own.len())).copied();
    let users = rules.iter().filter(|rule| hook_for_users.is_some_and(|name| rule.is_in(chain, name)));
    let before: Vec<_> = reached.chain(users).collect();
    let passes = |device: &str| {
        ["iifname", "oifname"].iter().all(|side| before.iter().any(|rule| rule.accepts(side, device)))
    };
    let blocked: Vec<&str> = devices.iter().copied().filter(|device| !passes(device)).collect();
    if blocked.is_empty() {
        return None;
    }
    let what =
        if chain.drops { "policy drop for all that is forwarded" } else { "a rule that drops the rest" };
    let whose = if docker { ", set by docker" } else { "" };
    let mend = if chain.is_of_iptables() {
        let command = if chain.family == "ip" { "iptables" } else { "ip6tables" };
        iptables_lines(command, hook_for_users.unwrap_or(chain.name), &blocked)
    } else {
        nft_lines(chain, &blocked)
    };
    Some(ForeignDrop {
        place: format!("{} {} {}", chain.family, chain.table, chain.name),
        what: format!("{what}{whose}"),
        mend,
    })
}

/// The same from the text of `iptables-save -t filter`; `command` is what adds rules there.
pub fn iptables_drops(text: &str, command: &str, devices: &[&str]) -> Vec<ForeignDrop> {
    if !text.lines().any(|line| line.starts_with(":FORWARD DROP")) {
        return Vec::new();
    }
    let docker = text.lines().any(|line| line.starts_with(":DOCKER-USER ") || line.starts_with(":DOCKER "));
    let chain = if docker { "DOCKER-USER" } else { "FORWARD" };
    let accepts = |side: &str, device: &str| {
        text.lines().any(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["-A", "FORWARD" | "DOCKER-USER", flag, name, "-j", "ACCEPT"] => {
                *flag == side && covers(&name.replace('+', "*"), device)
            }
            _ => false,
        })
    };
    let passes = |device: &&str| accepts("-i", device) && accepts("-o", device);
    let blocked: Vec<&str> = devices.iter().copied().filter(|device| !passes(device)).collect();
    if blocked.is_empty() {
        return Vec::new();
    }
    let whose = if docker { ", set by docker" } else { "" };
    vec![ForeignDrop {
        place: format!("{command} filter FORWARD"),
        what: format!("policy drop for all that is forwarded{whose}"),
        mend: iptables_lines(command, chain, &blocked),
    }]
}

fn iptables_lines(command: &str, chain: &str, devices: &[&str]) -> Vec<String> {
    let lines = devices.iter().flat_map(|device| {
        let device = device.replace('*', "+");
        ["-i", "-o"].map(|side| format!("{command} -I {chain} {side} {device} -j ACCEPT"))
    });
    lines.collect()
}

fn nft_lines(chain: &Chain<'_>, devices: &[&str]) -> Vec<String> {
    let lines = devices.iter().flat_map(|device| {
        let place = format!("{} {} {}", chain.family, chain.table, chain.name);
        ["iifname", "oifname"].map(|side| format!("nft insert rule {place} {side} \"{device}\" accept"))
    });
    lines.collect()
}

/// True if a rule for `pattern` meets all that `device` stands for.
fn covers(pattern: &str, device: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => device.trim_end_matches('*').starts_with(prefix),
        None => pattern == device,
    }
}
