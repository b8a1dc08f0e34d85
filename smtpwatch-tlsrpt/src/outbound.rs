//! Builds this host's report about a policy domain and day from the counts in the store. [`Reporter`] is the reporting
//! organization; the sender thread and `smtpwatch tlsrpt report` call it.

use std::fmt::Write as _;

use sha1::{Digest, Sha1};
use smtpwatch_config::TlsrptSettings;
use smtpwatch_core::{
    day::Day,
    engine::{PolicyType, ResultType},
};
use smtpwatch_store::deliveries::{Failure, PolicySessions};

use super::report::{DateRange, FailureDetails, Policy, PolicyReport, Report, Summary, Word};

/// The reporting organization.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reporter {
    /// Its name.
    pub organization: String,
    /// Mail address for questions.
    pub contact: String,
    /// The domain of that address: the submitter (RFC 8460 §5.3).
    pub submitter: String,
    /// This host: distinguishes the reports of several hosts of one organisation.
    pub host: String,
}

impl Reporter {
    /// Taken from the configuration, with defaults from the name of this host.
    #[must_use]
    pub fn new(settings: &TlsrptSettings, host: &str) -> Self {
        let contact = settings.contact.clone().unwrap_or_else(|| format!("postmaster@{host}"));
        Self {
            organization: settings.organization.clone().unwrap_or_else(|| host.to_owned()),
            submitter: contact.rsplit_once('@').map_or(host, |(_, domain)| domain).to_ascii_lowercase(),
            contact,
            host: host.to_owned(),
        }
    }

    /// The report about one domain and day.
    #[must_use]
    pub fn report(&self, day: Day, domain: &str, sessions: Vec<PolicySessions>) -> Report {
        Report {
            organization_name: self.organization.clone(),
            date_range: DateRange { start_datetime: day.begin(), end_datetime: day.end() },
            contact_info: self.contact.clone(),
            report_id: format!("{}@{}", self.unique_id(day, domain), self.submitter),
            policies: sessions.into_iter().map(|sessions| policy_report(domain, sessions)).collect(),
        }
    }

    /// Names the report, in letters and digits (RFC 8460 §5.1). The same report keeps its name when it is created
    /// again, after a restart or for another attempt, so that the receiver can detect the duplicate.
    #[must_use]
    pub fn unique_id(&self, day: Day, domain: &str) -> String {
        self.digest(day, domain).iter().take(10).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// A pseudo-random number that is constant for this report; it spreads the sending times.
    #[must_use]
    pub fn lot(&self, day: Day, domain: &str) -> u64 {
        let digest = self.digest(day, domain);
        digest.iter().rev().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn digest(&self, day: Day, domain: &str) -> [u8; 20] {
        let day = day.to_string();
        let mut hash = Sha1::new();
        for part in [&self.organization, &self.contact, &self.host, &day, domain] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.finalize().into()
    }
}

/// The name of this host according to the system.
#[must_use]
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}

fn policy_report(domain: &str, sessions: PolicySessions) -> PolicyReport {
    PolicyReport {
        policy: Policy {
            policy_type: Word::Known(sessions.policy.kind),
            policy_string: match sessions.policy.kind {
                PolicyType::Tlsa | PolicyType::Sts => sessions.policy.strings,
                PolicyType::NoPolicyFound => Vec::new(),
            },
            // Receivers reject reports without the policy domain.
            policy_domain: domain.to_owned(),
            mx_host: sessions.policy.mx_hosts,
        },
        summary: Summary {
            total_successful_session_count: sessions.successful,
            total_failure_session_count: sessions.failed,
        },
        failure_details: sessions.failures.into_iter().map(failure_details).collect(),
    }
}

fn failure_details((failure, sessions): (Failure, u64)) -> FailureDetails {
    FailureDetails {
        result_type: Word::Known::<ResultType>(failure.result),
        sending_mta_ip: failure.sending.to_string(),
        receiving_mx_hostname: failure.receiving_host,
        receiving_mx_helo: failure.receiving_helo,
        receiving_ip: failure.receiving.to_string(),
        failed_session_count: sessions,
        additional_information: String::new(),
        failure_reason_code: failure.reason.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_one_name_and_each_host_its_own() {
        let settings = TlsrptSettings { contact: Some("tlsrpt@Example.org".to_owned()), ..TlsrptSettings::default() };
        let reporter = Reporter::new(&settings, "mail1");
        let day = "2026-11-23".parse().expect("a day");
        let report = reporter.report(day, "example.net", Vec::new());
        assert_eq!(report, reporter.report(day, "example.net", Vec::new()));
        assert_eq!((reporter.organization.as_str(), reporter.submitter.as_str()), ("mail1", "example.org"));
        assert!(report.report_id.ends_with("@example.org"), "{}", report.report_id);
        let others = [
            reporter.unique_id(day, "example.com"),
            reporter.unique_id(day.plus(1), "example.net"),
            Reporter::new(&settings, "mail2").unique_id(day, "example.net"),
        ];
        let own = reporter.unique_id(day, "example.net");
        assert!(own.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !others.contains(&own));
        assert_eq!(
            Reporter::new(&TlsrptSettings::default(), "mail1.example.org").contact,
            "postmaster@mail1.example.org"
        );
    }
}
