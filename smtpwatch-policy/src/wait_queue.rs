//! Queue of subjects that wait for a look-up: the newest first, because a session waits only briefly for its result
//! (`LOOKUP_TIMEOUT` of the engine), and with a bound of concurrent look-ups below one parent domain, which leaves
//! capacity for others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use smtpwatch_core::policy::published::LookupRequest;

/// Maximum number of concurrent look-ups below one parent: slow name servers of one domain do not block the others.
/// Look-ups of configured domains count, but do not wait for it.
pub const SAME_PARENT: usize = 4;

/// The queue. Positions are increasing numbers, each used once.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    waiting: BTreeMap<u64, LookupRequest>,
    parents: HashMap<String, Parent>,
    /// For each parent with capacity for another look-up, the position of its newest waiting subject.
    heads: BTreeMap<u64, String>,
}

#[derive(Debug, Default)]
struct Parent {
    waiting: BTreeSet<u64>,
    in_flight: usize,
    /// Position of its entry in `heads`.
    head: Option<u64>,
}

impl WaitQueue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether [`Self::newest`] returns a subject.
    pub(super) fn is_ready(&self) -> bool {
        !self.heads.is_empty()
    }

    pub(super) fn push(&mut self, position: u64, subject: LookupRequest) {
        self.change(&subject, |parent| _ = parent.waiting.insert(position));
        self.waiting.insert(position, subject);
    }

    pub(super) fn remove(&mut self, position: u64) {
        if let Some(subject) = self.waiting.remove(&position) {
            self.change(&subject, |parent| _ = parent.waiting.remove(&position));
        }
    }

    /// The newest subject that may be looked up; it stays in the queue.
    pub(super) fn newest(&self) -> Option<&LookupRequest> {
        let (position, _) = self.heads.last_key_value()?;
        self.waiting.get(position)
    }

    /// Removes the subject that has waited longest.
    pub(super) fn pop_oldest(&mut self) -> Option<LookupRequest> {
        let (position, subject) =
            self.waiting.first_key_value().map(|(position, subject)| (*position, subject.clone()))?;
        self.remove(position);
        Some(subject)
    }

    /// Whether another look-up below the parent of this subject is allowed.
    pub(super) fn has_room(&self, subject: &LookupRequest) -> bool {
        self.parents.get(parent(subject)).is_none_or(|parent| parent.in_flight < SAME_PARENT)
    }

    /// Records the start of a look-up, of a subject from the queue or of another one.
    pub(super) fn started(&mut self, subject: &LookupRequest) {
        self.change(subject, |parent| parent.in_flight += 1);
    }

    /// Records the end of a look-up that was passed to [`Self::started`].
    pub(super) fn finished(&mut self, subject: &LookupRequest) {
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
            self.heads.extend(head.map(|position| (position, name.to_owned())));
        }
        if parent.waiting.is_empty() && parent.in_flight == 0 {
            self.parents.remove(name);
        }
    }
}

/// The last two labels: approximately the registered domain.
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
        let mut queue = WaitQueue::default();
        for position in 0..10 {
            queue.push(position, host(&format!("h{position}.example.net")));
        }
        for _ in 0..SAME_PARENT {
            queue.started(&host("x.example.net"));
        }
        assert!(!queue.is_ready() && queue.newest().is_none() && !queue.has_room(&host("y.example.net")));
        queue.finished(&host("x.example.net"));
        assert_eq!(queue.newest(), Some(&host("h9.example.net")));
        queue.remove(9);
        assert_eq!(queue.newest(), Some(&host("h8.example.net")));
        assert_eq!(queue.pop_oldest(), Some(host("h0.example.net")));
        while queue.pop_oldest().is_some() {}
        for _ in 1..SAME_PARENT {
            queue.finished(&host("x.example.net"));
        }
        assert!(queue.len() == 0 && queue.parents.is_empty() && queue.heads.is_empty());
    }
}
