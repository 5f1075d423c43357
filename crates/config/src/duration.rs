//! Durations as Go writes them: `15m`, `2h30m`, `1.5s`, `100ms`.

use std::time::Duration;

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration of at least zero: decimal numbers, each with its unit (`ns`, `us`, `ms`, `s`, `m`,
/// `h`), or a plain `0`.
///
/// # Errors
/// One sentence on what is wrong, without the value.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.starts_with('-') {
        return Err("a duration cannot be negative".into());
    }
    if text.is_empty() {
        return Err("a duration is missing; write for example 30s or 5m".into());
    }
    let mut nanos = 0u128;
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = one_part(rest)?;
        nanos = nanos.checked_add(part).ok_or_else(too_long)?;
        rest = after;
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| too_long())
}

fn too_long() -> String {
    "longer than 584 years".into()
}

/// The nanoseconds of the leading `number unit`, and what follows it.
fn one_part(text: &str) -> Result<(u128, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, after) = text.split_at(digits);
    if number.is_empty() || number == "." {
        return Err("not a duration; write for example 30s, 5m or 2h30m".into());
    }
    let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
    let (unit, rest) = after.split_at(unit_len);
    if unit.is_empty() {
        return Err(format!("a duration needs a unit: {number}s, {number}m or {number}h"));
    }
    let Some(&(_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("'{unit}' is no unit of time; known are ns, us, ms, s, m and h"));
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') {
        return Err(format!("'{number}' is not a number"));
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_long())? };
    let nanos = whole.checked_mul(scale.into()).ok_or_else(too_long)?;
    nanos.checked_add(fraction_nanos(fraction, scale)).map(|n| (n, rest)).ok_or_else(too_long)
}

/// `0.<fraction>` of a unit of `scale` nanoseconds, cut to whole nanoseconds.
fn fraction_nanos(fraction: &str, scale: u64) -> u128 {
    let (mut nanos, mut place) = (0u128, 1u128);
    for digit in fraction.bytes().take(19) {
        nanos = nanos * 10 + u128::from(digit.wrapping_sub(b'0')) * u128::from(scale);
        place *= 10;
    }
    nanos / place
}

/// Writes a duration as Go does: `2h13m20s`, `1.5s`, `100ms`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    let secs = duration.as_secs();
    if secs == 0 && nanos != 0 {
        return match nanos {
            n if n < 1_000 => format!("{n}ns"),
            n if n < 1_000_000 => format!("{}µs", decimal(u64::from(n), 1_000)),
            n => format!("{}ms", decimal(u64::from(n), 1_000_000)),
        };
    }
    let (hours, minutes) = (secs / 3600, secs / 60 % 60);
    let seconds = decimal(secs % 60 * 1_000_000_000 + u64::from(nanos), 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn decimal(value: u64, scale: u64) -> String {
    let (whole, fraction) = (value / scale, value % scale);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let fraction = format!("{fraction:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn go_syntax_is_read_and_written() {
        for (text, secs, out) in [
            ("15m", 900, "15m0s"),
            ("2h30m", 9000, "2h30m0s"),
            ("60s", 60, "1m0s"),
            ("86400s", 86400, "24h0m0s"),
            ("0", 0, "0s"),
            ("2h13m20s", 8000, "2h13m20s"),
            ("3h", 10800, "3h0m0s"),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(secs)), "{text}");
            assert_eq!(format(Duration::from_secs(secs)), out);
        }
        assert_eq!(parse("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse(".5h"), Ok(Duration::from_secs(1800)));
        assert_eq!(parse("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(format(Duration::from_micros(1500)), "1.5ms");
        assert_eq!(format(Duration::from_millis(61_500)), "1m1.5s");
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (text, part) in [
            ("60", "needs a unit"),
            ("-5s", "negative"),
            ("5 minutes", "no unit of time"),
            ("5d", "no unit of time"),
            ("soon", "not a duration"),
            ("1.2.3s", "not a number"),
            ("99999999999999999999999h", "584"),
            ("", "missing"),
        ] {
            let err = parse(text).unwrap_err();
            assert!(err.contains(part), "{text}: {err}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") { let _ = parse(&text); }

        #[test]
        fn what_is_written_is_read_back(nanos in any::<u64>()) {
            let d = Duration::from_nanos(nanos);
            prop_assert_eq!(parse(&format(d)), Ok(d));
        }
    }
}
