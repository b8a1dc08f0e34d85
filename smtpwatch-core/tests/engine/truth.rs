//! The short form of `cargo xtask truth`: worlds of sessions with a fixed seed, and the goals of docs/truth.md.

use std::{collections::BTreeSet, sync::LazyLock};

use smtpwatch_core::{Role, engine::SessionResult, finding::Severity};
use smtpwatch_testkit::world::{
    SEED, Worlds,
    calendar::{World, play},
    goals::{self, GOALS, NOT_MET},
    habits::{HABITS, Truth},
    page,
};

/// Sessions of the honest and of the noisy world.
const SESSIONS: usize = 3_000;
static WORLDS: LazyLock<Worlds> = LazyLock::new(|| Worlds::short(SESSIONS, SEED));

#[test]
fn every_goal_that_is_met_stays_met() {
    let checked = goals::check(&WORLDS);
    let watched: Vec<_> = checked.into_iter().filter(|checked| !NOT_MET.contains(&checked.goal.id)).collect();
    assert_eq!(watched.len(), GOALS.len() - NOT_MET.len(), "NOT_MET names a goal that does not exist");
    let broken = page::broken(&watched);
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Goals about silence would be met by an engine that sees nothing.
#[test]
fn the_sessions_of_the_worlds_are_seen() {
    let (honest, noisy) = (&WORLDS.honest, &WORLDS.noisy);
    for (habit, (in_honest, in_noisy)) in HABITS.iter().zip(honest.by_habit.iter().zip(&noisy.by_habit)) {
        assert_eq!(*in_honest > 0, habit.truth == Truth::Honest, "{} in the honest world", habit.name);
        assert!(*in_noisy > 0, "{} in the noisy world", habit.name);
    }
    let of = |result| honest.results[SessionResult::ALL.iter().position(|other| *other == result).expect("a result")];
    let sessions = u64::try_from(SESSIONS).expect("small");
    assert!(of(SessionResult::Tls) > sessions / 2, "{:?}", honest.results);
    assert!(of(SessionResult::Plaintext) > sessions / 5, "{:?}", honest.results);
    assert!(of(SessionResult::Unknown) < sessions / 20, "{:?}", honest.results);
    let is_found = |truth| noisy.raised.iter().any(|raised| raised.label.truth == truth);
    assert!(is_found(Truth::Noise) && is_found(Truth::Change));
    assert!(noisy.raised.iter().any(|raised| raised.severity >= Severity::High && raised.role == Role::Client));
}

#[test]
fn the_seed_decides_everything() {
    let raised = |seed| {
        let raised = play(World::Noisy, 500, seed).raised;
        raised.iter().map(|raised| (raised.at, raised.peer, raised.kind, raised.severity)).collect::<Vec<_>>()
    };
    assert_eq!(raised(3), raised(3));
    assert_ne!(raised(3), raised(4));
}

#[test]
fn every_fp_row_has_a_habit() {
    let threats = include_str!("../../../docs/threats.md");
    let rows = threats.lines().filter_map(|line| line.strip_prefix("| FP-")?.split(' ').next());
    let rows: BTreeSet<String> = rows.map(|number| format!("FP-{number}")).collect();
    assert!(rows.len() > 20, "the table was not read: {rows:?}");
    let named: BTreeSet<String> = HABITS.iter().flat_map(|habit| habit.rows).map(|row| (*row).to_owned()).collect();
    assert_eq!(named, rows);
}

#[test]
fn the_page_describes_what_is_played() {
    let page = include_str!("../../../docs/truth.md");
    let committed = page.starts_with(&page::head()) && page.ends_with(&page::tail());
    assert!(committed, "docs/truth.md is of another version: cargo xtask truth writes it");
    for goal in GOALS {
        assert!(page.contains(&format!("| `{}` |", goal.id)), "{}", goal.id);
    }
}
