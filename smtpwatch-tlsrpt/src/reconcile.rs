//! Compares TLS reports of other senders with what this host offered (docs/threats.md G9). It collects the sender's
//! statements about STARTTLS and this host's record of the same days and addresses; [`reported`] compares them.
//! [`reconcile`] is the entry point of `smtpwatch tlsrpt import`.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use smtpwatch_core::{
    Finding,
    day::Day,
    engine::ResultType,
    judge::reported::{self, Comparison, OwnRecord, PORT, Reported},
    offers::Offers,
};

use super::report::{DateRange, Report, Word};

/// Maximum number of quoted characters from a foreign report.
const QUOTED: usize = 200;

/// A sender's statement about its sessions between two addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The sender's address as reported; empty if the report has none.
    pub sending: String,
    /// This host's address as reported; empty if the report has none.
    pub receiving: String,
    /// The name of this host that the sender used; empty if the report has none.
    pub host: String,
    /// Number of sessions that failed with `starttls-not-supported`.
    pub sessions: u64,
}

/// The result of comparing a claim with the record.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// The two records contradict each other: a finding.
    Stripped(Box<Finding>),
    /// The record agrees: this host did not offer STARTTLS in this number of sessions.
    Agrees(u64),
    /// The record is inconclusive.
    Unknown(Unknown),
}

/// Why the record is inconclusive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// The report has no address of the sender.
    NoSender,
    /// The report has no address of this host: it may mean another mail host of the domain.
    NoReceiver,
    /// No session of the sender was recorded.
    NotSeen,
    /// The sender's sessions were with other addresses of this host.
    OtherAddress(Vec<IpAddr>),
    /// This number of sessions was recorded with gaps.
    Gaps(u64),
    /// The sender reports more failed sessions than were recorded with an unused offer.
    TooFew(Offers),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSender => f.write_str("the report does not contain the sender's address"),
            Self::NoReceiver => f.write_str("the report does not contain the address of this host"),
            Self::NotSeen => f.write_str(
                "no session from the sender is recorded in that period: it is behind NAT, mail took another path, or smtpwatch \
                 was not running",
            ),
            Self::OtherAddress(own) => {
                let own: Vec<_> = own.iter().map(ToString::to_string).collect();
                write!(f, "it is recorded with other addresses of this host: {}", own.join(", "))
            }
            Self::Gaps(sessions) => write!(f, "the own record has gaps in {sessions} sessions"),
            Self::TooFew(seen) => write!(
                f,
                "{} sessions are recorded, {} of them with an offer that was not used: fewer than reported",
                seen.sessions, seen.unused
            ),
        }
    }
}

/// Compares a report with the record. `record` returns the offers to one client on one day at one port, for each
/// address of this host.
///
/// # Errors
///
/// The error of `record`.
pub fn reconcile<E>(
    report: &Report,
    mut record: impl FnMut(IpAddr, u16, Day) -> Result<Vec<(IpAddr, Offers)>, E>,
) -> Result<Vec<(Claim, Verdict)>, E> {
    let days = Days::of(report.date_range);
    let judge = |claim: Claim| {
        let verdict = judge(report, &claim, days, &mut record)?;
        Ok((claim, verdict))
    };
    claims(report).map(judge).collect()
}

/// The UTC days that the report's window overlaps.
#[derive(Clone, Copy)]
struct Days {
    first: Day,
    last: Day,
}

impl Days {
    fn of(DateRange { start_datetime: start, end_datetime: end }: DateRange) -> Self {
        // A window that ends at midnight does not include the day that begins there.
        let last = smtpwatch_core::Timestamp(end.0.saturating_sub(1)).max(start);
        Self { first: Day::of(start), last: Day::of(last) }
    }

    fn each(self) -> impl Iterator<Item = Day> {
        std::iter::successors(Some(self.first), |day| Some(day.plus(1))).take_while(move |day| *day <= self.last)
    }
}

/// The report's claims about servers without STARTTLS, by address pair.
fn claims(report: &Report) -> impl Iterator<Item = Claim> {
    let details = report.policies.iter().flat_map(|policy| &policy.failure_details);
    let missing = details.filter(|details| {
        details.failed_session_count > 0 && details.result_type == Word::Known(ResultType::StarttlsNotSupported)
    });
    let mut claims: BTreeMap<(String, String), Claim> = BTreeMap::new();
    for details in missing {
        let key = (normal(&details.sending_mta_ip), normal(&details.receiving_ip));
        let claim = claims.entry(key.clone()).or_insert_with(|| Claim {
            sending: key.0,
            receiving: key.1,
            host: quoted(&details.receiving_mx_hostname),
            sessions: 0,
        });
        claim.sessions = claim.sessions.saturating_add(details.failed_session_count);
    }
    claims.into_values()
}

