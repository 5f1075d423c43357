//! What was seen, as a picture in SVG: requests at the sound cluster's store, and agents there that do not serve.

use super::{AGENTS, API_FAILS, END, STORE_BACK, STORE_DIES, Seen, Variant};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 940.0;
/// Height of a panel, and what is free above it.
const PANEL: f64 = 190.0;
const GAP: f64 = 60.0;
const COLOURS: [&str; 4] = ["#c0392b", "#d68910", "#7d3c98", "#2471a3"];
/// Lines that would lie on one another.
const DASHES: [&str; 4] = ["none", "7 3", "3 3", "1 4"];

struct Panel<'a> {
    title: &'a str,
    top: f64,
    most: f64,
    logarithmic: bool,
}

// === impl Panel ===

impl Panel<'_> {
    fn y(&self, value: f64) -> f64 {
        let share = if self.logarithmic { value.ln_1p() / self.most.ln_1p() } else { value / self.most };
        self.top + PANEL * (1.0 - share.clamp(0.0, 1.0))
    }

    fn frame(&self) -> String {
        let mut out = format!(
            "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"14\">{}</text>\n",
            self.top - 10.0,
            self.title
        );
        let ticks: Vec<f64> = match self.logarithmic {
            true => (0..=self.most.log10() as i32).map(|power| 10f64.powi(power)).collect(),
            false => (0..=4).map(|n| self.most * f64::from(n) / 4.0).collect(),
        };
        for tick in ticks {
            let at = self.y(tick);
            out += &format!(
                "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n"
            );
            out += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.0}</text>\n",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (second, what) in [
            (API_FAILS, "API server of the first cluster fails"),
            (STORE_DIES, "its store dies"),
            (STORE_BACK, "its store is back"),
        ] {
            let (at, bottom) = (x(second as f64), self.top + PANEL);
            out += &format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"#888\" stroke-dasharray=\"2 4\"/>\n",
                self.top
            );
            out += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\" transform=\"rotate(90 {:.1} {:.1})\" font-size=\"10\">{what}</text>\n",
                at + 3.0,
                self.top + 4.0,
                at + 3.0,
                self.top + 4.0
            );
        }
        for second in (0..=END).step_by(10) {
            out += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second} s</text>\n",
                x(second as f64),
                self.top + PANEL + 16.0
            );
        }
        out
    }

    fn curve(&self, n: usize, values: &[f64]) -> String {
        let points: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(second, value)| format!("{:.1},{:.1}", x(second as f64 + 0.5), self.y(*value)))
            .collect();
        format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>\n",
            points.join(" "),
            COLOURS[n % COLOURS.len()],
            DASHES[n % DASHES.len()]
        )
    }
}

fn x(second: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * second / END as f64
}

/// The picture.
pub(super) fn svg(all: &[(Variant, Seen)]) -> String {
    let most = all.iter().flat_map(|(_, seen)| &seen.requests).copied().fold(100.0, f64::max);
    let requests = Panel {
        title: "Requests a second that the second cluster's store answers (logarithmic)",
        top: GAP + 20.0,
        most,
        logarithmic: true,
    };
    let down = Panel {
        title: "Agents of the second cluster that do not serve",
        top: 2.0 * GAP + PANEL + 30.0,
        most: AGENTS as f64,
        logarithmic: false,
    };
    let height = 3.0 * GAP + 2.0 * PANEL + 70.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"16\">The first of two clusters of {AGENTS} agents fails: what the second one sees</text>\n"
    );
    out += &requests.frame();
    out += &down.frame();
    for (n, (_, seen)) in all.iter().enumerate() {
        out += &requests.curve(n, &seen.requests);
        out += &down.curve(n, &seen.down);
    }
    for (n, (variant, _)) in all.iter().enumerate() {
        let (from, at) = (LEFT + 440.0 * (n % 2) as f64, height - 40.0 + 18.0 * (n / 2) as f64);
        out += &format!(
            "<line x1=\"{from}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{at:.1}\">{}</text>\n",
            from + 30.0,
            at - 4.0,
            at - 4.0,
            COLOURS[n % COLOURS.len()],
            DASHES[n % DASHES.len()],
            from + 38.0,
            variant.name()
        );
    }
    out + "</svg>\n"
}
