//! Reads the counters of the kernel programs, independently of the thread that reads their records.

use std::collections::BTreeMap;

use aya::maps::{MapData, PerCpuArray};
use smtpwatch_common::{Counter, counters::Label};

use super::{CaptureError, map_error};

/// Handle to the counter map of the kernel programs.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    pub(super) const fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self(map)
    }

    /// All counters since the start, summed over CPUs.
    ///
    /// # Errors
    ///
    /// The kernel does not return a value.
    pub fn read(&self) -> Result<Vec<(Counter, u64)>, CaptureError> {
        Counter::ALL
            .into_iter()
            .map(|counter| {
                let slots = self.0.get(&(counter as u32), 0).map_err(map_error)?;
                Ok((counter, slots.iter().sum()))
            })
            .collect()
    }
}

/// Lost packets by reason; reasons without a loss are left out.
#[must_use]
pub fn losses(counted: &[(Counter, u64)]) -> BTreeMap<String, u64> {
    let lost = counted.iter().filter_map(|(counter, total)| match counter.label() {
        Label::Dropped { reason } if *total > 0 => Some((reason.to_owned(), *total)),
        // Mail in encapsulation belongs to no session that is followed.
        Label::Dropped { .. } | Label::Packets { .. } | Label::Encapsulated(_) => None,
    });
    lost.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_what_was_not_handed_over() {
        let counted = [(Counter::ForwardedIngress, 9), (Counter::RingFull, 2), (Counter::Fragment, 0)];
        assert_eq!(losses(&counted), BTreeMap::from([("ring_full".to_owned(), 2)]));
    }
}