fn judge<E>(
    report: &Report,
    claim: &Claim,
    days: Days,
    record: &mut impl FnMut(IpAddr, u16, Day) -> Result<Vec<(IpAddr, Offers)>, E>,
) -> Result<Verdict, E> {
    let Ok(sender) = claim.sending.parse::<IpAddr>() else { return Ok(Verdict::Unknown(Unknown::NoSender)) };
    let Ok(receiver) = claim.receiving.parse::<IpAddr>() else { return Ok(Verdict::Unknown(Unknown::NoReceiver)) };
    let mut by_own: BTreeMap<IpAddr, Offers> = BTreeMap::new();
    for day in days.each() {
        for (own, offers) in record(sender, PORT, day)? {
            let sum = by_own.entry(own).or_default();
            *sum = sum.and(offers);
        }
    }
    if by_own.is_empty() {
        return Ok(Verdict::Unknown(Unknown::NotSeen));
    }
    let Some(seen) = by_own.get(&receiver).copied() else {
        return Ok(Verdict::Unknown(Unknown::OtherAddress(by_own.into_keys().collect())));
    };
    let DateRange { start_datetime: start, end_datetime: end } = report.date_range;
    let reported = Reported {
        organization: &quoted(&report.organization_name),
        id: &quoted(&report.report_id),
        window: (start, end),
        sender,
        own: receiver,
        host: &claim.host,
        sessions: claim.sessions,
    };
    let own = OwnRecord { days: (days.first, days.last), offers: seen };
    Ok(match reported::judge(&reported, &own) {
        Comparison::Stripped(finding) => Verdict::Stripped(finding),
        Comparison::Agrees(sessions) => Verdict::Agrees(sessions),
        Comparison::Gaps(sessions) => Verdict::Unknown(Unknown::Gaps(sessions)),
        Comparison::TooFew => Verdict::Unknown(Unknown::TooFew(seen)),
    })
}

