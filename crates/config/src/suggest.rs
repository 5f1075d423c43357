//! "Did you mean": the known word nearest to a mistyped one.

/// The candidate nearest to `word`, if any is near enough to be a slip of the pen.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.to_ascii_lowercase().replace('_', "-").chars().take(80).collect();
    let reach = (word.len() / 4).clamp(1, 4);
    candidates
        .into_iter()
        .filter(|c| !c.is_empty() && c.len().abs_diff(word.len()) <= reach)
        .map(|c| (strsim::damerau_levenshtein(&word, c), c))
        .filter(|(distance, _)| *distance <= reach)
        .min()
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["enable-ipv4", "enable-ipv6", "policy-audit-mode", "mtu"];
        assert_eq!(nearest("enable-ivp4", known), Some("enable-ipv4"));
        assert_eq!(nearest("policy_audit_mode", known), Some("policy-audit-mode"));
        assert_eq!(nearest("mtuu", known), Some("mtu"));
        assert_eq!(nearest("favourite-colour", known), None);
        assert_eq!(nearest("", known), None);
    }
}
