//! Columns aligned by tabs: at least 5 wide, 3 spaces between.

use std::io::Write;

use tabwriter::TabWriter;

/// A table under construction. The first lines are its header.
#[derive(Clone, Debug, Default)]
pub struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header line.
    #[must_use]
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = Self::default();
        table.row(header);
        table
    }

    /// Adds a line. Cells may be missing at its end.
    pub fn row<I>(&mut self, cells: I)
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.lines.push(cells.into_iter().map(|cell| one_line(&cell.into())).collect());
    }

    /// Adds a row whose cells have several lines: the second and later ones stand below the first.
    pub fn rows<const N: usize>(&mut self, cells: [Vec<String>; N]) {
        let height = cells.iter().map(Vec::len).max().unwrap_or_default().max(1);
        for line in 0..height {
            self.row(cells.iter().map(|cell| cell.get(line).cloned().unwrap_or_default()));
        }
    }

    /// The aligned text; every line ends with a newline and none with spaces.
    #[must_use]
    pub fn render(&self) -> String {
        // The width of a column is that of its widest cell, at least 2, and 3 spaces follow: so 5.
        let mut writer = TabWriter::new(Vec::new()).minwidth(2).padding(3);
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or_default();
        for line in &self.lines {
            // A line with fewer cells would end the columns it does not have, so missing cells are written.
            // Writing to memory does not fail.
            let missing = "\t".repeat(columns - line.len());
            let _ = writeln!(writer, "{}{missing}\t", line.join("\t"));
        }
        let bytes = writer.into_inner().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().fold(String::with_capacity(text.len()), |mut out, line| {
            out.push_str(line.trim_end());
            out.push('\n');
            out
        })
    }
}

/// Text from outside may not break the table: control characters become spaces.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A cell of one line.
pub(crate) fn cell(text: impl ToString) -> Vec<String> {
    vec![text.to_string()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn narrow_columns_are_five_wide() {
        let mut table = Table::new(["A", "B", "LONGER"]);
        table.row(["1", "22", "x"]);
        table.row(["", "", "y"]);
        assert_eq!(table.render(), "A    B    LONGER\n1    22   x\n          y\n");
    }

    #[test]
    fn lists_go_on_below() {
        let mut table = Table::new(["ID", "LABELS"]);
        table.rows([cell(1), vec!["a".into(), "b".into()]]);
        table.rows([cell(2), vec![]]);
        assert_eq!(table.render(), "ID   LABELS\n1    a\n     b\n2\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256))]

        #[test]
        fn no_cell_breaks_the_table(cells in proptest::collection::vec(proptest::collection::vec(".{0,12}", 0..5), 0..8)) {
            let mut table = Table::new(["ONE", "TWO"]);
            for line in &cells {
                table.row(line.clone());
            }
            prop_assert_eq!(table.render().lines().count(), cells.len() + 1);
        }
    }
}
