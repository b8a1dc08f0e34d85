//! Which traps and evasions of the threat table have a test: each is named in the name of one.

/// The evasions that are decided before the engine are tested there.
const SOURCES: [&str; 5] = [
    include_str!("traps.rs"),
    include_str!("evasions.rs"),
    include_str!("../../../smtpwatch-common/src/headers/tests.rs"),
    include_str!("../../../smtpwatch-common/src/process/tests.rs"),
    include_str!("../../../smtpwatch/src/capture/listeners.rs"),
];

/// Numbers up to `last` that no test names, of identifiers that begin with `kind`.
fn untested(kind: &str, last: u32) -> Vec<u32> {
    let names = SOURCES.iter().flat_map(|source| source.split("#[test]").skip(1)).filter_map(|test| {
        let (_, rest) = test.split_once("fn ")?;
        rest.split_once('(').map(|(name, _)| format!("{name}_"))
    });
    let names: Vec<String> = names.collect();
    let is_named = |number: &u32| {
        let id = format!("{kind}{number}_");
        names.iter().any(|name| name.starts_with(&id) || name.contains(&format!("_{id}")))
    };
    (1..=last).filter(|number| !is_named(number)).collect()
}

#[test]
fn every_trap_and_every_evasion_has_a_test() {
    for (kind, what, last) in [("fp", "traps", 28), ("ev", "evasions", 28)] {
        let untested = untested(kind, last);
        println!("{} of {last} {what} have a test of their name", last as usize - untested.len());
        assert!(untested.is_empty(), "{what} without a test: {untested:?}");
    }
}
