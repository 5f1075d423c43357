//! Addresses, prefixes and devices in option values.

use crate::{kind, kind::Kind, value::Value};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};

/// `auto`, or an address or prefix as `kind` asks.
pub(crate) fn auto_or(kind: &Kind, text: &str) -> Result<Value, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Value::Text("auto".into()));
    }
    match kind {
        Kind::Ipv4OrAuto => text
            .parse::<Ipv4Addr>()
            .ok()
            .filter(|a| !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast())
            .map(|a| Value::Text(a.to_string())),
        Kind::Ipv6OrAuto => text
            .parse::<Ipv6Addr>()
            .ok()
            .filter(|a| !a.is_unspecified() && !a.is_multicast())
            .map(|a| Value::Text(a.to_string())),
        _ => return pool(kind, text),
    }
    .ok_or_else(|| format!("not such an address; {}", kind.expected()))
}

fn pool(kind: &Kind, text: &str) -> Result<Value, String> {
    let Value::Text(net) = cidr(kind, text)? else { return Err(kind.expected()) };
    let length: u8 = net.rsplit('/').next().and_then(|l| l.parse().ok()).unwrap_or(0);
    let (least, most) = if *kind == Kind::Ipv4Pool { (8, 29) } else { (48, 125) };
    if length < least || length > most {
        return Err(format!("a pool's prefix length lies between {least} and {most}"));
    }
    if *kind == Kind::Ipv4Pool {
        let first = net.split('/').next().and_then(|a| a.parse::<Ipv4Addr>().ok());
        if first.is_some_and(|a| a.is_loopback() || a.is_multicast() || a.octets()[0] == 0) {
            return Err("not a prefix that endpoints can have addresses from".into());
        }
    } else if net.starts_with("ff") || net.starts_with("fe8") {
        return Err("not a prefix that endpoints can have addresses from".into());
    }
    Ok(Value::Text(net))
}

/// A prefix of the family that `kind` asks for, without bits behind its length; or nothing.
pub(crate) fn cidr(kind: &Kind, text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Ok(Value::Text(String::new()));
    }
    let net = prefix(text)?;
    let v4 = matches!(kind, Kind::Ipv4Cidr | Kind::Ipv4Pool);
    if v4 != matches!(net, IpNet::V4(_)) {
        return Err(format!("of the other address family; {}", kind.expected()));
    }
    Ok(Value::Text(net.to_string()))
}

/// Prefixes of either family.
pub(crate) fn cidrs(text: &str) -> Result<Vec<String>, String> {
    kind::split(text).iter().map(|t| prefix(t).map(|n| n.to_string())).collect()
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match kind::address(text) {
            Some(a) => {
                format!("an address, not a prefix; did you mean {a}/{}?", if a.is_ipv4() { 32 } else { 128 })
            }
            None => format!("'{text}' is not a prefix such as 10.0.0.0/8 or fd00::/8"),
        });
    };
    if net.trunc() != net {
        return Err(format!("has bits behind its length; did you mean {}?", net.trunc()));
    }
    Ok(net)
}

/// `host:port`, `:port`, or nothing.
pub(crate) fn listen(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let wrong = || "not address:port; write for example 127.0.0.1:9962, [::1]:9962 or :9962".to_string();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    match port.parse::<u16>() {
        Ok(1..) => {}
        _ => return Err(format!("'{port}' is not a port from 1 to 65535")),
    }
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    if good { Ok(text.into()) } else { Err(wrong()) }
}

/// Names of devices; `+` at the end stands for any rest, `!` in front excludes.
pub(crate) fn devices(text: &str) -> Result<Vec<String>, String> {
    let names = kind::split(text);
    for name in &names {
        let bare = name.strip_prefix('!').unwrap_or(name);
        let bare = bare.strip_suffix('+').unwrap_or(bare);
        if bare.is_empty() && !name.ends_with('+') {
            return Err(format!("'{name}' names no device"));
        }
        if bare.len() > 15 {
            return Err(format!("'{name}' is longer than 15 characters, which no device's name can be"));
        }
        if bare.contains(['/', '+', '!']) {
            return Err(format!("'{name}' cannot be a device's name; + may stand only at its end"));
        }
    }
    Ok(names)
}

/// Which devices an option names. An empty list leaves the choice to the agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DevicePatterns(pub Vec<String>);

