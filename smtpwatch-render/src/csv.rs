//! Comma-separated values (RFC 4180) that are safe in a spreadsheet and on a terminal.

use crate::text::printable;

/// First characters of a formula: a spreadsheet would evaluate the cell, and text of peers may be in it.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];

/// One line, with its line end. No cell begins with a character that begins a formula: such text follows an apostrophe,
/// which a spreadsheet takes as the mark of text. Control characters are escaped as on a terminal.
#[must_use]
pub fn line(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<_> = cells.iter().map(|text| cell(text.as_ref())).collect();
    format!("{}\r\n", cells.join(","))
}

fn cell(text: &str) -> String {
    let text = printable(text);
    let mark = if text.trim_start().starts_with(FORMULA) { "'" } else { "" };
    if text.contains(['"', ',', ' ', '\'']) {
        format!("\"{mark}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{mark}{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for (text, expected) in [
            ("mx1.example.net", "mx1.example.net"),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            (" =HYPERLINK(\"http://x\",1)", "\"' =HYPERLINK(\"\"http://x\"\",1)\""),
            ("\t=1", "\\t=1"),
            ("\u{ff1d}1", "'\u{ff1d}1"),
            ("a,b", "\"a,b\""),
            ("a\r\n=1", "a\\r\\n=1"),
            ("a \"b\"", "\"a \"\"b\"\"\""),
            ("", ""),
        ] {
            assert_eq!(line(&[text, "x"]), format!("{expected},x\r\n"), "{text:?}");
        }
    }
}
