//! Reports of others as they arrive: JSON, gzip, or a message that carries either (RFC 8460 §5). What comes in was
//! written by strangers: everything is bounded, and refused with its reason.

use std::{
    io::{self, Read as _},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use mail_parser::{Message, MessageParser, MimeHeaders as _, PartType};
use smtpwatch_core::Timestamp;

use super::report::{REPORT_BYTES, Report, ReportError};
use crate::whole_file;

/// Octets of a file; a longer one is refused.
pub const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Reports of one message; a longer row of them is refused.
pub const ATTACHMENTS: usize = 32;
/// Messages within messages that are looked into.
const DEPTH: usize = 4;

/// Why there is no report in a file.
#[derive(Debug, thiserror::Error)]
pub enum InboundError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The file is too long.
    #[error("longer than {FILE_BYTES} octets: no TLS report is")]
    TooLong,
    /// It is damaged, or cut off.
    #[error("the gzip data are damaged or cut off: {0}")]
    Gzip(io::Error),
    /// It inflates to more than any report has.
    #[error("inflates to more than {REPORT_BYTES} octets: no TLS report does; refused as a gzip bomb")]
    Bomb,
    /// It is no report, or one that contradicts itself.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// It is something else.
    #[error(
        "neither JSON, nor gzip, nor a message with a TLS report in it (application/tlsrpt+gzip or +json, or a file \
         named .json or .json.gz)"
    )]
    Nothing,
    /// Too many attachments.
    #[error("a message with more than {ATTACHMENTS} reports")]
    TooMany,
}

/// The reports in a file; `now` tells which dates cannot be. Where one of several is refused, the others are there.
///
/// # Errors
///
/// The file cannot be read.
pub fn read(path: &Path, now: Timestamp) -> Result<Vec<Result<Report, InboundError>>, InboundError> {
    match whole_file::read(path, FILE_BYTES) {
        Ok(content) => Ok(reports(&content, now)),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(InboundError::TooLong),
        Err(error) => Err(error.into()),
    }
}

/// The reports in the octets of a file: at least one answer.
#[must_use]
pub fn reports(octets: &[u8], now: Timestamp) -> Vec<Result<Report, InboundError>> {
    if is_gzip(octets) || is_json(octets) {
        return vec![report(octets, now)];
    }
    let mut found = Vec::new();
    if let Some(message) = MessageParser::default().parse(octets) {
        look_into(&message, DEPTH, now, &mut found);
    }
    if found.is_empty() {
        found.push(Err(InboundError::Nothing));
    }
    found
}

fn look_into(message: &Message<'_>, depth: usize, now: Timestamp, found: &mut Vec<Result<Report, InboundError>>) {
    for part in &message.parts {
        if let PartType::Message(inner) = &part.body {
            if depth > 0 {
                look_into(inner, depth - 1, now, found);
            }
            continue;
        }
        if matches!(part.body, PartType::Multipart(_)) || !is_report(part) {
            continue;
        }
        if found.len() >= ATTACHMENTS {
            if found.len() == ATTACHMENTS {
                found.push(Err(InboundError::TooMany));
            }
            return;
        }
        found.push(report(part.contents(), now));
    }
}

/// RFC 8460 §6.4 and §6.5; and what some senders write instead, where the name of the file tells.
fn is_report(part: &mail_parser::MessagePart<'_>) -> bool {
    let subtype = part.content_type().and_then(|kind| kind.subtype()).unwrap_or_default().to_ascii_lowercase();
    if matches!(subtype.as_str(), "tlsrpt+gzip" | "tlsrpt+json" | "tlsrpt") {
        return true;
    }
    let name = part.attachment_name().unwrap_or_default().to_ascii_lowercase();
    name.ends_with(".json") || name.ends_with(".json.gz")
}

fn report(octets: &[u8], now: Timestamp) -> Result<Report, InboundError> {
    if !is_gzip(octets) {
        return Ok(Report::parse(octets, now)?);
    }
    let mut json = Vec::new();
    let most = REPORT_BYTES as u64 + 1;
    MultiGzDecoder::new(octets).take(most).read_to_end(&mut json).map_err(InboundError::Gzip)?;
    if json.len() > REPORT_BYTES {
        return Err(InboundError::Bomb);
    }
    Ok(Report::parse(&json, now)?)
}

fn is_gzip(octets: &[u8]) -> bool {
    octets.starts_with(&[0x1f, 0x8b])
}

