//! The syntax of `policy-change-limit`.

/// Shares that one change of policies may touch without being confirmed, each from 0 to 1; `None` is no limit.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ChangeLimit {
    /// Of the open flows of this node.
    pub flows: Option<f64>,
    /// Of the entries of this node's policy maps.
    pub entries: Option<f64>,
}

impl ChangeLimit {
    /// Whether there is any limit.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.flows.is_some() || self.entries.is_some()
    }
}

/// Reads `10%` for both, `flows=5%,entries=20%` for each, nothing or `off` for no limit.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn parse(text: &str) -> Result<ChangeLimit, String> {
    let mut limit = ChangeLimit::default();
    if text.is_empty() || text == "off" {
        return Ok(limit);
    }
    if !text.contains('=') {
        let both = share(text)?;
        return Ok(ChangeLimit { flows: Some(both), entries: Some(both) });
    }
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let place = match name.trim() {
            "flows" => &mut limit.flows,
            "entries" => &mut limit.entries,
            other => return Err(format!("'{other}' is neither flows nor entries")),
        };
        if place.replace(share(value.trim())?).is_some() {
            return Err(format!("{name} is there twice; keep one"));
        }
    }
    Ok(limit)
}

fn share(text: &str) -> Result<f64, String> {
    let number =
        text.strip_suffix('%').ok_or_else(|| format!("'{text}' is no share; write for example 10%"))?;
    let percent: f64 =
        number.trim().parse().map_err(|_| format!("'{text}' is no share; write for example 10%"))?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(format!("'{text}' is outside of 0% to 100%"));
    }
    Ok(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_share_means_both() {
        assert_eq!(parse("10%"), Ok(ChangeLimit { flows: Some(0.1), entries: Some(0.1) }));
        assert_eq!(parse("flows=5%, entries=20%"), Ok(ChangeLimit { flows: Some(0.05), entries: Some(0.2) }));
        assert_eq!(parse("flows=0%"), Ok(ChangeLimit { flows: Some(0.0), entries: None }));
        assert!(!parse("").unwrap().is_on() && !parse("off").unwrap().is_on());
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for (text, part) in [
            ("10", "10%"),
            ("101%", "outside"),
            ("-1%", "outside"),
            ("NaN%", "outside"),
            ("x%", "no share"),
            ("packets=1%", "neither flows nor entries"),
            ("flows=1%,flows=2%", "twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
