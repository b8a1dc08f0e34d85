//! Intrusive LRU lists over slab indices; every change is O(1). [`LruList`] is one list; [`LruLists`] are several
//! that share their links.
//!
//! The timers of flows, the history and the published policies use them to find the next entry without a search. No
//! deferred clean-up delays packets.

/// LRU list of slab indices, from the oldest to the youngest. Costs eight bytes per index.
#[derive(Debug, Default)]
pub(crate) struct LruList(LruLists<1>);

impl LruList {
    /// Moves an index to the young end, or inserts it there. Indices are below 2^32 - 1.
    pub(crate) fn touch(&mut self, place: usize) {
        self.0.unlink(0, place);
        self.0.push_back(0, place);
    }

    /// Removes an index if it is in the list.
    pub(crate) fn unlink(&mut self, place: usize) {
        self.0.unlink(0, place);
    }

    pub(crate) fn oldest(&self) -> Option<usize> {
        self.0.oldest(0)
    }
}

/// Several LRU lists; each index is in at most one, and the caller remembers in which. They share eight bytes per
/// index.
#[derive(Debug)]
pub(crate) struct LruLists<const LISTS: usize> {
    places: Vec<Links>,
    /// Sentinel of each list: `younger` is the oldest index, `older` is the youngest.
    ends: [Links; LISTS],
}

impl<const LISTS: usize> Default for LruLists<LISTS> {
    fn default() -> Self {
        Self { places: Vec::new(), ends: [Links::default(); LISTS] }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Links {
    older: Link,
    younger: Link,
}

/// An index, or `u32::MAX` for none (the sentinel).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link(u32);

impl Default for Link {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Link {
    fn at(place: usize) -> Self {
        Self(u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn place(self) -> Option<usize> {
        (self != Self::default()).then_some(self.0 as usize)
    }
}

impl<const LISTS: usize> LruLists<LISTS> {
    /// Appends an index that is in none of the lists to the young end of one. Indices are below 2^32 - 1.
    pub(crate) fn push_back(&mut self, list: usize, place: usize) {
        let youngest = self.ends[list].older;
        *self.of(list, Link::at(place)) = Links { older: youngest, younger: Link::default() };
        self.of(list, youngest).younger = Link::at(place);
        self.ends[list].older = Link::at(place);
    }

    /// Inserts an index that is in none of the lists at the old end of one.
    pub(crate) fn push_front(&mut self, list: usize, place: usize) {
        let oldest = self.ends[list].younger;
        *self.of(list, Link::at(place)) = Links { older: Link::default(), younger: oldest };
        self.of(list, oldest).older = Link::at(place);
        self.ends[list].younger = Link::at(place);
    }

    /// Removes an index from its list, if it is there.
    pub(crate) fn unlink(&mut self, list: usize, place: usize) {
        if place >= self.places.len() {
            self.places.resize(place + 1, Links::default());
        }
        let own = std::mem::take(&mut self.places[place]);
        // An index without neighbours is the only one in the list, or not in it.
        if own == Links::default() && self.ends[list].younger != Link::at(place) {
            return;
        }
        self.of(list, own.older).younger = own.younger;
        self.of(list, own.younger).older = own.older;
    }

    pub(crate) fn oldest(&self, list: usize) -> Option<usize> {
        self.ends[list].younger.place()
    }

    /// The indices of one list, from the oldest to the youngest.
    pub(crate) fn iter(&self, list: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.oldest(list), |place| self.places.get(*place)?.younger.place())
    }

    fn of(&mut self, list: usize, neighbour: Link) -> &mut Links {
        match neighbour.place() {
            Some(place) => {
                if place >= self.places.len() {
                    self.places.resize(place + 1, Links::default());
                }
                &mut self.places[place]
            }
            None => &mut self.ends[list],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn in_order(mut orders: LruLists<2>, list: usize) -> Vec<usize> {
        let next = |orders: &mut LruLists<2>| orders.oldest(list).inspect(|place| orders.unlink(list, *place));
        std::iter::from_fn(|| next(&mut orders)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_is_the_order_of_a_list(steps in proptest::collection::vec((0..3, 0..2_usize, 0..8_usize), 0..60)) {
            let (mut orders, mut lists) = (LruLists::<2>::default(), [VecDeque::new(), VecDeque::new()]);
            for (step, list, place) in steps {
                for (one, known) in lists.iter_mut().enumerate() {
                    if known.contains(&place) {
                        orders.unlink(one, place);
                        known.retain(|other| *other != place);
                    }
                }
                match step {
                    0 => {
                        orders.push_back(list, place);
                        lists[list].push_back(place);
                    }
                    1 => {
                        orders.push_front(list, place);
                        lists[list].push_front(place);
                    }
                    _ => orders.unlink(list, place),
                }
                for (one, known) in lists.iter().enumerate() {
                    prop_assert_eq!(orders.oldest(one), known.front().copied());
                }
            }
            let [first, second] = lists.map(Vec::from);
            // Emptying one list leaves the other unchanged.
            prop_assert_eq!(orders.oldest(1), second.first().copied());
            prop_assert_eq!(in_order(orders, 0), first);
        }
    }
}
