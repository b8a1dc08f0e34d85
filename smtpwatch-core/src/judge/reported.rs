//! A TLS report of a sender against this host's own record (G9). The sender reports that STARTTLS was not offered, and
//! the record shows that it was: a device in between removed the offer. The two records are independent; if this host's
//! record is incomplete, nothing is concluded.
//!
//! Unlike the other rules, [`judge`] compares counts of days, not one session: the importer of reports calls it, not
//! the engine.

use std::net::{IpAddr, SocketAddr};

use super::{Limit, RuleId, severity::severity};
use crate::{
    Finding, Role, Timestamp,
    day::Day,
    finding::{
        Evidence, Expected, ExpectedSource, FlowInfo, Kind, Observed, Outcome, PeerInfo, Provenance, SCHEMA_VERSION,
        StarttlsState,
    },
    offers::Offers,
};

/// TLS reports cover mail between servers, on port 25.
pub const PORT: u16 = 25;

/// What a sender reports about its sessions with this host that failed with `starttls-not-supported`. The texts come
/// from the sender and are quoted in the finding; the caller bounds their length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reported<'a> {
    /// Name of the reporting organization.
    pub organization: &'a str,
    /// Identifier of the report.
    pub id: &'a str,
    /// Begin and end of the time that the report covers.
    pub window: (Timestamp, Timestamp),
    /// Address of the sender.
    pub sender: IpAddr,
    /// Address of this host.
    pub own: IpAddr,
    /// The name of this host that the sender used; empty if the report has none.
    pub host: &'a str,
    /// Number of those sessions.
    pub sessions: u64,
}

/// This host's own record of its sessions with the sender at port [`PORT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnRecord {
    /// First and last day of the record.
    pub days: (Day, Day),
    /// What this host offered on these days.
    pub offers: Offers,
}

/// Result of the comparison.
#[derive(Clone, PartialEq, Debug)]
pub enum Comparison {
    /// The two records contradict each other.
    Stripped(Box<Finding>),
    /// The record agrees: this host did not offer STARTTLS in this number of sessions.
    Agrees(u64),
    /// This number of sessions was recorded with gaps.
    Gaps(u64),
    /// Fewer sessions without use of the offer were recorded than the sender reports.
    TooFew,
}

/// Compares a report with this host's own record of the same days.
#[must_use]
pub fn judge(reported: &Reported<'_>, record: &OwnRecord) -> Comparison {
    let seen = record.offers;
    if seen.unknown > 0 {
        return Comparison::Gaps(seen.unknown);
    }
    if seen.withheld > 0 {
        return Comparison::Agrees(seen.withheld);
    }
    // In sessions without an offer, this host's own server refused EHLO or the client never sent it.
    //
    // A session whose offer was removed in transit is recorded like one that does not use the offer. If fewer such
    // sessions are recorded than reported, the remaining ones are unknown, and so is whether these are the reported
    // ones.
    if seen.offered < seen.sessions || seen.unused < reported.sessions {
        return Comparison::TooFew;
    }
    Comparison::Stripped(Box::new(finding(reported, record)))
}

fn finding(reported: &Reported<'_>, OwnRecord { days: (first, last), offers: seen }: &OwnRecord) -> Finding {
    let Reported { organization, id, window: (start, end), sender, own, host, sessions } = reported;
    let outcome = if seen.content > 0 { Outcome::Content } else { Outcome::Attempt };
    let evidence = Evidence::Tamper;
    let host = if host.is_empty() { String::new() } else { format!(" ({host})") };
    Finding {
        schema_version: SCHEMA_VERSION,
        id: String::new(),
        time: seen.last_unused,
        kind: Kind::StarttlsStripped,
        rule: RuleId::G9.as_str().into(),
        severity: severity(evidence, outcome, &[Limit::TwoRecords]),
        evidence,
        outcome,
        role: Role::Server,
        flow: FlowInfo {
            // The report covers many connections, each with its own client port.
            client: SocketAddr::new(*sender, 0).to_string(),
            server: SocketAddr::new(*own, PORT).to_string(),
            interface: String::new(),
            community_id: String::new(),
        },
        peer: PeerInfo::default(),
        expected: Expected::starttls(
            ExpectedSource::Tlsrpt,
            format!(
                "we offered it to {sender} in {} of {} sessions; {organization} reports {sessions} without",
                seen.offered, seen.sessions
            ),
        ),
        observed: Observed { capabilities: Vec::new(), starttls: StarttlsState::Offered, mechanism: None, reply: None },
        transcript: Vec::new(),
        gaps: 0,
        indicators: vec![
            format!(
                "report {id} of {organization}, {start} to {end}: starttls-not-supported in {sessions} sessions from \
                 {sender} to {own}{host}"
            ),
            format!(
                "own record, {first} to {last}: {} sessions from {sender} to {own}, each seen whole; STARTTLS offered in {}, under \
                 TLS {}, offered and not requested {}, with mail accepted in cleartext {}",
                seen.sessions, seen.offered, seen.tls, seen.unused, seen.content
            ),
        ],
        sender: None,
        provenance: Provenance::default(),
        exhibit: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report about three sessions, against this record.
    fn compare(offers: Offers) -> Comparison {
        let at = Timestamp::from_secs(1_795_400_000);
        let reported = Reported {
            organization: "Company-X",
            id: "735ff",
            window: (at, at),
            sender: "198.51.100.7".parse().expect("address"),
            own: "192.0.2.25".parse().expect("address"),
            host: "",
            sessions: 3,
        };
        judge(&reported, &OwnRecord { days: (Day::of(at), Day::of(at)), offers })
    }

    #[test]
    fn g9_only_a_complete_record_contradicts_a_report() {
        let whole = Offers { sessions: 10, offered: 10, tls: 7, unused: 3, ..Offers::default() };
        let Comparison::Stripped(finding) = compare(whole) else { panic!("a finding") };
        assert!(RuleId::G9.row().allows(&finding), "{finding:?}");
        assert_eq!(compare(Offers { unknown: 1, withheld: 1, ..whole }), Comparison::Gaps(1));
        assert_eq!(compare(Offers { withheld: 2, ..whole }), Comparison::Agrees(2));
        assert_eq!(compare(Offers { offered: 9, ..whole }), Comparison::TooFew);
        assert_eq!(compare(Offers { unused: 2, ..whole }), Comparison::TooFew);
    }
}
