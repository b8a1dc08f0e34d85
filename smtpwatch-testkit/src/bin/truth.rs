//! Plays the worlds of `docs/truth.md` and prints the page. `cargo xtask truth` calls it.

use std::{process::ExitCode, time::Instant};

use smtpwatch_testkit::world::{Worlds, goals, page};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
    let (Some(sessions), Some(seed)) = (number().and_then(|number| usize::try_from(number).ok()), number()) else {
        eprintln!("truth SESSIONS SEED");
        return ExitCode::from(2);
    };
    let start = Instant::now();
    let worlds =
        Worlds::long(sessions, seed, |what| eprintln!("truth: {:6.1} s: {what}", start.elapsed().as_secs_f64()));
    eprintln!("truth: {:6.1} s: done", start.elapsed().as_secs_f64());
    print!("{}", page::page(&worlds));
    let broken = page::broken(&goals::check(&worlds));
    broken.iter().for_each(|line| eprintln!("MISSED {line}"));
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
