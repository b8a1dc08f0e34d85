//! The waiting line of subjects that someone asked for: the newest first, because anyone who asks does not wait long
//! (`PATIENCE` of the engine), and no more look-ups at once below one parent than leave room for others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use smtpwatch_core::policy::published::LookupRequest;

/// Look-ups at once of subjects below one parent: slow name servers of one domain do not hold everyone up. What the
/// configuration names counts, and does not wait for it.
pub const SAME_PARENT: usize = 4;

/// The line. Places are numbers that grow, each given once.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeMap<u64, LookupRequest>,
    parents: HashMap<String, Parent>,
    /// Of every parent that has room for one more look-up, the newest that waits.
    heads: BTreeMap<u64, String>,
}

#[derive(Debug, Default)]
struct Parent {
    waiting: BTreeSet<u64>,
    in_flight: usize,
    /// Its entry in `heads`.
    head: Option<u64>,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether [`Self::newest`] is there.
    pub(super) fn is_ready(&self) -> bool {
        !self.heads.is_empty()
    }

    pub(super) fn push(&mut self, place: u64, subject: LookupRequest) {
        self.change(&subject, |parent| _ = parent.waiting.insert(place));
        self.waiting.insert(place, subject);
    }

    pub(super) fn remove(&mut self, place: u64) {
        if let Some(subject) = self.waiting.remove(&place) {
            self.change(&subject, |parent| _ = parent.waiting.remove(&place));
        }
    }

    /// The newest that may be looked up now; it stays in the line.
    pub(super) fn newest(&self) -> Option<&LookupRequest> {
        let (place, _) = self.heads.last_key_value()?;
        self.waiting.get(place)
    }

    /// Takes the one out that waits longest.
    pub(super) fn pop_oldest(&mut self) -> Option<LookupRequest> {
        let (place, subject) = self.waiting.first_key_value().map(|(place, subject)| (*place, subject.clone()))?;
        self.remove(place);
        Some(subject)
    }

    /// Whether one more may be looked up below the parent of this one.
    pub(super) fn has_room(&self, subject: &LookupRequest) -> bool {
        self.parents.get(parent(subject)).is_none_or(|parent| parent.in_flight < SAME_PARENT)
    }

    /// A look-up began, of one of the line or of another.
    pub(super) fn begun(&mut self, subject: &LookupRequest) {
        self.change(subject, |parent| parent.in_flight += 1);
    }

    /// A look-up that [`Self::begun`] was told of ended.
    pub(super) fn ended(&mut self, subject: &LookupRequest) {
        self.change(subject, |parent| parent.in_flight = parent.in_flight.saturating_sub(1));
    }

    fn change(&mut self, subject: &LookupRequest, change: impl FnOnce(&mut Parent)) {
        let name = parent(subject);
        let parent = self.parents.entry(name.to_owned()).or_default();
        change(parent);
        let head = parent.waiting.last().copied().filter(|_| parent.in_flight < SAME_PARENT);
        if parent.head != head {
            if let Some(before) = std::mem::replace(&mut parent.head, head) {
                self.heads.remove(&before);
            }
            self.heads.extend(head.map(|place| (place, name.to_owned())));
        }
        if parent.waiting.is_empty() && parent.in_flight == 0 {
            self.parents.remove(name);
        }
    }
}

/// The last two labels: about what one owner registers.
fn parent(subject: &LookupRequest) -> &str {
    let (LookupRequest::Domain(name) | LookupRequest::Host(name)) = subject;
    let start = name.rmatch_indices('.').nth(1).map_or(0, |(dot, _)| dot + 1);
    name.get(start..).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> LookupRequest {
        LookupRequest::Host(name.to_owned())
    }

    #[test]
    fn two_labels_are_the_parent() {
        for (name, expected) in [("a.b.c.example", "c.example"), ("c.example", "c.example"), ("example", "example")] {
            assert_eq!(parent(&host(name)), expected);
        }
    }

    #[test]
    fn nothing_is_left_of_those_that_went() {
        let mut line = Line::default();
        for place in 0..10 {
            line.push(place, host(&format!("h{place}.example.net")));
        }
        for _ in 0..SAME_PARENT {
            line.begun(&host("x.example.net"));
        }
        assert!(!line.is_ready() && line.newest().is_none() && !line.has_room(&host("y.example.net")));
        line.ended(&host("x.example.net"));
        assert_eq!(line.newest(), Some(&host("h9.example.net")));
        line.remove(9);
        assert_eq!(line.newest(), Some(&host("h8.example.net")));
        assert_eq!(line.pop_oldest(), Some(host("h0.example.net")));
        while line.pop_oldest().is_some() {}
        for _ in 1..SAME_PARENT {
            line.ended(&host("x.example.net"));
        }
        assert!(line.len() == 0 && line.parents.is_empty() && line.heads.is_empty());
    }
}
