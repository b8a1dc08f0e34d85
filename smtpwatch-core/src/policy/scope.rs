//! The scope of a symptom: one peer, its network, or all peers (docs/threats.md FO-13). The most common device that
//! removes STARTTLS is a firewall; the scope shows whose firewall to check first.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use crate::{
    Role, Timestamp,
    policy::{history::surprise::poisson_tail, rule::in_network},
};

/// Maximum number of sessions stored; the oldest is evicted.
const SESSIONS: usize = 1024;
/// Time for which a session counts for its peer.
const WINDOW: Duration = Duration::from_secs(3600);
/// Minimum number of other peers with the same symptom that corroborate it, if the history of each makes it rare.
const RARE_OTHERS: usize = 2;
/// The same for peers with a short history: some of them only had a lucky start.
const OTHERS: usize = 6;
/// Probability below which a symptom is rare at one peer.
const RARE: f64 = 1.0 / 275.0;

/// The latest sessions of this host in one role: peers with TLS, and peers without.
#[derive(Debug)]
pub struct Scope {
    role: Role,
    sessions: VecDeque<Noted>,
}

/// One session.
#[derive(Clone, Copy, Debug)]
struct Noted {
    at: Timestamp,
    peer: IpAddr,
    granted: bool,
    /// Probability by the peer's history that it is not granted; `None` for a peer whose history is no evidence.
    surprise: Option<f64>,
}

impl Scope {
    /// Creates an empty scope for one role of this host: as the client it counts servers by whether they offer STARTTLS, as
    /// the server it counts clients that are known to use it.
    #[must_use]
    pub const fn new(role: Role) -> Self {
        Self { role, sessions: VecDeque::new() }
    }

    /// Notes whether a server offered STARTTLS and granted it when requested, or whether a client used it. `surprise` is
    /// the probability by the peer's history that it does not; `None` if that history is no evidence.
    pub fn note(&mut self, at: Timestamp, peer: IpAddr, granted: bool, surprise: Option<f64>) {
        if self.sessions.len() >= SESSIONS {
            self.sessions.pop_front();
        }
        self.sessions.push_back(Noted { at, peer, granted, surprise });
    }

    /// The newest session of each peer within the window.
    fn newest(&self, now: Timestamp) -> BTreeMap<IpAddr, Noted> {
        let recent = self.sessions.iter().filter(|noted| now.since(noted.at) <= WINDOW);
        recent.map(|noted| (noted.peer, *noted)).collect()
    }

    /// How many other peers with strong history show the same symptom in the window, and how probable it is that so many
    /// do by chance. If they are too few, the probability is 1: two peers that change at once prove nothing.
    #[must_use]
    pub fn corroboration(&self, now: Timestamp, peer: IpAddr) -> (usize, f64) {
        let (mut seen, mut rare, mut expected) = (0, 0, 0.0);
        for noted in self.newest(now).values().filter(|noted| noted.peer != peer) {
            if let Some(surprise) = noted.surprise {
                expected += surprise;
                seen += usize::from(!noted.granted);
                rare += usize::from(!noted.granted && surprise < RARE);
            }
        }
        let enough = rare >= RARE_OTHERS || seen >= OTHERS;
        (seen, if enough { poisson_tail(seen, expected) } else { 1.0 })
    }

