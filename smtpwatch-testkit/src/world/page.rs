//! `docs/truth.md`.

use std::fmt::Write as _;

use smtpwatch_core::{Role, engine::SessionResult, finding::Severity, policy::history::surprise::grouped};

use super::{
    Worlds,
    attacks::ATTACKS,
    calendar::Played,
    goals::{Bound, Checked, check},
    habits::{HABITS, Habit, Truth},
    hostile::{ATTACKED, Attacked, Delay},
    measure::{PerDay, by_habit, by_kind, per_day},
};

/// The part of the page before the figures. A test compares it with the committed page.
pub fn head() -> String {
    HEAD.to_owned()
}

/// The part of the page after the figures: what each world has. A test compares it with the committed page.
pub fn tail() -> String {
    let mut text = String::from(TAIL);
    let row = |habit: &Habit| {
        let rows = if habit.rows.is_empty() { "–".to_owned() } else { habit.rows.join(", ") };
        format!("| `{}` | {} | {rows} | {} |\n", habit.name, habit.role.as_str(), habit.about)
    };
    text.push_str(
        "\n## Habits of the honest world\n\n| habit | this host | rows | what happens |\n|---|---|---|---|\n",
    );
    text.extend(HABITS.iter().filter(|habit| habit.truth == Truth::Honest).map(row));
    text.push_str(NOISE);
    let others = HABITS.iter().filter(|habit| habit.truth != Truth::Honest);
    text.extend(others.map(|habit| row(habit).replacen("| ", &format!("| {} | ", habit.truth.as_str()), 1)));
    text
}

/// The whole page.
pub fn page(worlds: &Worlds) -> String {
    let mut text = head();
    goals(&mut text, &check(worlds));
    world(&mut text, "Honest world", &worlds.honest);
    world(&mut text, "Noisy world", &worlds.noisy);
    attacks(&mut text, &worlds.attacks);
    spreads(&mut text, worlds);
    text.push_str(&tail());
    text
}

/// One line for each goal that is not met, and by how much.
pub fn broken(checked: &[Checked]) -> Vec<String> {
    let line = |checked: &Checked| {
        let by = checked.measured - checked.allowed;
        let by = if by.is_finite() { format!("by {}", number(by.abs())) } else { "without end".to_owned() };
        format!(
            "{}: {} ({}): measured {}, bound {}, missed {by}",
            checked.goal.id,
            checked.goal.what,
            checked.goal.scenario,
            number(checked.measured),
            bound(checked),
        )
    };
    checked.iter().filter(|checked| !checked.is_met).map(line).collect()
}

const HEAD: &str = "# How often smtpwatch is right

`cargo xtask truth` makes worlds of SMTP sessions from a seed and plays them to the engine, segment by segment, as the gate passes them. What each session
really was is known, so that each finding can be counted as right or wrong.

```console
$ cargo xtask truth                        # plays everything, and writes this page
$ cargo xtask truth --check                # fails if a goal is missed, and says by how much
$ cargo xtask truth --sessions 20000 --seed 7 --print
```

A short form with a fixed seed is part of the test command (`smtpwatch-core/tests/engine/truth.rs`). It checks every goal except those that
`NOT_MET` in `smtpwatch-testkit/src/world/goals.rs` names.

The worlds have only the habits and attacks that this page lists, and no session is real: the figures compare one version with the next, and predict no host. Odd habits are far more frequent
than among real mail hosts: four of ten honest peers have one. No published policy and no local
rule is in force, and history is empty at the start of the month. An incident is counted as the store groups findings: one kind, peer and port, each finding within an hour of the
next; guessed passwords by own address, port and day; what this host's own server does by own address and port. The start page shows the most severe first. A page is an incident of high or critical severity.

";

const TAIL: &str = "
## What the worlds have

