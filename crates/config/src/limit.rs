//! Limits of API calls as the API applies them: what `api-rate-limit` says over what holds where it says nothing.

use std::time::Duration;

use crate::rate::{self, CALLS};

/// The limits of one call.
#[derive(Clone, PartialEq, Debug)]
pub struct Limit {
    /// The call: one of [`CALLS`].
    pub call: &'static str,
    /// Calls a second; `None` for any number.
    pub rate: Option<f64>,
    /// Calls that may come at once before the rate counts.
    pub burst: u32,
    /// Calls under way at once; `None` for any number.
    pub parallel: Option<u32>,
    /// Bounds of `parallel` where it is adjusted.
    pub min_parallel: u32,
    /// See `min_parallel`.
    pub max_parallel: Option<u32>,
    /// How long every call waits at least.
    pub min_wait: Duration,
    /// A call that would wait longer is refused; `None` waits for ever.
    pub max_wait: Option<Duration>,
    /// Calls at the start that the rate does not count.
    pub skip_initial: u32,
    /// Rate, burst and parallelism follow how long calls take, beside [`Self::estimated`].
    pub auto_adjust: bool,
    /// How long a call is expected to take.
    pub estimated: Duration,
    /// How many calls the mean is taken over.
    pub mean_over: u32,
    /// The share of an adjustment that is made at once.
    pub delayed_adjustment: f64,
    /// Greatest factor, and its inverse the least.
    pub max_adjustment: f64,
    /// Every call is logged.
    pub log: bool,
    /// Whether the option says anything about this call.
    pub is_set: bool,
}

impl Limit {
    /// What holds where the option says nothing: enough for every endpoint of a node to come at once.
    fn usual(call: &'static str) -> Self {
        let (rate, burst, parallel, max_wait, estimated) = match call {
            "endpoint-create" => (Some(100.0), 1000, 32, Some(60), 50),
            "endpoint-patch" => (Some(100.0), 1000, 32, Some(60), 50),
            "endpoint-delete" => (None, 0, 32, None, 50),
            "endpoint-get" => (Some(500.0), 1000, 64, Some(10), 5),
            _ => (Some(200.0), 1000, 32, None, 20),
        };
        Self {
            call,
            rate,
            burst,
            parallel: Some(parallel),
            min_parallel: 1,
            max_parallel: None,
            min_wait: Duration::ZERO,
            max_wait: max_wait.map(Duration::from_secs),
            skip_initial: 0,
            auto_adjust: false,
            estimated: Duration::from_millis(estimated),
            mean_over: 10,
            delayed_adjustment: 0.5,
            max_adjustment: 100.0,
            log: false,
            is_set: false,
        }
    }

    /// Takes over one setting, whose text was checked.
    fn set(&mut self, key: &str, text: &str) {
        let number = || text.parse::<u32>().unwrap_or_default();
        let unless_zero = || Some(number()).filter(|n| *n > 0);
        let float = || text.parse::<f64>().unwrap_or(1.0);
        let span = || crate::duration::parse(text).unwrap_or_default();
        match key {
            "rate-limit" => self.rate = rate::rate(text),
            "rate-burst" => self.burst = number(),
            "parallel-requests" => self.parallel = unless_zero(),
            "min-parallel-requests" => self.min_parallel = number().max(1),
            "max-parallel-requests" => self.max_parallel = unless_zero(),
            "min-wait-duration" => self.min_wait = span(),
            "max-wait-duration" => self.max_wait = Some(span()).filter(|span| !span.is_zero()),
            "skip-initial" => self.skip_initial = number(),
            "auto-adjust" => self.auto_adjust = text == "true",
            "estimated-processing-duration" => self.estimated = span(),
            "mean-over" => self.mean_over = number().max(1),
            "delayed-adjustment-factor" => self.delayed_adjustment = float().min(1.0),
            "max-adjustment-factor" => self.max_adjustment = float().max(1.0),
            _ => self.log = text == "true",
        }
    }
}

/// The limits of every call.
///
/// # Errors
/// What is wrong with the text, in one sentence.
pub fn limits(text: &str) -> Result<Vec<Limit>, String> {
    let mut all: Vec<Limit> = CALLS.into_iter().map(Limit::usual).collect();
    for said in rate::parse(text)? {
        let Some(limit) = all.iter_mut().find(|limit| limit.call == said.call) else { continue };
        limit.is_set = true;
        for (key, text) in &said.settings {
            limit.set(key, text);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stands_over_what_is_usual() {
        let all =
            limits("endpoint-create=rate-limit:10/m,rate-burst:2,max-wait-duration:0s,auto-adjust:true")
                .unwrap();
        let create = &all[0];
        assert_eq!((create.call, create.burst, create.is_set), ("endpoint-create", 2, true));
        assert_eq!((create.rate, create.max_wait, create.auto_adjust), (Some(10.0 / 60.0), None, true));
        assert_eq!(all[1], Limit::usual("endpoint-delete"));
        assert!(limits("endpoint-crate=rate-burst:2").is_err());
    }

    #[test]
    fn as_the_object_of_json() {
        let text = r#"{"endpoint-list": "rate-limit:1/s,parallel-requests:0,log:true"}"#;
        let list = limits(text).unwrap().into_iter().find(|limit| limit.call == "endpoint-list").unwrap();
        assert_eq!((list.rate, list.parallel, list.log), (Some(1.0), None, true));
    }

    #[test]
    fn without_the_option_all_endpoints_of_a_node_may_come_at_once() {
        let create = limits("").unwrap().remove(0);
        assert!(create.burst >= 250 && create.max_wait.is_none_or(|wait| wait >= Duration::from_secs(60)));
    }
}
