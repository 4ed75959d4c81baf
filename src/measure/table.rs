//! Text tables.

use std::fmt;

/// Rows under a heading. Columns are as wide as their longest cell and aligned to the right.
#[derive(Debug, Clone, Default)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes an empty table. A `<` at the start of a heading aligns its column to the left.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        Self { heading: heading.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row, with one cell per column.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.row_of(cells.into());
    }

    /// Adds a row to a table whose number of columns is known only at run time.
    pub fn row_of(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heading.len(), "table: cells of a row");
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading: Vec<String> = self.heading.iter().map(|h| h.trim_start_matches('<').to_owned()).collect();
        let all = || std::iter::once(&heading).chain(&self.rows);
        let widths: Vec<usize> = (0..heading.len())
            .map(|i| all().map(|row| row.get(i).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0))
            .collect();
        for row in all() {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
                let left = self.heading[i].starts_with('<');
                let separator = if i == 0 { "" } else { "  " };
                line +=
                    &if left { format!("{separator}{cell}{padding}") } else { format!("{separator}{padding}{cell}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Returns a number with about four significant digits: `0.0123`, `1.234`, `12.34`, `12345`.
#[must_use]
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if a < 0.1 => format!("{x:.4}"),
        a if a < 10.0 => format!("{x:.3}"),
        a if a < 100.0 => format!("{x:.2}"),
        a if a < 10_000.0 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, number};

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["<name", "ms"]);
        table.row(["a".into(), number(1.5)]);
        table.row(["longer".into(), number(1234.56)]);
        assert_eq!(table.to_string(), "name        ms\na        1.500\nlonger  1234.6\n");
    }
}
