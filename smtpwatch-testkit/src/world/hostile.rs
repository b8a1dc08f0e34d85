//! The hostile world: each attack against peers with much and little history, and strips that spread in other ways.

use smtpwatch_core::{Role, finding::Severity};

use super::{
    attacks::{ATTACKS, STRIP, before},
    habits::{HABITS, Truth},
    replay::{Label, Raised, Replay},
    scene::{DAY, HOUR, Peer, SECOND, START, Scene, mixed},
};
use crate::{packet::Dice, scenario::Dialogue};

/// How long a peer is known when the attack begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// 60 sessions over 25 days.
    Much,
    /// 6 sessions over three days.
    Little,
    /// Not at all.
    Nothing,
}

impl Known {
    pub const ALL: [Self; 3] = [Self::Much, Self::Little, Self::Nothing];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Much => "much",
            Self::Little => "little",
            Self::Nothing => "none",
        }
    }

    const fn sessions(self) -> i64 {
        match self {
            Self::Much => 60,
            Self::Little => 6,
            Self::Nothing => 0,
        }
    }

    const fn days(self) -> i64 {
        match self {
            Self::Much => 25,
            Self::Little | Self::Nothing => 3,
        }
    }
}

/// When findings of a severity came: the worst of all repetitions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Delay {
    /// Sessions under attack up to the first with such a finding; infinite if none has one.
    pub sessions: f64,
    /// Minutes from the start of the first session under attack to the finding; infinite likewise.
    pub minutes: f64,
}

/// Delay to a finding of medium severity or more, and of high severity or more.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Delays {
    pub medium: Delay,
    pub high: Delay,
}

/// One attack against one peer.
pub struct Attacked {
    /// Index in [`ATTACKS`].
    pub attack: usize,
    pub known: Known,
    pub delays: Delays,
}

/// Strips of many peers, or not of every session.
pub struct Spread {
    pub name: &'static str,
    pub about: &'static str,
    pub delays: Delays,
    /// The first rank, in the order in which peers are attacked, from which on every peer has a finding of high
    /// severity or more in its first session under attack: the worst of all repetitions.
    pub high_from: f64,
    /// Sessions under attack in one repetition.
    pub attacked: usize,
}

/// How much is played.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Repetitions with other random numbers.
    pub repetitions: u64,
    /// Every attack, not only those that a goal names.
    pub every_attack: bool,
    /// Passwords that are guessed on the day of guesses.
    pub guesses: usize,
}

/// Sessions under attack, ten minutes apart, if one peer is attacked.
pub const ATTACKED: i64 = 12;
/// Peers behind the uplink.
const BEHIND: u32 = 24;
/// The day on which every attack begins.
const ATTACK_DAY: i64 = 26;

/// Plays each attack against one peer.
pub fn attacks(effort: Effort, seed: u64, is_wanted: impl Fn(usize) -> bool) -> Vec<Attacked> {
    let chosen = (0..ATTACKS.len()).filter(|attack| effort.every_attack || is_wanted(*attack));
    let cases = chosen.flat_map(|attack| Known::ALL.map(|known| (attack, known)));
    cases
        .map(|(attack, known)| {
            let mut all = Vec::new();
            for repetition in 0..effort.repetitions {
                let mut stage = Stage::new(mixed(seed ^ repetition << 32 ^ attack as u64));
                let victim = stage.peer(ATTACKS[attack].role);
                let others: Vec<_> = (0..8).map(|_| stage.peer(Role::Client)).collect();
                let mut plan = stage.history(&[victim], known, attack);
                plan.extend(stage.history(&others, Known::Little, STRIP));
                for number in 0..ATTACKED {
                    let at = START + ATTACK_DAY * DAY + number * 10 * 60 * SECOND;
                    plan.push(Planned { at, peer: victim, attack, attacked: true });
                    let other = others[stage.dice.below(others.len())];
                    plan.push(Planned { at: at + 5 * 60 * SECOND, peer: other, attack: STRIP, attacked: false });
                }
                all.push(stage.play(plan));
            }
            Attacked { attack, known, delays: worst(&all) }
        })
        .collect()
}

