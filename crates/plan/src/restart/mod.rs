//! What the store sees when a whole cluster comes back at once, with the start gate and without it.

mod draw;
mod simulate;

pub use draw::{svg, text};
pub use simulate::{Curve, Scenario, ScenarioError, simulate};

use serde::Serialize;

/// One scenario, with the gate and without it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Comparison {
    /// What happens.
    pub scenario: Scenario,
    /// Requests a second of the same cluster when nothing happens.
    pub quiet: f64,
    /// Every agent starts as soon as its node is back.
    pub without: Curve,
    /// Every agent waits for its turn.
    pub with: Curve,
}

/// Simulates a scenario twice.
///
/// # Errors
/// It cannot be simulated.
pub fn compare(scenario: &Scenario) -> Result<Comparison, ScenarioError> {
    let (quiet, mut without, mut with) =
        (scenario.quiet(), simulate(scenario, false)?, simulate(scenario, true)?);
    // A simulation ends when its cluster has come to rest; from then on it is as always.
    let length = without.requests.len().max(with.requests.len());
    for curve in [&mut without, &mut with] {
        curve.requests.resize(length, quiet.round() as u64);
    }
    Ok(Comparison { scenario: scenario.clone(), quiet, without, with })
}
