//! The count for people.

use villus_print::Table;

use super::{Cost, Count};

/// Labels that are shown.
const SHOWN: usize = 15;

/// The count as text: the number, what costs most, what to change.
#[must_use]
pub fn text(count: &Count) -> String {
    let mut text = format!(
        "{} workloads, {} identities: {:.1} % of the {} that a cluster has{}\n",
        count.workloads,
        count.identities,
        count.percent,
        count.space,
        verdict(count.percent)
    );
    if !count.skipped.is_empty() {
        let first = &count.skipped[0];
        text += &format!("{} not counted, such as {}: {}\n", count.skipped.len(), first.name, first.reason);
    }
    text += if count.whitelist {
        "Only labels that a rule includes count.\n\n"
    } else {
        "Every label counts that no rule leaves out.\n\n"
    };
    let mut table = Table::new(["LABEL", "WORKLOADS", "VALUES", "SAVES", "SUCH AS"]);
    // Those that are alike stand in one row.
    let is_first = |cost: &&Cost| cost.alike.iter().all(|other| cost.label < *other);
    let mut rows = count.labels.iter().filter(is_first);
    for cost in rows.by_ref().take(SHOWN) {
        let labels = std::iter::once(&cost.label).chain(&cost.alike).map(String::as_str);
        table.row([
            labels.collect::<Vec<_>>().join(" = "),
            cost.workloads.to_string(),
            cost.values.to_string(),
            cost.saves.to_string(),
            cost.examples.join(", "),
        ]);
    }
    text += &table.render();
    let more = rows.count();
    if more > 0 {
        text += &format!("… and {more} labels that save no more\n");
    }
    text += "\nSAVES: how many identities fewer there would be without this label alone, or without all that `=` joins: their \
             values determine each other.\n";
    text += &match &count.advice {
        None if count.whitelist => {
            "Nothing to change: what a rule of `labels` includes stays, and no other label adds a tenth \
                                    of the identities.\n"
                .to_owned()
        }
        None => "Nothing to change: no label that may go adds a tenth of the identities.\n".to_owned(),
        Some(advice) => format!(
            "To have {} identities, if no policy selects by what is left out, add to `labels`:\n  {}\n",
            advice.identities,
            advice.rules.join(" ")
        ),
    };
    text
}

const fn verdict(percent: f64) -> &'static str {
    if percent > 100.0 {
        ", MORE THAN THERE ARE: workloads would get none"
    } else if percent >= 90.0 {
        ", at the alarm of 90 %"
    } else if percent >= 75.0 {
        ", above the warning of 75 %"
    } else if percent >= 50.0 {
        ", above the warning of 50 %"
    } else {
        ""
    }
}