A world is a month. Peers are as popular as mail hosts are (Zipf's law), three of ten appear in the course of the month, and sessions come at random, more by day than by night. Sessions overlap as
their packets do. In a few sessions of a hundred the monitor misses packets, sees them twice or in the wrong order, or sees segments of a few bytes. On one day
it misses packets in a third of all sessions; in the noisy world it sees on one day only half of the packets in every second session.

| truth | what it means |
|---|---|
| honest | an honest peer: a finding is a false accusation |
| noise | bots, scanners, testers, and servers whose TLS is broken: no mail of this host is attacked |
| change | a real loss of encryption, or a real edit, without an attacker: a finding is right |
| attack | a device on the path |

A server that is replaced by one without TLS is no honest peer here: its mail has lost its encryption, whoever caused it.
";

const NOISE: &str = "
## Other habits of the noisy world

Every second session is one of a bot or a scanner. The others are those of the honest world, and the peers below for which this host is the client.

| truth | habit | this host | rows | what happens |
|---|---|---|---|---|
";

fn goals(text: &mut String, checked: &[Checked]) {
    let missed = checked.iter().filter(|checked| !checked.is_met).count();
    push(text, format_args!("## Goals\n\n{} of {} goals are met.\n\n", checked.len() - missed, checked.len()));
    text.push_str("| goal | world | what | bound | measured | |\n|---|---|---|---|---|---|\n");
    for checked in checked {
        let goal = checked.goal;
        push(
            text,
            format_args!(
                "| `{}` | {} | {} | {} | {} | {} |\n",
                goal.id,
                goal.scenario,
                goal.what,
                bound(checked),
                number(checked.measured),
                if checked.is_met { "met" } else { "**missed**" }
            ),
        );
    }
}

fn bound(checked: &Checked) -> String {
    match checked.goal.bound {
        Bound::AtMost(_) | Bound::PerMillion(_) => format!("≤ {}", number(checked.allowed)),
        Bound::Exactly(_) => number(checked.allowed),
    }
}

fn world(text: &mut String, title: &str, played: &Played) {
    let results = SessionResult::ALL.iter().zip(played.results);
    let results: Vec<_> = results.map(|(result, count)| format!("{} {}", grouped(count), result.as_str())).collect();
    push(
        text,
        format_args!(
            "\n## {title}\n\n{} sessions of {} peers in 30 days. Results: {}.\n",
            grouped(played.sessions as u64),
            grouped(played.peers as u64),
            results.join(", ")
        ),
    );
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = |count: u64| count as f64 * 1e6 / played.sessions as f64;
    text.push_str("\nFindings in a million sessions:\n\n");
    text.push_str("| truth | kind | critical | high | medium | low | info |\n|---|---|---|---|---|---|---|\n");
    for ((truth, kind), counts) in by_kind(&played.raised) {
        push(text, format_args!("| {} | `{kind}` |{}\n", truth.as_str(), cells(&counts, rate)));
    }
    text.push_str("\nIn a day:\n\n| truth | findings | incidents | pages: incidents of high or critical severity | pages on the worst day |\n|---|---|---|---|---|\n");
    let groups: Vec<(&str, Vec<Truth>)> =
        Truth::ALL.iter().map(|truth| (truth.as_str(), vec![*truth])).chain([("all", Truth::ALL.to_vec())]).collect();
    for (name, truths) in groups {
        let PerDay { findings, incidents, pages, pages_of_the_worst_day } = per_day(&played.raised, &truths);
        if findings > 0.0 || name == "all" {
            push(
                text,
                format_args!("| {name} | {findings:.1} | {incidents:.1} | {pages:.2} | {pages_of_the_worst_day} |\n"),
            );
        }
    }
    text.push_str("\nHabits with findings of at least low severity, as counted:\n\n| truth | habit | sessions | critical | high | medium | low | info |\n|---|---|---|---|---|---|---|---|\n");
    for (habit, counts) in by_habit(&played.raised) {
        if counts[Severity::Low as usize..].iter().any(|count| *count > 0) {
            let (truth, name) = (HABITS[habit].truth.as_str(), HABITS[habit].name);
            let sessions = grouped(played.by_habit[habit]);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let cells = cells(&counts, |count| count as f64);
            push(text, format_args!("| {truth} | `{name}` | {sessions} |{cells}\n"));
        }
    }
}

/// One cell for each severity, the worst first.
fn cells(counts: &[u64; 5], shown: impl Fn(u64) -> f64) -> String {
    counts.iter().rev().map(|count| format!(" {} |", number(shown(*count)))).collect()
}

fn attacks(text: &mut String, all: &[Attacked]) {
    push(
        text,
        format_args!(
            "\n## Hostile world: one peer\n\nOne peer is attacked in {ATTACKED} sessions, ten minutes apart. History: much is 60 sessions over 25 days, little is 6 over three. The table says which session has the first finding of that severity or a higher one, and after how many \
             minutes it is raised: the worst of eight repetitions.\n\n| row | this host | what the device does | history | medium: session | minutes | high: session | minutes |\n|---|---|---|---|---|---|---|---|\n"
        ),
    );
    for attacked in all {
        let attack = &ATTACKS[attacked.attack];
        let role = if attack.role == Role::Client { "client" } else { "server" };
        push(
            text,
            format_args!(
                "| {} | {role} | {} | {} |{}{}\n",
                attack.rule,
                attack.about,
                attacked.known.as_str(),
                delay(attacked.delays.medium),
                delay(attacked.delays.high)
            ),
        );
    }
}

fn spreads(text: &mut String, worlds: &Worlds) {
    text.push_str("\n## Hostile world: many peers\n\nSessions are counted over all peers.\n\n| scenario | what happens | sessions under attack | medium: session | minutes | high: session | minutes | first sessions are high from this peer on |\n|---|---|---|---|---|---|---|---|\n");
    for spread in &worlds.spreads {
        push(
            text,
            format_args!(
                "| `{}` | {} | {} |{}{} {} |\n",
                spread.name,
                spread.about,
                spread.attacked,
                delay(spread.delays.medium),
                delay(spread.delays.high),
                number(spread.high_from)
            ),
        );
    }
    push(
        text,
        format_args!(
            "\nDay of guesses: {} guessed passwords of 300 bots, 400 honest sessions of 40 peers with much history, and one real strip at noon.\n",
            grouped(worlds.guesses.guesses as u64)
        ),
    );
}

fn delay(delay: Delay) -> String {
    format!(" {} | {} |", number(delay.sessions), number(delay.minutes))
}

/// A number without needless digits.
fn number(number: f64) -> String {
    if number.is_infinite() {
        "never".to_owned()
    } else if number >= 1000.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        grouped(number.round() as u64)
    } else if (number - number.round()).abs() < 0.05 {
        format!("{number:.0}")
    } else {
        format!("{number:.1}")
    }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(line);
}
