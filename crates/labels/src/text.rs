//! Small things about texts.

/// The one of `known` that `word` was probably meant to be, if any is near enough.
///
/// Near is: at most a third of the letters differ or changed places, case ignored.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The beginning of a text, control characters escaped, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 48;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_finds_its_word() {
        let known = ["ingress", "egress", "ingressDeny", "endpointSelector"];
        assert_eq!(nearest("ingres", known), Some("ingress"));
        assert_eq!(nearest("endpointselector", known), Some("endpointSelector"));
        assert_eq!(nearest("egressdeny", known), Some("ingressDeny"));
        assert_eq!(nearest("somethingelse", known), None);
    }
}
