//! Tables for people: columns and nothing else, so that they can be cut and grepped.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Rows under their headings. A heading that ends in `>` stands over a column of figures, which is aligned to the right.
#[must_use]
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_end_matches('>')));
    // A file's name may hold anything, the terminal's control codes included.
    table.add_rows(
        rows.into_iter().map(|row| row.iter().map(|cell| cell.replace(char::is_control, "?")).collect::<Vec<_>>()),
    );
    for (heading, column) in headings.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 2));
        if heading.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// One fact per line: its name, and what it is.
#[must_use]
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let facts: Vec<(&str, String)> = facts.into_iter().collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:width$}  {}\n", value.replace(char::is_control, "?"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_start_in_one_column() {
        let rows = [("a", "x y".to_owned()), ("long name", "z\n".to_owned())];
        assert_eq!(facts(rows), "a          x y\nlong name  z?\n");
        assert_eq!(facts([]), "");
    }

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned(), "x y".to_owned()],
            vec!["bcd".to_owned(), "100".to_owned(), String::new()],
        ];
        assert_eq!(table(&["NAME", "N>", "WHAT"], rows), "NAME    N  WHAT\na       1  x y\nbcd   100\n");
        assert_eq!(table(&["NAME"], []), "NAME\n");
        assert_eq!(table(&["NAME"], [vec!["a\x1b[31m\nb".to_owned()]]), "NAME\na?[31m?b\n");
    }
}