/// Normalises an address. Accepts an address literal (RFC 5321 §4.1.3) or an address with a port, as some senders write
/// it; other text is returned unchanged, but shortened.
fn normal(address: &str) -> String {
    let text = address.trim();
    let literal = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let literal = match literal.split_at_checked(5) {
        Some((tag, rest)) if tag.eq_ignore_ascii_case("IPv6:") => rest,
        _ => literal,
    };
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let found = literal.parse::<IpAddr>().ok().or_else(with_port);
    found.map_or_else(|| quoted(address), |address| address.to_canonical().to_string())
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use smtpwatch_core::{
        Role, Timestamp,
        finding::{Evidence, Kind, Outcome, Severity},
    };

    use super::*;

    const SENDER: &str = "198.51.100.7";
    const OWN: &str = "192.0.2.25";

    #[test]
    fn addresses_are_read_in_the_forms_that_senders_write() {
        for (given, read) in [
            ("192.0.2.1", "192.0.2.1"),
            (" [192.0.2.1] ", "192.0.2.1"),
            ("192.0.2.1:25", "192.0.2.1"),
            ("[IPv6:2001:DB8::1]", "2001:db8::1"),
            ("ipv6:2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:25", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("mx.example.org", "mx.example.org"),
            ("", ""),
        ] {
            assert_eq!(normal(given), read, "{given:?}");
        }
    }

    fn report(sending: &str, receiving: &str, sessions: u64) -> Report {
        let json = format!(
            r#"{{"organization-name":"Company-X","report-id":"735ff","contact-info":"x@company-x.example",
            "date-range":{{"start-datetime":"2026-11-23T00:00:00Z","end-datetime":"2026-11-24T00:00:00Z"}},
            "policies":[{{"policy":{{"policy-type":"sts","policy-domain":"example.org"}},"failure-details":[
              {{"result-type":"starttls-not-supported","sending-mta-ip":"{sending}","receiving-ip":"{receiving}",
                "receiving-mx-hostname":"mx1.example.org","failed-session-count":{sessions}}},
              {{"result-type":"certificate-expired","sending-mta-ip":"{sending}","failed-session-count":9}}]}}]}}"#
        );
        Report::parse(json.as_bytes(), Timestamp::from_secs(1_795_500_000)).expect("a report")
    }

    fn seen(sessions: u64, unused: u64) -> Offers {
        Offers {
            sessions,
            offered: sessions,
            tls: sessions - unused,
            unused,
            last_unused: Timestamp::from_secs(1_795_400_000),
            ..Offers::default()
        }
    }

    fn verdict(report: &Report, offers: Offers) -> Verdict {
        let record = |client: IpAddr, port, day: Day| {
            let known = client.to_string() == SENDER && port == 25 && day.to_string() == "2026-11-23";
            Ok::<_, std::convert::Infallible>(if known {
                vec![(OWN.parse().expect("own"), offers)]
            } else {
                Vec::new()
            })
        };
        let Ok(mut found) = reconcile(report, record);
        assert_eq!(found.len(), 1, "one claim");
        found.remove(0).1
    }

    #[test]
    fn two_records_that_contradict_each_other_are_a_finding_with_both() {
        let Verdict::Stripped(finding) = verdict(&report(SENDER, OWN, 3), seen(10, 3)) else { panic!("a finding") };
        assert_eq!((finding.kind, &*finding.rule, finding.role), (Kind::StarttlsStripped, "G9", Role::Server));
        assert_eq!((finding.evidence, finding.outcome), (Evidence::Tamper, Outcome::Attempt));
        assert_eq!((finding.severity, &*finding.expected.source), (Severity::High, "tlsrpt"));
        assert_eq!((finding.flow.client.as_str(), finding.flow.server.as_str()), ("198.51.100.7:0", "192.0.2.25:25"));
        let [theirs, ours] = &finding.indicators[..] else { panic!("{:?}", finding.indicators) };
        for part in ["735ff", "Company-X", "in 3 sessions from 198.51.100.7 to 192.0.2.25 (mx1.example.org)"] {
            assert!(theirs.contains(part), "{theirs} lacks {part}");
        }
        assert!(ours.contains("10 sessions") && ours.contains("offered in 10") && ours.contains("not requested 3"));
        let content = Offers { content: 1, ..seen(10, 3) };
        let Verdict::Stripped(finding) = verdict(&report(SENDER, OWN, 3), content) else { panic!("a finding") };
        assert_eq!((finding.outcome, finding.severity), (Outcome::Content, Severity::Critical));
        assert!(matches!(verdict(&report("::ffff:198.51.100.7", OWN, 3), seen(10, 3)), Verdict::Stripped(_)));
    }

    #[test]
    fn an_incomplete_record_raises_nothing() {
        // In some sessions EHLO was refused: the sender saw no offer there and may report that.
        let refused = Offers { offered: 8, ..seen(11, 8) };
        assert!(matches!(verdict(&report(SENDER, OWN, 3), refused), Verdict::Unknown(_)));
        let claim = report(SENDER, OWN, 3);
        let gaps = Offers { unknown: 1, ..seen(10, 9) };
        assert_eq!(verdict(&claim, gaps), Verdict::Unknown(Unknown::Gaps(1)));
        let withheld = Offers { withheld: 2, offered: 8, ..seen(10, 3) };
        assert_eq!(verdict(&claim, withheld), Verdict::Agrees(2));
        for few in [seen(10, 2), seen(10, 0), Offers::default()] {
            assert_eq!(verdict(&claim, few), Verdict::Unknown(Unknown::TooFew(few)));
        }
        assert_eq!(claims(&report(SENDER, OWN, 0)).count(), 0, "no session is no claim");
        assert_eq!(verdict(&report("10.0.0.1", OWN, 3), seen(10, 9)), Verdict::Unknown(Unknown::NotSeen));
        let other = verdict(&report(SENDER, "192.0.2.26", 3), seen(10, 9));
        assert_eq!(other, Verdict::Unknown(Unknown::OtherAddress(vec![OWN.parse().expect("own")])));
        for unknown in ["", "mail.example.org", "0"] {
            assert_eq!(verdict(&report(unknown, OWN, 3), seen(10, 9)), Verdict::Unknown(Unknown::NoSender));
            assert_eq!(verdict(&report(SENDER, unknown, 3), seen(10, 9)), Verdict::Unknown(Unknown::NoReceiver));
        }
    }

    #[test]
    fn sessions_of_one_pair_of_addresses_are_one_claim() {
        let mut report = report(SENDER, OWN, u64::MAX);
        let more = report.policies[0].failure_details[0].clone();
        report.policies[0].failure_details.push(more);
        let claims: Vec<_> = claims(&report).collect();
        assert_eq!((claims.len(), claims[0].sessions), (1, u64::MAX));
    }

    #[test]
    fn a_window_is_the_days_that_it_touches() {
        let days = |start: &str, end: &str| {
            let at = |text: &str| Timestamp::from_secs(text.parse::<jiff::Timestamp>().expect(text).as_second());
            let range = DateRange { start_datetime: at(start), end_datetime: at(end) };
            Days::of(range).each().map(|day| day.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(days("2026-11-23T00:00:00Z", "2026-11-23T23:59:59Z"), ["2026-11-23"]);
        assert_eq!(days("2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"), ["2026-11-23"]);
        assert_eq!(days("2026-11-23T08:00:00Z", "2026-11-24T08:00:00Z"), ["2026-11-23", "2026-11-24"]);
        assert_eq!(days("2026-11-23T08:00:00Z", "2026-11-23T08:00:00Z"), ["2026-11-23"]);
    }
}