/// Plays strips that spread over an uplink, come and go, or are rolled out slowly.
pub fn spreads(effort: Effort, seed: u64) -> Vec<Spread> {
    let unused = ATTACKS.iter().position(|attack| attack.rule == "A8").expect("a row");
    let uplink = |name, about, known, attack: usize| {
        spread(name, about, effort, seed, known, attack, |stage, peers| {
            let mut sessions = Vec::new();
            for _ in 0..3 {
                for peer in peers {
                    sessions.push((*peer, i64::try_from(stage.dice.below(3600)).expect("small") * SECOND, true));
                }
            }
            sessions
        })
    };
    vec![
        uplink("uplink", "STARTTLS is stripped from all 24 peers with much history within an hour", Known::Much, STRIP),
        uplink("uplink-six", "the same with peers of six sessions", Known::Little, STRIP),
        uplink(
            "uplink-senders",
            "24 senders with much history stop using TLS within an hour (A8)",
            Known::Much,
            unused,
        ),
        spread(
            "intermittent",
            "one session in five of one peer with much history is stripped, an hour apart",
            effort,
            seed,
            Known::Much,
            STRIP,
            |_, peers| (0..60).map(|hour| (peers[0], hour * HOUR, hour % 5 == 0)).collect(),
        ),
        spread(
            "roll-out",
            "every six hours one more of 24 peers with much history is stripped; each has a session an hour",
            effort,
            seed,
            Known::Much,
            STRIP,
            |_, peers| {
                let of_peer = |(rank, peer): (usize, &u32)| {
                    let begins = i64::try_from(rank).expect("small") * 6;
                    (0..72).map(move |hour| (*peer, hour * HOUR, hour >= begins)).collect::<Vec<_>>()
                };
                peers.iter().enumerate().flat_map(of_peer).collect()
            },
        ),
    ]
}

/// What a day of guessed passwords with one real strip looks like.
pub struct GuessDay {
    /// The findings of that day.
    pub raised: Vec<Raised>,
    pub guesses: usize,
}

/// Plays that day: 40 peers with much history, bots that guess passwords, and at noon a strip of three deliveries to one peer.
pub fn guess_day(effort: Effort, seed: u64) -> GuessDay {
    let mut stage = Stage::new(mixed(seed ^ 0x6e55));
    let peers: Vec<_> =
        (0..40).map(|number| stage.peer(if number < 30 { Role::Client } else { Role::Server })).collect();
    let mut plan = stage.history(&peers, Known::Much, STRIP);
    let day = START + ATTACK_DAY * DAY;
    for _ in 0..10 {
        for peer in &peers {
            plan.push(Planned { at: day + stage.moment(DAY), peer: *peer, attack: STRIP, attacked: false });
        }
    }
    let noon = day + 12 * HOUR;
    plan.extend((0..3).map(|minute| Planned { at: noon + minute * 60, peer: peers[0], attack: STRIP, attacked: true }));
    let guesses: Vec<usize> = (0..HABITS.len()).filter(|habit| HABITS[*habit].name.starts_with("guess-")).collect();
    let bots: Vec<u32> = (0..300).map(|_| stage.peer(Role::Server)).collect();
    for bot in &bots {
        stage.peers[*bot as usize].habit = *stage.dice.pick(&guesses);
    }
    let guessed = (0..effort.guesses).map(|_| (day + stage.moment(DAY), *stage.dice.pick(&bots))).collect::<Vec<_>>();
    plan.extend(guessed.into_iter().map(|(at, peer)| Planned { at, peer, attack: GUESS, attacked: false }));
    let mut raised = stage.play(plan);
    raised.retain(|raised| raised.at >= day);
    GuessDay { raised, guesses: effort.guesses }
}

/// In place of an attack: the peer's own habit.
const GUESS: usize = usize::MAX;

fn spread(
    name: &'static str,
    about: &'static str,
    effort: Effort,
    seed: u64,
    known: Known,
    attack: usize,
    sessions: impl Fn(&mut Stage, &[u32]) -> Vec<(u32, i64, bool)>,
) -> Spread {
    let (mut all, mut high_from, mut attacked) = (Vec::new(), 1.0_f64, 0);
    for repetition in 0..effort.repetitions {
        let mut stage = Stage::new(mixed(seed ^ repetition << 32 ^ 0x5b8e));
        let peers: Vec<_> = (0..BEHIND).map(|_| stage.peer(ATTACKS[attack].role)).collect();
        let mut plan = stage.history(&peers, known, attack);
        let start = START + ATTACK_DAY * DAY;
        let later = sessions(&mut stage, &peers);
        let later = later.into_iter().map(|(peer, at, attacked)| Planned { at: start + at, peer, attack, attacked });
        let later: Vec<_> = later.collect();
        attacked = later.iter().filter(|planned| planned.attacked).count();
        let order = in_order(&later);
        plan.extend(later);
        let raised = stage.play(plan);
        let is_high = |peer: &u32| {
            let first = |raised: &&Raised| raised.label.peer == *peer && raised.label.attacked == 1;
            raised.iter().filter(first).any(|raised| raised.severity >= Severity::High)
        };
        let late = order.iter().rposition(|peer| !is_high(peer)).map_or(1, |rank| rank + 2);
        high_from = high_from.max(if late > order.len() { f64::INFINITY } else { ranked(late) });
        all.push(raised);
    }
    Spread { name, about, delays: worst(&all), high_from, attacked }
}

