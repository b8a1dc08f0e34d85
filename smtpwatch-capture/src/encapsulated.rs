//! Reports mail in an encapsulation that passes a watched interface although no watched interface shows the inner
//! packets, with the remedy. The kernel programs find it ([`smtpwatch_common::encapsulation`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData, MapError};
use smtpwatch_common::Encapsulation;

use super::{
    CaptureError,
    interfaces::{self, Interface},
    map_error,
};

/// How long mail in an encapsulation is reported after its last packet, as in the alert rules.
const RECENT: Duration = Duration::from_secs(900);
/// Maximum number of interfaces and encapsulations that are remembered; beyond it the log is silent, and the counters
/// alone show the packets.
const MAX_HIDDEN: usize = 4_096;

/// Mail in encapsulation, by interface.
pub(crate) struct Hidden {
    /// Map of the kernel programs: bits of encapsulations by interface index.
    noted: HashMap<MapData, u32, u32>,
    found: BTreeMap<(u32, Encapsulation), Report>,
}

struct Report {
    line: String,
    at: Instant,
}

impl Hidden {
    pub(crate) const fn new(noted: HashMap<MapData, u32, u32>) -> Self {
        Self { noted, found: BTreeMap::new() }
    }

    /// Reads what the kernel programs have noted since the last call. Logs one line for each interface and
    /// encapsulation, once. Returns the lines of those with mail in the last 15 minutes.
    pub(crate) fn read(&mut self, watched: &BTreeSet<u32>) -> Result<Vec<String>, CaptureError> {
        let noted: Vec<(u32, u32)> = self.noted.iter().collect::<Result<_, _>>().map_err(map_error)?;
        for (index, bits) in noted {
            match self.noted.remove(&index) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error(error)),
            }
            for encapsulation in Encapsulation::ALL.into_iter().filter(|one| one.bit() & bits != 0) {
                self.note(index, encapsulation, watched);
            }
        }
        let recent = self.found.values().filter(|report| report.at.elapsed() < RECENT);
        Ok(recent.map(|report| report.line.clone()).collect())
    }

    fn note(&mut self, index: u32, encapsulation: Encapsulation, watched: &BTreeSet<u32>) {
        let at = Instant::now();
        if let Some(report) = self.found.get_mut(&(index, encapsulation)) {
            report.at = at;
        } else if self.found.len() < MAX_HIDDEN {
            let line = describe(index, encapsulation, watched)
                .unwrap_or_else(|error| format!("{} on interface {index}: {error}", encapsulation.name()));
            tracing::warn!("{line}");
            self.found.insert((index, encapsulation), Report { line, at });
        }
    }
}

fn describe(index: u32, encapsulation: Encapsulation, watched: &BTreeSet<u32>) -> io::Result<String> {
    let all = interfaces::all()?;
    let name = all.get(&index).map_or_else(|| format!("interface {index}"), |interface| interface.name.clone());
    let inner: Vec<Interface> = interfaces::ends(encapsulation)?;
    Ok(format!(
        "mail in {} passes {name}, and is not checked: {}",
        encapsulation.name(),
        remedy(&inner.iter().map(|end| (end.name.as_str(), watched.contains(&end.index))).collect::<Vec<_>>())
    ))
}

/// What to do, by the interfaces of this namespace at which such an encapsulation ends, and whether they are watched.
fn remedy(ends: &[(&str, bool)]) -> String {
    let unwatched: Vec<&str> = ends.iter().filter(|(_, watched)| !watched).map(|(name, _)| *name).collect();
    match (unwatched.as_slice(), ends) {
        ([], []) => "it ends on no interface here; run smtpwatch where it ends (another host, network namespace, or \
                     container)"
            .to_owned(),
        ([], [..]) => format!(
            "the inner interface {} is watched and does not show this mail; run smtpwatch where this encapsulation ends",
            ends.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        ),
        ([name], _) => format!("watch the inner interface {name} (add it to `interfaces`)"),
        (names, _) => format!("watch the inner interfaces {} (add them to `interfaces`)", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_the_inner_interface_that_is_not_watched() {
        assert_eq!(remedy(&[("vxlan0", false)]), "watch the inner interface vxlan0 (add it to `interfaces`)");
        assert_eq!(
            remedy(&[("gre1", false), ("gre2", true), ("gre3", false)]),
            "watch the inner interfaces gre1, gre3 (add them to `interfaces`)"
        );
        assert!(remedy(&[("vxlan0", true)]).starts_with("the inner interface vxlan0 is watched"));
        assert!(remedy(&[]).starts_with("it ends on no interface here; run smtpwatch where it ends"));
    }
}
