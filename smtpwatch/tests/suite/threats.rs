//! `docs/threats.md` is the one place where identifiers of threats, false-positive cases, evasions and forensic signs
//! are explained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use smtpwatch_core::judge::catalogue::{self, Row};

const PAGE: &str = "docs/threats.md";

/// Text of every Rust and Markdown file of the workspace, by its relative path.
fn sources() -> BTreeMap<String, String> {
    fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "corpus" {
                    collect(root, &path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
                let relative = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.insert(relative, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let mut found = BTreeMap::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 250 && found.contains_key(PAGE), "only {} files", found.len());
    found
}

/// Whether a word has the form of an identifier: `A1` to `G10`, `FP-1`, `EV-1`, `FO-1`.
fn is_identifier(word: &str) -> bool {
    let number = |digits: &str| matches!(digits.len(), 1 | 2) && digits.bytes().all(|digit| digit.is_ascii_digit());
    match word.split_once('-') {
        Some((family, digits)) => matches!(family, "FP" | "EV" | "FO") && number(digits),
        None => word.starts_with(|letter| matches!(letter, 'A'..='G')) && word.get(1..).is_some_and(number),
    }
}

/// Identifiers in the words of a text.
fn identifiers(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-' && letter != '_');
    words.filter(|word| is_identifier(word)).map(str::to_owned).collect()
}

/// Names of the functions of a source.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next())
}

/// Identifiers at the start of a test's name: `ev8_ev9_…` is EV-8 and EV-9.
fn identifiers_of_test(name: &str) -> Vec<String> {
    let parts = name.split('_').map(|part| {
        let upper = part.to_ascii_uppercase();
        match upper.get(..2) {
            Some(family @ ("FP" | "EV" | "FO")) => format!("{family}-{}", &upper[2..]),
            _ => upper,
        }
    });
    parts.take_while(|part| is_identifier(part)).collect()
}

/// Rows of the page whose first cell is an identifier: their other cells.
fn rows(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut found = BTreeMap::new();
    for line in page.lines() {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        if let Some(id) = cells.next().filter(|id| is_identifier(id)) {
            assert!(found.insert(id, cells.collect()).is_none(), "{id} has two rows");
        }
    }
    found
}

#[test]
fn every_identifier_has_a_row() {
    let sources = sources();
    let rows = rows(&sources[PAGE]);
    let mut cited = BTreeSet::new();
    for (file, text) in &sources {
        let named = functions(text).flat_map(identifiers_of_test);
        for id in identifiers(text).into_iter().chain(named) {
            assert!(rows.contains_key(id.as_str()), "{file} cites {id}, which has no row in {PAGE}");
            cited.insert(id);
        }
    }
    for family in ["A", "B", "C", "D", "E", "F", "G", "FP-", "EV-", "FO-"] {
        assert!(cited.iter().any(|id| id.starts_with(family)), "no {family} was found in any file");
    }
}

/// The page repeats the catalogue's rows literally, so that neither becomes outdated.
#[test]
fn the_page_has_the_rows_of_the_catalogue() {
    let sources = sources();
    let section = sources[PAGE].split("\n## A to G\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let printed: Vec<_> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    let expected: Vec<_> = catalogue::ROWS
        .iter()
        .filter(|row| !row.id.as_str().starts_with("FO"))
        .map(|row| {
            let Row { id, title, .. } = row;
            let kind = row.kind().map_or_else(|| "not raised".to_owned(), |kind| format!("`{kind}`"));
            format!("| {id} | {title} | {kind} |")
        })
        .collect();
    assert_eq!(printed, expected, "the table of {PAGE} should be:\n{}", expected.join("\n"));
}

/// A row of FP, EV and FO names the tests that show it; a test that names an identifier is listed in its row.
#[test]
fn the_tests_that_rows_name_exist() {
    let sources = sources();
    let tests: BTreeSet<&str> = sources
        .iter()
        .filter(|(file, _)| file.ends_with(".rs"))
        .flat_map(|(_, text)| text.split("#[test]").skip(1).filter_map(|rest| functions(rest).next()))
        .collect();
    let named = |text: &str| -> BTreeSet<String> { text.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let rows = rows(&sources[PAGE]);
    let mut families = BTreeMap::new();
    for (id, cells) in rows.iter().filter(|(id, _)| id.contains('-')) {
        let [what, does, shown] = cells[..] else { panic!("{id} has {} cells", cells.len()) };
        assert!(!what.is_empty() && !does.is_empty(), "{id} says nothing");
        let shown = named(shown);
        assert!(!shown.is_empty(), "{id} names no test");
        for test in &shown {
            assert!(tests.contains(test.as_str()), "{id} names the test {test}, which does not exist");
        }
        for test in tests.iter().filter(|test| identifiers_of_test(test).iter().any(|other| other == id)) {
            assert!(shown.contains(*test), "{id} does not name its test {test}");
        }
        *families.entry(&id[..2]).or_insert(0) += 1;
    }
    assert_eq!(families, BTreeMap::from([("EV", 29), ("FO", 9), ("FP", 28)]));
    let text = named(&sources[PAGE].split("\n## FP").next().unwrap().replace("`.", "` "));
    for test in text.iter().filter(|name| name.starts_with("every_")) {
        assert!(tests.contains(test.as_str()), "{PAGE} names the test {test}, which does not exist");
    }
}

/// A document that is not part of the repository must not be cited.
#[test]
fn no_file_cites_a_document_that_is_not_there() {
    // Written in parts, so that this file does not match itself.
    let absent = [["THREATS", " "], ["THREATS", "."], ["THREATS", ":"], ["DESIGN", " §"], ["DESIGN", ".md"]];
    for (file, text) in sources() {
        for name in absent.iter().map(|parts| parts.concat()) {
            assert!(!text.contains(&name), "{file} cites {name:?}: the page is {PAGE}");
        }
    }
}