/// The attacked peers, in the order of their first session under attack.
fn in_order(planned: &[Planned]) -> Vec<u32> {
    let mut attacked: Vec<_> = planned.iter().filter(|planned| planned.attacked).collect();
    attacked.sort_by_key(|planned| planned.at);
    let mut order = Vec::new();
    for planned in attacked {
        if !order.contains(&planned.peer) {
            order.push(planned.peer);
        }
    }
    order
}

/// One session to come.
struct Planned {
    at: i64,
    peer: u32,
    attack: usize,
    attacked: bool,
}

/// An engine with a few peers.
struct Stage {
    dice: Dice,
    peers: Vec<Peer>,
    seed: u64,
}

impl Stage {
    fn new(seed: u64) -> Self {
        Self { dice: Dice(seed | 1), peers: Vec::new(), seed }
    }

    fn peer(&mut self, role: Role) -> u32 {
        let number = u32::try_from(self.peers.len()).expect("few peers");
        let seed = mixed(self.seed ^ u64::from(number) << 40);
        self.peers.push(Peer { number, role, habit: 0, seed, born: START, sessions: 0 });
        number
    }

    fn moment(&mut self, within: i64) -> i64 {
        i64::try_from(self.dice.below(usize::try_from(within / SECOND).unwrap_or(1))).expect("small") * SECOND
    }

    /// Honest sessions before the attack begins.
    fn history(&mut self, peers: &[u32], known: Known, attack: usize) -> Vec<Planned> {
        let mut plan = Vec::new();
        for peer in peers {
            for _ in 0..known.sessions() {
                let at = START + (ATTACK_DAY - known.days()) * DAY + self.moment(known.days() * DAY - HOUR);
                plan.push(Planned { at, peer: *peer, attack, attacked: false });
            }
        }
        plan
    }

    /// Plays the sessions in the order of time.
    fn play(mut self, mut plan: Vec<Planned>) -> Vec<Raised> {
        plan.sort_by_key(|planned| planned.at);
        let mut replay = Replay::new(2_000);
        let mut attacked = vec![0; self.peers.len()];
        let mut of_all = 0;
        for planned in plan {
            let number = planned.peer as usize;
            attacked[number] += usize::from(planned.attacked);
            of_all += usize::from(planned.attacked);
            let peer = &self.peers[number];
            let habit = if planned.attacked { planned.attack } else { peer.habit };
            let truth = match (planned.attacked, planned.attack) {
                (true, _) => Truth::Attack,
                (false, GUESS) => Truth::Noise,
                (false, _) => Truth::Honest,
            };
            let (place, of_all) = if planned.attacked { (attacked[number], of_all) } else { (0, 0) };
            let label = Label { truth, habit, peer: planned.peer, attacked: place, of_all, begun: planned.at };
            let mut scene = Scene { peer, dice: &mut self.dice, at: planned.at, nth: peer.sessions };
            let talk: Dialogue = match (planned.attacked, planned.attack) {
                (_, GUESS) => (HABITS[peer.habit].play)(&mut scene),
                (true, attack) => (ATTACKS[attack].play)(&mut scene),
                (false, attack) => before(&ATTACKS[attack], &mut scene),
            };
            self.peers[number].sessions += 1;
            replay.add(talk, label);
        }
        replay.finish();
        assert_eq!(replay.unlabelled, 0, "a finding of an unknown session");
        replay.raised
    }
}

/// The longest delays.
fn worst(all: &[Vec<Raised>]) -> Delays {
    let of = |least: Severity| {
        let mut worst = Delay { sessions: 0.0, minutes: 0.0 };
        for raised in all {
            let found: Vec<_> = raised
                .iter()
                .filter(|raised| raised.label.truth == Truth::Attack && raised.severity >= least)
                .collect();
            let session = found.iter().map(|raised| raised.label.of_all).min();
            let at = found.iter().map(|raised| raised.at).min();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let minutes = |at| (at - START - ATTACK_DAY * DAY) as f64 / (60 * SECOND) as f64;
            worst.sessions = worst.sessions.max(session.map_or(f64::INFINITY, ranked));
            worst.minutes = worst.minutes.max(at.map_or(f64::INFINITY, minutes));
        }
        worst
    };
    Delays { medium: of(Severity::Medium), high: of(Severity::High) }
}

fn ranked(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
