//! The syntax of `api-rate-limit`; what it means is said by [`crate::limit`].

use crate::suggest;

/// Calls that can be limited.
pub const CALLS: [&str; 5] =
    ["endpoint-create", "endpoint-delete", "endpoint-get", "endpoint-patch", "endpoint-list"];

/// Settings of one call.
const KEYS: [&str; 14] = [
    "rate-limit",
    "rate-burst",
    "min-wait-duration",
    "max-wait-duration",
    "estimated-processing-duration",
    "auto-adjust",
    "parallel-requests",
    "min-parallel-requests",
    "max-parallel-requests",
    "mean-over",
    "log",
    "delayed-adjustment-factor",
    "max-adjustment-factor",
    "skip-initial",
];

/// The limits of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The call: `endpoint-create`, `-delete`, `-get`, `-patch` or `-list`.
    pub call: String,
    /// Settings and their texts, in the order written; each was checked.
    pub settings: Vec<(String, String)>,
}

/// Splits the text into calls with their settings: `call=key:value,key:value`, calls separated by white
/// space or by a comma before the next `call=`; or a JSON object from call to settings.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn parse(text: &str) -> Result<Vec<Limits>, String> {
    let mut out: Vec<Limits> = Vec::new();
    if text.trim_start().starts_with('{') {
        let calls: std::collections::BTreeMap<String, String> =
            serde_json::from_str(text).map_err(|e| format!("not a JSON object of texts: {e}"))?;
        for (call, settings) in calls {
            let mut limits = Limits { call: known(&call, &CALLS, "call")?, settings: Vec::new() };
            for setting in settings.split(',').map(str::trim).filter(|s| !s.is_empty()) {
                limits.settings.push(pair(setting)?);
            }
            out.push(limits);
        }
        return Ok(out);
    }
    for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()) {
        let setting = match word.split_once('=') {
            Some((call, setting)) => {
                out.push(Limits { call: known(call, &CALLS, "call")?, settings: Vec::new() });
                setting
            }
            None => word,
        };
        let Some(limits) = out.last_mut() else {
            return Err(format!("'{setting}' belongs to no call; write call={setting}"));
        };
        if !setting.is_empty() {
            limits.settings.push(pair(setting)?);
        }
    }
    Ok(out)
}

/// As [`parse`], for the verdict alone.
pub(crate) fn check(text: &str) -> Result<(), String> {
    parse(text).map(|_| ())
}

fn pair(setting: &str) -> Result<(String, String), String> {
    let Some((key, value)) = setting.split_once(':') else {
        return Err(format!("'{setting}' is not key:value"));
    };
    let key = known(key, &KEYS, "setting")?;
    check_value(&key, value).map_err(|e| format!("{key}: {e}"))?;
    Ok((key, value.to_string()))
}

fn check_value(key: &str, value: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("'{value}' is not {what}"));
    let positive = |v: &str| v.parse::<f64>().is_ok_and(|n| n.is_finite() && n > 0.0);
    match key {
        "rate-limit" => match rate(value) {
            Some(_) => Ok(()),
            None => wrong("a rate such as 10/m or 3.5/h"),
        },
        "min-wait-duration" | "max-wait-duration" | "estimated-processing-duration" => {
            crate::duration::parse(value).map(|_| ())
        }
        "auto-adjust" | "log" => match value {
            "true" | "false" => Ok(()),
            _ => wrong("true or false"),
        },
        "delayed-adjustment-factor" | "max-adjustment-factor" if positive(value) => Ok(()),
        "delayed-adjustment-factor" | "max-adjustment-factor" => wrong("a number above 0"),
        _ if value.parse::<u32>().is_ok() => Ok(()),
        _ => wrong("a whole number"),
    }
}

/// Calls a second of a rate: `10/m`, `3.5/h`, `10/2m`, `1/100ms`. `None` when the text is no rate.
#[must_use]
pub fn rate(text: &str) -> Option<f64> {
    let (count, per) = text.split_once('/')?;
    let count: f64 = count.parse().ok()?;
    let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.to_string() } else { format!("1{per}") };
    let per = crate::duration::parse(&per).ok()?.as_secs_f64();
    (count.is_finite() && count > 0.0 && per > 0.0).then(|| count / per)
}

fn known(word: &str, words: &[&str], what: &str) -> Result<String, String> {
    if words.contains(&word) {
        return Ok(word.to_string());
    }
    Err(match suggest::nearest(word, words.iter().copied()) {
        Some(near) => format!("'{word}' is no {what}; did you mean {near}?"),
        None => format!("'{word}' is no {what}; known are {}", words.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read() {
        let line = parse("endpoint-create=rate-limit:10/m,rate-burst:2 endpoint-get=log:true").unwrap();
        let json =
            parse(r#"{"endpoint-create":"rate-limit:10/m,rate-burst:2","endpoint-get":"log:true"}"#).unwrap();
        assert_eq!(line, json);
        assert_eq!(line[0].settings[1], ("rate-burst".into(), "2".into()));
        assert_eq!(parse("endpoint-get=log:true,endpoint-list=rate-burst:4").unwrap().len(), 2);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn rates() {
        assert_eq!(rate("10/2m"), Some(10.0 / 120.0));
        assert_eq!(rate("1/100ms"), Some(10.0));
        assert_eq!(rate("3.5/h"), Some(3.5 / 3600.0));
        assert_eq!(rate("x/s"), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("endpoint-crate=rate-burst:2", "did you mean endpoint-create"),
            ("endpoint-create=rate-brust:2", "did you mean rate-burst"),
            ("rate-burst:2", "belongs to no call"),
            ("endpoint-create=rate-limit:often", "is not a rate"),
            ("endpoint-create=rate-burst", "is not key:value"),
            ("{", "not a JSON object"),
        ] {
            let err = parse(text).unwrap_err();
            assert!(err.contains(part), "{text}: {err}");
        }
    }
}
