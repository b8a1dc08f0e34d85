//! How many open connections each peer has (THREATS EV-24).

use std::net::IpAddr;

use crate::{hash::HashMap, limits::PEER_SHARE};

/// Open connections by peer. One that has not shaken hands is none: its sender may be forged.
#[derive(Debug)]
pub(super) struct Quota {
    each: u32,
    open: HashMap<IpAddr, u32>,
}

impl Quota {
    /// Each peer may have its share of a table of `flows`.
    pub fn new(flows: usize) -> Self {
        Self { each: u32::try_from(flows / PEER_SHARE).unwrap_or(u32::MAX).max(1), open: HashMap::default() }
    }

    /// Counts one more; false, and nothing is counted, where the peer has all it may have.
    pub fn take(&mut self, peer: IpAddr) -> bool {
        let open = self.open.entry(peer).or_default();
        let granted = *open < self.each;
        *open += u32::from(granted);
        granted
    }

    /// Counts one less.
    pub fn give_back(&mut self, peer: IpAddr) {
        if let Some(open) = self.open.get_mut(&peer) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.open.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_and_gets_it_back() {
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut quota = Quota::new(8 * PEER_SHARE);
        assert!((0..8).all(|_| quota.take(one)));
        assert!(!quota.take(one) && quota.take(other));
        quota.give_back(one);
        assert!(quota.take(one));
        quota.give_back(other);
        assert!(!quota.open.contains_key(&other));
    }
}
