//! A report as a message (RFC 8460 §5.3), passed to the local mail server, which signs (DKIM) and delivers it. The
//! sender builds a [`Letter`] for each `mailto` target.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{
        MultiPart, SinglePart,
        header::{ContentDisposition, ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::extension::ClientId,
};
use smtpwatch_core::Timestamp;

use super::{file::Packed, outbound::Reporter};

/// Timeout of each SMTP command at the local mail server.
const TIME: Duration = Duration::from_secs(30);

/// Why a report was not accepted by the mail server.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// The message cannot be built.
    #[error("cannot create the message: {0}")]
    Message(String),
    /// The server rejected the message.
    #[error("the mail server {server} does not accept it: {why}: see [tlsrpt] smtp")]
    Server {
        /// Address of the server.
        server: SocketAddr,
        /// The reply or error.
        why: String,
        /// A retry would fail too.
        permanent: bool,
    },
}

impl MailError {
    /// Whether a retry would fail too.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        match self {
            Self::Message(_) => true,
            Self::Server { permanent, .. } => *permanent,
        }
    }
}

/// The input of a message.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// The reporting organization.
    pub reporter: &'a Reporter,
    /// The sender's address.
    pub from: &'a str,
    /// The recipient that the domain requests.
    pub to: &'a str,
    /// The policy domain of the report.
    pub domain: &'a str,
    /// The unique part of the report's name.
    pub id: &'a str,
    /// The attached report.
    pub report: &'a Packed,
}

impl Letter<'_> {
    /// Builds the message.
    ///
    /// # Errors
    ///
    /// An address is invalid.
    pub fn message(&self, now: Timestamp) -> Result<Message, MailError> {
        let Self { reporter, from, to, domain, id, report } = self;
        let submitter = &reporter.submitter;
        let report_id = format!("<{id}@{submitter}>");
        let date = SystemTime::UNIX_EPOCH + now.since(Timestamp::default());
        let kind = format!("multipart/report; report-type=\"tlsrpt\"; boundary=\"tlsrpt-{id}\"");
        let parts = MultiPart::builder()
            .header(content_type(&kind)?)
            .singlepart(SinglePart::plain(format!(
                "This is an aggregate TLS report of {} about {domain}.\nSee RFC 8460.\n",
                reporter.organization
            )))
            .singlepart(
                SinglePart::builder()
                    .header(content_type("application/tlsrpt+gzip")?)
                    .header(ContentDisposition::attachment(&report.name))
                    .body(report.gzip.clone()),
            );
        Message::builder()
            .from(address(from)?)
            .to(address(to)?)
            .date(date)
            .subject(format!("Report Domain: {domain} Submitter: {submitter} Report-ID: {report_id}"))
            .message_id(Some(report_id))
            .raw_header(header("TLS-Report-Domain", domain)?)
            .raw_header(header("TLS-Report-Submitter", submitter)?)
            // Requests delivery even if TLS fails, because TLS failures are the subject (RFC 8460 §3, RFC 8689 §3).
            .raw_header(header("TLS-Required", "No")?)
            // Suppresses automatic replies (RFC 3834 §5).
            .raw_header(header("Auto-Submitted", "auto-generated")?)
            .multipart(parts)
            .map_err(|error| MailError::Message(error.to_string()))
    }

    /// Sends the message to the mail server at `server`.
    ///
    /// # Errors
    ///
    /// See [`MailError`].
    pub async fn send(&self, server: SocketAddr, now: Timestamp) -> Result<(), MailError> {
        let message = self.message(now)?;
        // Without TLS: the server is this host's own.
        let transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server.ip().to_string())
            .port(server.port())
            .timeout(Some(TIME))
            .hello_name(ClientId::Domain(self.reporter.host.clone()))
            .build();
        transport.send(message).await.map(drop).map_err(|error| MailError::Server {
            server,
            why: error.to_string(),
            permanent: error.is_permanent(),
        })
    }
}

fn address(text: &str) -> Result<lettre::message::Mailbox, MailError> {
    let address: lettre::Address =
        text.parse().map_err(|_| MailError::Message(format!("{text:?} is no mail address")))?;
    Ok(address.into())
}

fn content_type(text: &str) -> Result<ContentType, MailError> {
    ContentType::parse(text).map_err(|error| MailError::Message(error.to_string()))
}

fn header(name: &str, value: &str) -> Result<HeaderValue, MailError> {
    let name = HeaderName::new_from_ascii(name.to_owned()).map_err(|error| MailError::Message(error.to_string()))?;
    Ok(HeaderValue::new(name, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smtpwatch_config::TlsrptSettings;

    #[test]
    fn the_message_is_that_of_the_rfc() {
        let settings = TlsrptSettings { organization: Some("Müller".to_owned()), ..TlsrptSettings::default() };
        let reporter = Reporter::new(&settings, "mail.example.org");
        let report = reporter.report("2026-11-23".parse().expect("a day"), "example.net", Vec::new());
        let packed = Packed::new(&report, &reporter.submitter, "example.net", "001");
        let letter = Letter {
            reporter: &reporter,
            from: "tlsrpt@example.org",
            to: "reports@example.net",
            domain: "example.net",
            id: "001",
            report: &packed,
        };
        let message = letter.message(Timestamp::from_secs(1_795_480_000)).expect("a message");
        let bytes = message.formatted();
        let text = String::from_utf8(bytes.clone()).expect("7 bits");
        let (headers, _) = text.split_once("\r\n\r\n").expect("headers");
        let unfolded = headers.replace("\r\n ", " ");
        for line in [
            "From: tlsrpt@example.org",
            "To: reports@example.net",
            "Subject: Report Domain: example.net Submitter: mail.example.org Report-ID: <001@mail.example.org>",
            "Message-ID: <001@mail.example.org>",
            "TLS-Report-Domain: example.net",
            "TLS-Report-Submitter: mail.example.org",
            "TLS-Required: No",
            "MIME-Version: 1.0",
        ] {
            assert!(unfolded.lines().any(|found| found == line), "{line} is missing:\n{headers}");
        }
        assert!(unfolded.contains("Content-Type: multipart/report; report-type="), "{headers}");
        let parsed = mail_parser::MessageParser::default().parse(&bytes).expect("a message");
        let attached = parsed.attachments().next().expect("an attachment");
        assert_eq!(attached.contents(), packed.gzip);
        assert_eq!(mail_parser::MimeHeaders::attachment_name(attached), Some(packed.name.as_str()));
        assert!(letter_to(&letter, "a@b\r\nRCPT TO:<c@d>").is_err());
    }

    fn letter_to(letter: &Letter<'_>, to: &str) -> Result<Message, MailError> {
        Letter { to, ..*letter }.message(Timestamp::default())
    }
}