fn is_json(octets: &[u8]) -> bool {
    octets.trim_ascii_start().starts_with(b"{")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);
    const JSON: &str = r#"{"organization-name":"Company-X","report-id":"7","policies":[],
        "date-range":{"start-datetime":"2016-04-01T00:00:00Z","end-datetime":"2016-04-01T23:59:59Z"}}"#;

    fn gzip(octets: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(octets).expect("memory");
        encoder.finish().expect("memory")
    }

    fn folded(octets: &[u8]) -> String {
        let text = STANDARD.encode(octets);
        text.as_bytes().chunks(76).map(|line| format!("{}\r\n", String::from_utf8_lossy(line))).collect()
    }

    fn part(kind: &str, octets: &[u8]) -> String {
        format!("--b\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n{}", folded(octets))
    }

    fn message(parts: &[String]) -> String {
        let head =
            "From: a@x.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=tlsrpt; boundary=b";
        let text = "--b\r\nContent-Type: text/plain\r\n\r\nA report.\r\n";
        format!("{head}\r\n\r\n{text}{}--b--\r\n", parts.concat())
    }

    fn ids(octets: &[u8]) -> Vec<String> {
        reports(octets, NOW)
            .into_iter()
            .map(|found| found.map_or_else(|error| error.to_string(), |report| report.report_id))
            .collect()
    }

    #[test]
    fn reports_come_in_every_wrapping() {
        let packed = gzip(JSON.as_bytes());
        let attached = message(&[part("application/tlsrpt+gzip", &packed)]);
        for octets in [
            JSON.as_bytes().to_vec(),
            format!("\n  {JSON}").into_bytes(),
            packed.clone(),
            attached.clone().into_bytes(),
            message(&[part("application/tlsrpt+json", JSON.as_bytes())]).into_bytes(),
            message(&[part("application/octet-stream; name=\"a!b!1!2.json.gz\"", &packed)]).into_bytes(),
            // Without parts.
            format!(
                "Subject: x\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n{}",
                folded(&packed)
            )
            .into_bytes(),
            // Multipart within multipart; and forwarded as a message.
            format!("Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n{attached}\r\n--o--\r\n").into_bytes(),
            format!(
                "Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\nContent-Type: message/rfc822\r\n\r\n{attached}\
                 \r\n--o--\r\n"
            )
            .into_bytes(),
        ] {
            assert_eq!(ids(&octets), ["7"], "{}", String::from_utf8_lossy(&octets));
        }
        let two = message(&[part("application/tlsrpt+gzip", &packed), part("application/tlsrpt+gzip", b"x")]);
        let found = ids(two.as_bytes());
        assert_eq!((found.len(), found[0].as_str()), (2, "7"));
    }

    #[test]
    fn what_is_not_one_is_refused_with_the_reason() {
        let packed = gzip(JSON.as_bytes());
        let bomb = gzip(&vec![b' '; REPORT_BYTES + 1]);
        assert!(bomb.len() < REPORT_BYTES / 100);
        for (octets, reason) in [
            (Vec::new(), "neither JSON, nor gzip"),
            (b"\x89PNG\r\n".to_vec(), "neither JSON, nor gzip"),
            (message(&[part("image/png", b"x")]).into_bytes(), "neither JSON, nor gzip"),
            (packed[..packed.len() / 2].to_vec(), "damaged or cut off"),
            (packed[..packed.len() - 1].to_vec(), "damaged or cut off"),
            (bomb.clone(), "gzip bomb"),
            (message(&[part("application/tlsrpt+gzip", &bomb)]).into_bytes(), "gzip bomb"),
            (gzip(b"[]"), "no TLS report"),
            (message(&vec![part("application/tlsrpt+gzip", b"x"); 40]).into_bytes(), "no TLS report"),
        ] {
            let found = ids(&octets);
            assert!(found[0].contains(reason) && found.len() <= ATTACHMENTS + 1, "{found:?} lacks {reason:?}");
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_to_its_end() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(FILE_BYTES + 1).expect("a sparse file");
        assert!(matches!(read(file.path(), NOW), Err(InboundError::TooLong)));
        assert!(matches!(read(Path::new("/nowhere"), NOW), Err(InboundError::Read(_))));
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(!reports(&octets, NOW).is_empty());
        }

        #[test]
        fn any_change_of_a_message_is_read_or_refused(at in any::<prop::sample::Index>(), octet in any::<u8>()) {
            let attached = message(&[part("application/tlsrpt+gzip", &gzip(JSON.as_bytes()))]);
            let mut octets =
                format!("Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n{attached}\r\n--o--\r\n").into_bytes();
            let at = at.index(octets.len());
            octets[at] = octet;
            prop_assert!(!reports(&octets, NOW).is_empty());
        }

        #[test]
        fn any_change_of_gzip_is_read_or_refused(at in any::<prop::sample::Index>(), octet in any::<u8>()) {
            let mut octets = gzip(JSON.as_bytes());
            let at = at.index(octets.len());
            octets[at] = octet;
            prop_assert!(!reports(&octets, NOW).is_empty());
        }
    }
}
