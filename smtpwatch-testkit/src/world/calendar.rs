//! The honest and the noisy world: a month of sessions with many peers, each with its habit.

use smtpwatch_core::Role;

use super::{
    habits::{HABITS, Truth},
    replay::{Label, Monitor, Raised, Replay},
    scene::{DAY, DAYS, HOUR, Peer, START, Scene, mixed},
};
use crate::packet::Dice;

/// Which peers a world has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum World {
    /// Honest peers only.
    Honest,
    /// Every habit; every second session is one of a bot or a scanner.
    Noisy,
}

/// A world that was played.
pub struct Played {
    pub sessions: usize,
    pub peers: usize,
    pub raised: Vec<Raised>,
    /// Sessions by result, in the order of `SessionResult::ALL`.
    pub results: [u64; 4],
    /// Sessions by habit.
    pub by_habit: Vec<u64>,
}

/// Sessions for each peer, on average.
const SESSIONS_OF_A_PEER: usize = 400;
/// Least number of peers for each habit, so that a short world has all of them.
const PEERS_OF_A_HABIT: usize = 2;
/// Days on which the monitor loses packets, and on which it samples.
const LOSSY_DAY: i64 = 9;
const SAMPLED_DAY: i64 = 20;

/// Plays a world. The same arguments give the same sessions.
pub fn play(world: World, sessions: usize, seed: u64) -> Played {
    let mut dice = Dice(mixed(seed) | 1);
    let mut peers = population(world, sessions, &mut dice);
    let busy = [Popularity::of(&peers, |peer| !is_bot(peer)), Popularity::of(&peers, is_bot)];
    let mut replay = Replay::new(200_000);
    let mut by_habit = vec![0; HABITS.len()];
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let mean = (DAYS * DAY) as f64 / sessions as f64;
    let (mut at, mut played) = (START, 0);
    while played < sessions {
        at += wait(mean, at, &mut dice);
        let group = usize::from(world == World::Noisy && dice.one_in(2));
        let number = busy[group].pick(&mut dice);
        if peers[number].born > at {
            continue;
        }
        let peer = &peers[number];
        let habit = &HABITS[peer.habit];
        let talk = (habit.play)(&mut Scene { peer, dice: &mut dice, at, nth: peer.sessions });
        let talk = monitor(world, (at - START) / DAY).capture(talk, &mut dice);
        let label =
            Label { truth: habit.truth, habit: peer.habit, peer: peer.number, attacked: 0, of_all: 0, begun: at };
        by_habit[peer.habit] += 1;
        peers[number].sessions += 1;
        replay.add(talk, label);
        played += 1;
    }
    replay.finish();
    assert_eq!(replay.unlabelled, 0, "a finding of an unknown session");
    Played { sessions, peers: peers.len(), raised: replay.raised, results: replay.results, by_habit }
}

fn is_bot(peer: &Peer) -> bool {
    let habit = &HABITS[peer.habit];
    habit.truth == Truth::Noise && habit.role == Role::Server
}

/// One peer for each habit at least, and the others by weight.
fn population(world: World, sessions: usize, dice: &mut Dice) -> Vec<Peer> {
    let habits: Vec<usize> =
        (0..HABITS.len()).filter(|habit| world == World::Noisy || HABITS[*habit].truth == Truth::Honest).collect();
    let count = (sessions / SESSIONS_OF_A_PEER).max(habits.len() * PEERS_OF_A_HABIT);
    let weights: u32 = habits.iter().map(|habit| HABITS[*habit].weight).sum();
    let mut peers: Vec<Peer> = (0..count)
        .map(|place| {
            let habit = match place.checked_div(PEERS_OF_A_HABIT).and_then(|place| habits.get(place)) {
                Some(habit) => *habit,
                None => {
                    let mut left = dice.below(weights as usize);
                    let is_it = |habit: &&usize| {
                        let weight = HABITS[**habit].weight as usize;
                        let found = left < weight;
                        left = left.saturating_sub(weight);
                        found
                    };
                    *habits.iter().find(is_it).expect("the weights add up")
                }
            };
            // Three of ten appear in the course of the month.
            let late = if dice.below(10) < 3 { i64::try_from(dice.below(20)).expect("small") } else { 0 };
            Peer {
                number: 0,
                role: HABITS[habit].role,
                habit,
                seed: mixed(dice.0),
                born: START + late * DAY,
                sessions: 0,
            }
        })
        .collect();
    // The place decides how popular a peer is.
    for place in (1..peers.len()).rev() {
        peers.swap(place, dice.below(place + 1));
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.number = u32::try_from(number).expect("few peers");
    }
    peers
}

/// How often each peer has sessions: a part in proportion to 1 / rank (Zipf's law).
struct Popularity {
    peers: Vec<usize>,
    /// Sum of the parts up to each peer.
    sums: Vec<f64>,
}

impl Popularity {
    fn of(peers: &[Peer], is_in: impl Fn(&Peer) -> bool) -> Self {
        let peers: Vec<usize> = (0..peers.len()).filter(|number| is_in(&peers[*number])).collect();
        let mut sum = 0.0;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let sums = (0..peers.len())
            .map(|rank| {
                sum += 1.0 / (rank + 3) as f64;
                sum
            })
            .collect();
        Self { peers, sums }
    }

    fn pick(&self, dice: &mut Dice) -> usize {
        let part = fraction(dice) * self.sums.last().copied().unwrap_or_default();
        self.peers[self.sums.partition_point(|sum| *sum < part).min(self.peers.len() - 1)]
    }
}

/// Time to the next session: exponentially distributed, shorter by day than by night.
fn wait(mean: f64, at: i64, dice: &mut Dice) -> i64 {
    let by_hour = match (at - START) / HOUR % 24 {
        0..6 => 0.5,
        6..8 | 20..24 => 0.9,
        _ => 1.35,
    };
    #[expect(clippy::cast_possible_truncation, reason = "nanoseconds of at most some days")]
    let wait = (-(1.0 - fraction(dice)).ln() * mean / by_hour) as i64;
    wait
}

/// At least 0, below 1.
fn fraction(dice: &mut Dice) -> f64 {
    const STEPS: usize = 1 << 30;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let fraction = dice.below(STEPS) as f64 / STEPS as f64;
    fraction
}

fn monitor(world: World, day: i64) -> Monitor {
    let usual = match world {
        World::Honest => Monitor { lossy: 10, reordered: 20, duplicated: 20, cut: 10, sampled: 0 },
        World::Noisy => Monitor { lossy: 30, reordered: 40, duplicated: 40, cut: 20, sampled: 0 },
    };
    match (world, day) {
        (_, LOSSY_DAY) => Monitor { lossy: 300, ..usual },
        (World::Noisy, SAMPLED_DAY) => Monitor { sampled: 500, ..usual },
        (World::Honest | World::Noisy, _) => usual,
    }
}
