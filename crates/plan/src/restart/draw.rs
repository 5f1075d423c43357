//! Two curves for people: as text, and as a picture.

use std::{fmt::Write, time::Duration};

use super::{Comparison, Curve};

/// Lines of the text.
const LINES: usize = 30;
/// Letters of the longest bar.
const BAR: usize = 28;
/// Size of the picture, and what is left free around it.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
const MARGIN: f64 = 60.0;
/// Points of a curve in the picture.
const POINTS: usize = 900;

/// The comparison as text.
#[must_use]
pub fn text(comparison: &Comparison) -> String {
    let scenario = &comparison.scenario;
    let mut text = format!(
        "{} agents come back within {}, the store {} after them; a start takes {} requests, the store answers {} a second.\n\
         The window is {}. When nothing happens the store sees {:.0} requests a second.\n\n",
        scenario.nodes,
        time(scenario.spread.as_secs()),
        time(scenario.outage.as_secs()),
        scenario.requests_of_a_start(),
        scenario.capacity,
        time(scenario.window.as_secs()),
        comparison.quiet,
    );
    text += &figures("without the gate", &comparison.without, comparison.quiet);
    text += &figures("with the gate", &comparison.with, comparison.quiet);
    let length = comparison.without.requests.len().max(comparison.with.requests.len()).max(1);
    let step = length.div_ceil(LINES);
    let most = most(comparison, step);
    let _ = writeln!(text, "\nRequests a second, the mean of each {}:", time(step as u64));
    let _ = writeln!(text, "{:>9}  {:>9} {:BAR$}  {:>9} with the gate", "TIME", "", "without", "");
    for begin in (0..length).step_by(step) {
        let cell = |curve: &Curve| {
            let here = mean(curve, begin, step);
            (here, "#".repeat(bar(here, most)))
        };
        let ((without, bar_without), (with, bar_with)) = (cell(&comparison.without), cell(&comparison.with));
        let line =
            format!("{:>9}  {without:>9} {bar_without:BAR$}  {with:>9} {bar_with}", time(begin as u64));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn figures(name: &str, curve: &Curve, quiet: f64) -> String {
    let times = curve.busiest_minute / quiet.max(f64::MIN_POSITIVE);
    let when = |seconds: Option<u64>| seconds.map_or("not at all".to_owned(), time);
    format!(
        "{name:17} {:.0} requests/s in the busiest minute ({times:.0} times the usual), {} in the busiest second; all that the store can do for {}; \
         {} in all, {} of them in vain; half of the agents ready after {}, all after {}\n",
        curve.busiest_minute,
        curve.peak,
        time(curve.saturated),
        curve.total,
        curve.failed,
        when(curve.half_ready),
        when(curve.all_ready),
    )
}

/// Requests a second from `begin` on, over `step` seconds.
fn mean(curve: &Curve, begin: usize, step: usize) -> u64 {
    let end = (begin + step).min(curve.requests.len());
    let part = curve.requests.get(begin..end).unwrap_or_default();
    part.iter().sum::<u64>() / (step as u64).max(1)
}

/// The largest mean of both curves, at least 10.
fn most(comparison: &Comparison, step: usize) -> u64 {
    let curves = [&comparison.without, &comparison.with];
    let means = curves.into_iter().flat_map(|curve| {
        (0..curve.requests.len()).step_by(step.max(1)).map(move |begin| mean(curve, begin, step))
    });
    means.max().unwrap_or_default().max(10)
}

/// Height on a logarithmic scale from 1 to `most`, from 0 to 1.
fn height(count: u64, most: u64) -> f64 {
    if count == 0 { 0.0 } else { ((count as f64).ln_1p() / (most as f64).ln_1p()).min(1.0) }
}

fn bar(count: u64, most: u64) -> usize {
    (count as f64 / most as f64 * BAR as f64).ceil() as usize
}

fn time(seconds: u64) -> String {
    let time = Duration::from_secs(seconds);
    match (time.as_secs() / 3600, time.as_secs() / 60 % 60, time.as_secs() % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes}:{seconds:02} min"),
        (hours, minutes, _) => format!("{hours}:{minutes:02} h"),
    }
}

/// The comparison as a picture in SVG: requests a second, logarithmic, over time.
#[must_use]
pub fn svg(comparison: &Comparison) -> String {
    let length = comparison.without.requests.len().max(comparison.with.requests.len()).max(2);
    let step = length.div_ceil(POINTS);
    let most = most(comparison, step);
    let (left, right, top, bottom) = (MARGIN + 20.0, WIDTH - 20.0, MARGIN, HEIGHT - MARGIN);
    let x = |second: f64| left + (right - left) * second / (length - 1) as f64;
    let y = |count: u64| bottom - (bottom - top) * height(count, most);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">Requests a second that the store sees: {} agents come back at once</text>\n",
        comparison.scenario.nodes
    );
    let mut add = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    for power in 0..=most.ilog10() {
        let count = 10u64.pow(power);
        let at = y(count);
        add(format!("<line x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"));
        add(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{count}</text>",
            left - 6.0,
            at + 4.0
        ));
    }
    for part in 0..=6 {
        let second = (length - 1) as f64 * f64::from(part) / 6.0;
        let (at, below) = (x(second), bottom + 18.0);
        add(format!(
            "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>",
            time(second as u64)
        ));
    }
    let quiet = y(comparison.quiet.round() as u64);
    add(format!(
        "<line x1=\"{left}\" x2=\"{right}\" y1=\"{quiet:.1}\" y2=\"{quiet:.1}\" stroke=\"#888\" stroke-dasharray=\"4 4\"/>"
    ));
    let legend = bottom + 42.0;
    for (curve, colour, name, from) in [
        (&comparison.without, "#c0392b", "without the gate", left),
        (&comparison.with, "#2471a3", "with the gate", left + 160.0),
    ] {
        let points = (0..length)
            .step_by(step)
            .map(|begin| format!("{:.1},{:.1}", x(begin as f64), y(mean(curve, begin, step))));
        let points = points.collect::<Vec<_>>().join(" ");
        add(format!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        ));
        add(format!(
            "<rect x=\"{from}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            legend - 10.0
        ));
        add(format!("<text x=\"{:.1}\" y=\"{legend:.1}\">{name}</text>", from + 18.0));
    }
    add(format!(
        "<text x=\"{:.1}\" y=\"{legend:.1}\" fill=\"#888\">- - when nothing happens</text>",
        left + 320.0
    ));
    add("</svg>".to_owned());
    out
}