    /// Describes the scope of a symptom at `peer`, with numbers, and where to look first.
    #[must_use]
    pub fn of(&self, now: Timestamp, peer: IpAddr) -> String {
        // The latest session of each peer counts; the current session is not among them yet.
        let mut newest: BTreeMap<_, _> =
            self.newest(now).into_iter().map(|(address, noted)| (address, noted.granted)).collect();
        newest.insert(peer, false);
        let prefix = if peer.is_ipv4() { 24 } else { 48 };
        let with = |near: bool, granted: bool| {
            newest.iter().filter(|(address, ok)| in_network(**address, peer, prefix) == near && **ok == granted).count()
        };
        let (near_without, near_with) = (with(true, false), with(true, true));
        let (far_without, far_with) = (with(false, false), with(false, true));
        let (without, total) = (near_without + far_without, newest.len());
        let (one, tls) = match self.role {
            Role::Client => ("server", "STARTTLS"),
            Role::Server => ("client", "TLS"),
        };
        if total == 1 {
            format!(
                "scope: no other {one} was seen in the last hour: look at this host's own firewall first, then at the {one}'s side"
            )
        } else if without == total {
            format!(
                "scope: every {one} seen in the last hour ({total}): look at this host's own uplink and firewall first"
            )
        } else if without == 1 {
            let others = match near_with + far_with {
                1 => "1 other".to_owned(),
                more => format!("{more} others"),
            };
            format!(
                "scope: this {one} alone; {others} with {tls}: look at its side first, at a firewall there or at the {one} itself"
            )
        } else if far_without == 0 && near_with == 0 {
            format!(
                "scope: every {one} of its /{prefix} seen in the last hour ({near_without}), and none of {far_with} others: look at \
                 the way into that network first"
            )
        } else {
            format!(
                "scope: {without} of {total} {one}s seen in the last hour: look at what the ways to them share, this host's own firewall first"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(sessions: &[([u8; 4], bool)]) -> String {
        let mut scope = Scope::new(Role::Client);
        for (address, granted) in sessions {
            scope.note(Timestamp::from_secs(0), (*address).into(), *granted, None);
        }
        scope.of(Timestamp::from_secs(60), [198, 51, 100, 25].into())
    }

    #[test]
    fn the_scope_is_told_with_its_numbers() {
        assert!(scope(&[]).contains("no other server"));
        assert!(scope(&[([192, 0, 2, 1], true), ([203, 0, 113, 1], true)]).contains("this server alone; 2 others"));
        assert!(scope(&[([198, 51, 100, 26], false), ([203, 0, 113, 1], true)]).contains("every server of its /24"));
        assert!(
            scope(&[([192, 0, 2, 1], false), ([203, 0, 113, 1], false)])
                .contains("every server seen in the last hour (3)")
        );
        assert!(scope(&[([192, 0, 2, 1], false), ([203, 0, 113, 1], true)]).contains("2 of 3 servers"));
    }

    #[test]
    fn as_a_server_it_speaks_of_clients() {
        let told = Scope::new(Role::Server).of(Timestamp::from_secs(60), [198, 51, 100, 25].into());
        assert!(told.contains("no other client") && told.contains("own firewall first"), "{told}");
    }

    #[test]
    fn other_peers_corroborate_only_if_their_history_makes_it_rare() {
        let peer = [198, 51, 100, 25].into();
        let now = Timestamp::from_secs(60);
        let scope = |sessions: &[(u8, bool, Option<f64>)]| {
            let mut scope = Scope::new(Role::Client);
            for (last, granted, surprise) in sessions {
                scope.note(Timestamp::from_secs(0), [192, 0, 2, *last].into(), *granted, *surprise);
            }
            scope.corroboration(now, peer)
        };
        assert_eq!(scope(&[(1, false, Some(0.01))]), (1, 1.0), "one other peer may change by chance");
        let uplink: Vec<_> = (1..=3).map(|last| (last, false, Some(0.003))).collect();
        let (seen, probability) = scope(&uplink);
        assert!(seen == 3 && probability < 1e-4, "{probability}");
        let unknown: Vec<_> = (1..=3).map(|last| (last, false, None)).collect();
        assert_eq!(scope(&unknown), (0, 1.0), "peers without history");
        let mut many: Vec<_> = (4..=200).map(|last| (last, true, Some(0.03))).collect();
        many.extend((1..=6).map(|last| (last, false, Some(0.03))));
        assert!(scope(&many).1 > 0.3, "six of two hundred are what such histories let expect");
        let short: Vec<_> = (1..=5).map(|last| (last, false, Some(0.03))).collect();
        assert_eq!(scope(&short), (5, 1.0), "five peers with a short history");
        let mut recovered = uplink.clone();
        recovered.extend((1..=3).map(|last| (last, true, Some(0.01))));
        assert_eq!(scope(&recovered), (0, 1.0), "the newest session of a peer counts");
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut scope = Scope::new(Role::Client);
        for at in 0..5000 {
            scope.note(Timestamp::from_secs(at), [192, 0, 2, 1].into(), true, None);
        }
        assert_eq!(scope.sessions.len(), SESSIONS);
    }
}
