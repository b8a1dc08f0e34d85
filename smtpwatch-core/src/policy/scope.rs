//! How far a symptom reaches: one server, its network, or everybody (THREATS FO-13). The commonest device that takes STARTTLS
//! away is a firewall that somebody owns; the scope says whose to look at first.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use crate::{Timestamp, policy::rule::in_network};

/// Sessions remembered; the oldest makes room.
const SESSIONS: usize = 1024;
/// How long a session speaks for its server.
const WINDOW: Duration = Duration::from_secs(3600);

/// The newest sessions of this host as a client: who offered STARTTLS, and who did not.
#[derive(Debug, Default)]
pub struct Scope {
    sessions: VecDeque<(Timestamp, IpAddr, bool)>,
}

impl Scope {
    /// Notes whether a server offered STARTTLS and granted it where it was asked for.
    pub fn note(&mut self, at: Timestamp, server: IpAddr, granted: bool) {
        if self.sessions.len() >= SESSIONS {
            self.sessions.pop_front();
        }
        self.sessions.push_back((at, server, granted));
    }

    /// The scope of a missing offer at `server`, in words with their numbers.
    #[must_use]
    pub fn of(&self, now: Timestamp, server: IpAddr) -> String {
        // The newest session of each server speaks for it; the session in question is not among them yet.
        let mut newest = BTreeMap::new();
        for (at, address, granted) in &self.sessions {
            if now.since(*at) <= WINDOW {
                newest.insert(*address, *granted);
            }
        }
        newest.insert(server, false);
        let prefix = if server.is_ipv4() { 24 } else { 48 };
        let with = |near: bool, granted: bool| {
            newest
                .iter()
                .filter(|(address, ok)| in_network(**address, server, prefix) == near && **ok == granted)
                .count()
        };
        let (near_without, near_with) = (with(true, false), with(true, true));
        let (far_without, far_with) = (with(false, false), with(false, true));
        let (without, total) = (near_without + far_without, newest.len());
        if total == 1 {
            "scope: no other server was seen in the last hour".to_owned()
        } else if without == total {
            format!(
                "scope: every server seen in the last hour ({total}): look at this host's own uplink and firewall first"
            )
        } else if without == 1 {
            format!("scope: this server alone; {} others grant STARTTLS: look at its side first", near_with + far_with)
        } else if far_without == 0 && near_with == 0 {
            format!(
                "scope: every server of its /{prefix} seen in the last hour ({near_without}), and none of {far_with} others"
            )
        } else {
            format!("scope: {without} of {total} servers seen in the last hour")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(sessions: &[([u8; 4], bool)]) -> String {
        let mut scope = Scope::default();
        for (address, granted) in sessions {
            scope.note(Timestamp::from_secs(0), (*address).into(), *granted);
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
    fn the_memory_is_bounded() {
        let mut scope = Scope::default();
        for at in 0..5000 {
            scope.note(Timestamp::from_secs(at), [192, 0, 2, 1].into(), true);
        }
        assert_eq!(scope.sessions.len(), SESSIONS);
    }
}
