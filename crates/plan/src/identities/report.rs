//! The count for people.

use villus_print::Table;

use super::Count;

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
    for cost in count.labels.iter().take(SHOWN) {
        table.row([
            cost.label.clone(),
            cost.workloads.to_string(),
            cost.values.to_string(),
            cost.saves.to_string(),
            cost.examples.join(", "),
        ]);
    }
    text += &table.render();
    if count.labels.len() > SHOWN {
        text += &format!("… and {} labels that save no more\n", count.labels.len() - SHOWN);
    }
    text += "\nSAVES: how many identities fewer there would be without this label alone.\n";
    text += &match &count.advice {
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