impl DevicePatterns {
    /// Whether the agent chooses: no pattern at all.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a device is meant: some pattern matches its name and no `!` pattern does. Where all
    /// patterns are exclusions, every other device is meant.
    #[must_use]
    pub fn matches(&self, device: &str) -> bool {
        let hit = |p: &str| p.strip_suffix('+').map_or(p == device, |start| device.starts_with(start));
        let mut wanted = self.0.iter().all(|p| p.starts_with('!')) && !self.0.is_empty();
        for pattern in &self.0 {
            match pattern.strip_prefix('!') {
                Some(excluded) if hit(excluded) => return false,
                Some(_) => {}
                None => wanted |= hit(pattern),
            }
        }
        wanted
    }
}

/// The pool for `ipv4-range=auto`: `10.N.0.0/16`, N being the last byte of the node's address (244 without
/// one), or the next N whose prefix overlaps none of `taken` (the node's own networks and routes).
///
/// Two nodes may come to the same pool; where nodes are to reach each other's endpoints, set the option.
/// `None` when all of 10.0.0.0/8 is taken.
#[must_use]
pub fn auto_ipv4_pool(node: Option<Ipv4Addr>, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let start = node.map_or(244, |a| a.octets()[3]);
    (0..=255u8)
        .map(|step| Ipv4Addr::new(10, start.wrapping_add(step), 0, 0))
        .filter_map(|first| Ipv4Net::new(first, 16).ok())
        .find(|pool| !taken.iter().any(|t| t.contains(pool) || pool.contains(t)))
}

/// The pool for `ipv6-range=auto`: the /96 of the private prefix fd76:696c:6c75::/64 that carries the
/// node's IPv4 address in its last 32 bits (0 without one).
#[must_use]
pub fn auto_ipv6_pool(node: Option<Ipv4Addr>) -> Ipv6Net {
    let v4 = u128::from(node.map_or(0, u32::from));
    let bits = 0xfd76_696c_6c75_0000_u128 << 64 | v4 << 32;
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), 96)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_patterns_match_by_name_start_and_exclusion() {
        let p = |text: &str| DevicePatterns(devices(text).unwrap());
        assert!(p("eth0,bond+").matches("bond1"));
        assert!(!p("eth0,bond+").matches("eth1"));
        assert!(!p("eth+ !eth3").matches("eth3"));
        assert!(p("!docker0").matches("eth0"));
        assert!(!p("!docker0").matches("docker0"));
        assert!(!p("").matches("eth0"));
        assert!(p("").is_auto());
    }

    #[test]
    fn automatic_pools_avoid_the_nodes_networks() {
        let pool = |ip: [u8; 4], taken: &[&str]| {
            let taken: Vec<Ipv4Net> = taken.iter().map(|t| t.parse().unwrap()).collect();
            auto_ipv4_pool(Some(ip.into()), &taken).map(|n| n.to_string())
        };
        assert_eq!(pool([192, 168, 1, 7], &[]).unwrap(), "10.7.0.0/16");
        assert_eq!(pool([10, 7, 0, 7], &["10.7.0.0/24"]).unwrap(), "10.8.0.0/16");
        assert_eq!(pool([10, 0, 0, 255], &["10.255.0.0/16"]).unwrap(), "10.0.0.0/16");
        assert_eq!(pool([10, 0, 0, 1], &["10.0.0.0/8"]), None);
        assert_eq!(auto_ipv4_pool(None, &[]).unwrap().to_string(), "10.244.0.0/16");
        let six = auto_ipv6_pool(Some([192, 168, 1, 7].into()));
        assert_eq!(six.to_string(), "fd76:696c:6c75:0:c0a8:107::/96");
    }

    #[test]
    fn listen_addresses() {
        for good in ["", ":9962", "127.0.0.1:9090", "[::1]:80", "CHANGE_ME_NODE_IP:9090"] {
            assert_eq!(listen(good).as_deref(), Ok(good));
        }
        for bad in ["9962", ":0", ":70000", "::1:80", "[nope]:80", "a b:80"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_say_what_was_meant() {
        let err = cidr(&Kind::Ipv4Cidr, "10.1.2.3/8").unwrap_err();
        assert!(err.contains("10.0.0.0/8"), "{err}");
        assert!(cidr(&Kind::Ipv4Cidr, "10.1.2.3").unwrap_err().contains("10.1.2.3/32"));
        assert!(cidr(&Kind::Ipv4Cidr, "fd00::/8").unwrap_err().contains("other address family"));
        assert!(auto_or(&Kind::Ipv4Pool, "10.0.0.0/30").is_err());
        assert!(auto_or(&Kind::Ipv4Pool, "127.0.0.0/8").is_err());
        assert!(auto_or(&Kind::Ipv6Pool, "fe80::/64").is_err());
        assert!(auto_or(&Kind::Ipv6Pool, "fd02:1:1::/96").is_ok());
    }
}
