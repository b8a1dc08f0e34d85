//! A measure of truth: worlds of SMTP sessions, honest, noisy and hostile, played to the engine, and what it makes of
//! them. `cargo xtask truth` writes `docs/truth.md`; a short form is a test of `smtpwatch-core`.
//!
//! [`habits`] and [`attacks`] are the tables of what happens, made of the dialogues in [`scene`]. [`calendar`] and
//! [`hostile`] decide when it happens and to whom, [`replay`] plays it, and [`measure`] counts. [`goals`] is what the
//! figures are held to, and [`page`] prints them.
//!
//! Everything follows from the seed: no clock is read, and no order of a hash table matters.

pub mod attacks;
pub mod calendar;
pub mod goals;
pub mod habits;
pub mod hostile;
pub mod measure;
pub mod page;
pub mod replay;
pub mod scene;

use calendar::{Played, World};
use hostile::{Attacked, Effort, GuessDay, Spread};

/// All worlds, played once.
pub struct Worlds {
    pub honest: Played,
    pub noisy: Played,
    pub attacks: Vec<Attacked>,
    pub spreads: Vec<Spread>,
    pub guesses: GuessDay,
    pub seed: u64,
}

/// The seed of `docs/truth.md` and of the short form.
pub const SEED: u64 = 1;

impl Worlds {
    /// Plays the worlds of the page: honest and noisy with this many sessions, and every attack.
    pub fn long(sessions: usize, seed: u64, progress: impl Fn(&str)) -> Self {
        let effort = Effort { repetitions: 8, every_attack: true, guesses: 10_000 };
        Self::play(sessions, seed, effort, progress)
    }

    /// Plays the short form: what the goals need.
    pub fn short(sessions: usize, seed: u64) -> Self {
        Self::play(sessions, seed, Effort { repetitions: 1, every_attack: false, guesses: 500 }, |_| ())
    }

    fn play(sessions: usize, seed: u64, effort: Effort, progress: impl Fn(&str)) -> Self {
        progress("honest world");
        let honest = calendar::play(World::Honest, sessions, seed);
        progress("noisy world");
        let noisy = calendar::play(World::Noisy, sessions, seed);
        progress("attacks");
        let attacks = hostile::attacks(effort, seed, goals::names);
        progress("spreading attacks");
        let spreads = hostile::spreads(effort, seed);
        progress("a day of guessed passwords");
        let guesses = hostile::guess_day(effort, seed);
        Self { honest, noisy, attacks, spreads, guesses, seed }
    }
}
