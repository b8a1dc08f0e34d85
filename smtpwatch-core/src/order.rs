//! Who came last, among many: everything in it is done at once, however many there are. Whoever makes room is found without a
//! search, and nothing is left behind that had to be cleared away later, in one go, while packets wait.

/// An order of places, from the oldest to the youngest. Eight octets for each place.
#[derive(Debug, Default)]
pub(crate) struct Order {
    places: Vec<Neighbours>,
    /// The oldest is the younger neighbour of nobody, the youngest the older one.
    nobody: Neighbours,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Neighbours {
    older: Neighbour,
    younger: Neighbour,
}

/// A place, or nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Neighbour(u32);

impl Default for Neighbour {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Neighbour {
    fn at(place: usize) -> Self {
        Self(u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn place(self) -> Option<usize> {
        (self != Self::default()).then_some(self.0 as usize)
    }
}

impl Order {
    /// Puts a place at the young end, wherever it stood before. Places are below 2^32 - 1.
    pub(crate) fn renew(&mut self, place: usize) {
        self.take_out(place);
        let youngest = self.nobody.older;
        *self.of(Neighbour::at(place)) = Neighbours { older: youngest, younger: Neighbour::default() };
        self.of(youngest).younger = Neighbour::at(place);
        self.nobody.older = Neighbour::at(place);
    }

    /// Puts a place at the old end, wherever it stood before.
    pub(crate) fn put_last(&mut self, place: usize) {
        self.take_out(place);
        let oldest = self.nobody.younger;
        *self.of(Neighbour::at(place)) = Neighbours { older: Neighbour::default(), younger: oldest };
        self.of(oldest).older = Neighbour::at(place);
        self.nobody.younger = Neighbour::at(place);
    }

    /// Takes a place out, if it is there.
    pub(crate) fn take_out(&mut self, place: usize) {
        if place >= self.places.len() {
            self.places.resize(place + 1, Neighbours::default());
        }
        let own = std::mem::take(&mut self.places[place]);
        // Without neighbours it is the only one, or not there.
        if own == Neighbours::default() && self.nobody.younger != Neighbour::at(place) {
            return;
        }
        self.of(own.older).younger = own.younger;
        self.of(own.younger).older = own.older;
    }

    pub(crate) fn oldest(&self) -> Option<usize> {
        self.nobody.younger.place()
    }

    fn of(&mut self, neighbour: Neighbour) -> &mut Neighbours {
        match neighbour.place() {
            Some(place) => &mut self.places[place],
            None => &mut self.nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn in_order(mut order: Order) -> Vec<usize> {
        let next = |order: &mut Order| order.oldest().inspect(|place| order.take_out(*place));
        std::iter::from_fn(|| next(&mut order)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_the_order_of_a_list(steps in proptest::collection::vec((0..3, 0..8_usize), 0..60)) {
            let (mut order, mut list) = (Order::default(), VecDeque::new());
            for (step, place) in steps {
                list.retain(|other| *other != place);
                match step {
                    0 => {
                        order.renew(place);
                        list.push_back(place);
                    }
                    1 => {
                        order.put_last(place);
                        list.push_front(place);
                    }
                    _ => order.take_out(place),
                }
                prop_assert_eq!(order.oldest(), list.front().copied());
            }
            prop_assert_eq!(in_order(order), Vec::from(list));
        }
    }
}
