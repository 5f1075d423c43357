//! A cluster that comes back, simulated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{num::NonZeroU32, time::Duration};

use proptest::prelude::*;
use villus_plan::restart::{Comparison, Scenario, ScenarioError, compare, simulate, svg, text};

fn nodes(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

fn large() -> Comparison {
    compare(&Scenario::of_nodes(nodes(2_000))).unwrap()
}

#[test]
fn the_gate_takes_the_peak_away_and_all_agents_get_ready() {
    let comparison = compare(&Scenario::of_nodes(nodes(10_000))).unwrap();
    let (without, with) = (&comparison.without, &comparison.with);
    assert!(without.saturated > 300 && with.saturated < 30, "{} and {} s", without.saturated, with.saturated);
    assert!(without.busiest_minute > 50.0 * comparison.quiet, "a storm: {}", without.busiest_minute);
    assert!(with.failed < without.failed, "{} and {}", with.failed, without.failed);
    let window = comparison.scenario.window.as_secs();
    // The last turn is at the end of the window; its start takes what it takes.
    let last = with.all_ready.unwrap();
    assert!(last <= window + comparison.scenario.spread.as_secs() + 120, "{last} s, a window of {window} s");
    assert!(without.all_ready.is_some());
}

#[test]
fn while_the_store_is_there_nothing_is_in_vain_behind_the_gate() {
    let scenario = Scenario { outage: Duration::ZERO, ..Scenario::of_nodes(nodes(10_000)) };
    let Comparison { without, with, .. } = compare(&scenario).unwrap();
    assert!(
        without.busiest_minute > 5.0 * with.busiest_minute,
        "{} {}",
        without.busiest_minute,
        with.busiest_minute
    );
    assert!(without.failed > 500_000 && with.failed == 0, "{} {}", without.failed, with.failed);
}

#[test]
fn the_same_seed_gives_the_same_curve() {
    let scenario = Scenario::of_nodes(nodes(100));
    let one = simulate(&scenario, true).unwrap();
    let two = simulate(&scenario, true).unwrap();
    assert_eq!((one.peak, one.total, one.all_ready), (two.peak, two.total, two.all_ready));
}

#[test]
fn it_is_drawn_as_text_and_as_a_picture() {
    let comparison = large();
    let text = text(&comparison);
    assert!(text.contains("2000 agents come back") && text.contains("without the gate"), "{text}");
    assert!(text.lines().any(|line| line.contains("############")) && text.lines().count() < 45, "{text}");
    let svg = svg(&comparison);
    assert_eq!((svg.matches("<polyline").count(), svg.matches("<svg").count()), (2, 1));
    assert!(svg.trim_end().ends_with("</svg>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn what_would_take_too_long_is_refused() {
    let scenario = Scenario { outage: Duration::from_secs(86_400), ..Scenario::of_nodes(nodes(10)) };
    assert_eq!(simulate(&scenario, true), Err(ScenarioError::TooLong("the outage")));
    let scenario = Scenario { addresses: u32::MAX, ..Scenario::of_nodes(nodes(10)) };
    assert!(matches!(simulate(&scenario, true), Err(ScenarioError::TooLarge(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn every_agent_is_served_in_the_end(
        count in 1u32..60, addresses in 0u32..20_000, capacity in 50u32..5_000, outage in 0u64..600, seed in any::<u64>(),
        with_gate in any::<bool>(),
    ) {
        let scenario = Scenario {
            addresses, capacity: nodes(capacity), outage: Duration::from_secs(outage), seed, ..Scenario::of_nodes(nodes(count))
        };
        let curve = simulate(&scenario, with_gate).unwrap();
        let needed = u64::from(count) * scenario.requests_of_a_start();
        prop_assert!(curve.all_ready.is_some() && curve.total >= needed + curve.failed, "{needed}");
        prop_assert!(curve.half_ready <= curve.all_ready && curve.requests.iter().max() == Some(&curve.peak));
    }
}
