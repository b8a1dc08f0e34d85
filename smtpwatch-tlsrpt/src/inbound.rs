//! Parses reports of other senders: JSON, gzip, zip, a message with one of them (RFC 8460 §5), or a mailbox of such
//! messages. The input is untrusted: everything is bounded, and rejected with a reason. [`read`] is the entry point of
//! `smtpwatch tlsrpt import`.

mod zip;

use std::{
    borrow::Cow,
    io::{self, Read as _},
    path::Path,
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use flate2::bufread::GzDecoder;
use mail_parser::{Message, MessageParser, MimeHeaders as _, PartType};
use serde::de::IgnoredAny;
use smtpwatch_core::Timestamp;
use smtpwatch_system::whole_file;

use self::zip::ZipError;
use super::report::{REPORT_BYTES, Report, ReportError};

/// Maximum size of a file in bytes; a larger one is rejected.
pub const FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Maximum number of reports in one message or archive; one with more is rejected.
pub const ATTACHMENTS: usize = 32;
/// Maximum number of messages in one mailbox; further ones are rejected.
pub const MESSAGES: usize = 10_000;
/// Maximum nesting of messages.
const DEPTH: usize = 4;

/// Padding is optional, because it is often missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a file has no valid report.
#[derive(Debug, thiserror::Error)]
pub enum InboundError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// The file exceeds the maximum size.
    #[error("longer than {FILE_BYTES} bytes, the maximum for a TLS report")]
    TooLong,
    /// The gzip data is damaged or truncated.
    #[error("the gzip data are damaged or cut off: {0}")]
    Gzip(io::Error),
    /// The gzip data is followed by bytes that are not padding.
    #[error("{0} bytes after the gzip data are not read: they are neither gzip nor padding")]
    Trailing(usize),
    /// The zip archive is invalid.
    #[error("zip: {0}")]
    Zip(#[from] ZipError),
    /// The data inflates beyond the maximum size of a report.
    #[error("inflates to more than {REPORT_BYTES} bytes: rejected as a gzip bomb")]
    Bomb,
    /// The content is not a report, or contradicts itself.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The file has an unknown format.
    #[error(
        "neither JSON, nor gzip, nor zip, nor a message with a TLS report in it (application/tlsrpt+gzip or +json, or a \
         part that is one by its content)"
    )]
    Nothing,
    /// Too many attachments.
    #[error("a message with more than {ATTACHMENTS} reports")]
    TooMany,
    /// Messages are nested too deeply.
    #[error("a message that was forwarded more than {DEPTH} times is not examined")]
    TooDeep,
    /// Too many messages.
    #[error("{0} messages after the first {MESSAGES} are not read: split the mailbox")]
    TooManyMessages(usize),
    /// The error is in one of several messages.
    #[error("message {number}: {error}")]
    InMessage {
        /// The position in the mailbox, starting at 1.
        number: usize,
        /// The error of this message.
        error: Box<InboundError>,
    },
}

type ParsedReports = Vec<Result<Report, InboundError>>;

/// The reports in a file; `now` bounds the dates that are plausible. If one of several is rejected, the others are
/// returned all the same.
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

/// The reports in the bytes of a file; always at least one result.
#[must_use]
pub fn reports(bytes: &[u8], now: Timestamp) -> Vec<Result<Report, InboundError>> {
    let mut found = Vec::new();
    if looks_like_one(bytes) {
        report(bytes, now, &mut found);
        return found;
    }
    let messages = messages(bytes);
    if let [one] = messages[..] {
        message(one, now, &mut found);
        return found;
    }
    for (number, bytes) in (1..).zip(messages.iter().take(MESSAGES)) {
        let mut of_it = Vec::new();
        message(bytes, now, &mut of_it);
        let named = |error| InboundError::InMessage { number, error: Box::new(error) };
        found.extend(of_it.into_iter().map(|report| report.map_err(named)));
    }
    let more = messages.len().saturating_sub(MESSAGES);
    found.extend((more > 0).then_some(Err(InboundError::TooManyMessages(more))));
    found
}

/// The messages of a mailbox (RFC 4155): each follows a line that begins with `From `, at the start of the file or
/// after an empty line, and before a header field. Some programs omit the empty line: then the line must end with a
/// date. A single message without such a line is accepted too.
fn messages(bytes: &[u8]) -> Vec<&[u8]> {
    const MARK: &[u8] = b"From ";
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    if !bytes.starts_with(MARK) {
        return vec![bytes];
    }
    let (mut starts, mut at, mut blank) = (Vec::new(), 0, true);
    let line_at = |at: usize| {
        let rest = bytes.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
        &rest[..end]
    };
    while at < bytes.len() {
        let line = line_at(at);
        let next = at + line.len();
        if line.starts_with(MARK) && (blank || ends_with_date(line)) && is_header(line_at(next)) {
            starts.push((at, next));
        }
        blank = line.trim_ascii().is_empty();
        at = next;
    }
    if starts.is_empty() {
        return vec![bytes];
    }
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([bytes.len()]);
    starts.iter().zip(ends).map(|((_, begin), end)| &bytes[*begin..end]).collect()
}

/// Whether a line ends like `From anna@example.org Mon Nov 30 00:00:00 2026`, with or without a time zone (RFC 4155,
/// appendix A).
fn ends_with_date(line: &[u8]) -> bool {
    let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    let is_time = |word: &[u8]| {
        word.len() == 8
            && word.iter().enumerate().all(|(at, byte)| if at % 3 == 2 { *byte == b':' } else { byte.is_ascii_digit() })
    };
    let is_year = |word: &[u8]| word.len() == 4 && word.iter().all(u8::is_ascii_digit);
    words.len() > 5
        && words.iter().rev().take(3).any(|word| is_time(word))
        && words.iter().rev().take(2).any(|word| is_year(word))
}

/// Whether a line is a header field, or a line of an older mailbox that begins with `>From `.
fn is_header(line: &[u8]) -> bool {
    let name = line.iter().position(|byte| *byte == b':').map_or(&b""[..], |colon| &line[..colon]);
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_graphic()) || line.starts_with(b">From ")
}

fn message(bytes: &[u8], now: Timestamp, found: &mut ParsedReports) {
    if let Some(message) = MessageParser::default().parse(bytes) {
        look_into(&message, DEPTH, now, found);
    }
    if found.is_empty() {
        found.push(Err(InboundError::Nothing));
    }
}

fn look_into(message: &Message<'_>, depth: usize, now: Timestamp, found: &mut ParsedReports) {
    for part in &message.parts {
        if let PartType::Message(inner) = &part.body {
            match depth.checked_sub(1) {
                Some(depth) => look_into(inner, depth, now, found),
                None => found.push(Err(InboundError::TooDeep)),
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
        report(&content(part), now, found);
    }
}

/// The decoded content of a part. If the last boundary is missing, the parser returns it encoded, with what follows it.
fn content<'a>(part: &'a mail_parser::MessagePart<'_>) -> Cow<'a, [u8]> {
    let bytes = part.contents();
    let encoding = part.content_transfer_encoding().unwrap_or_default();
    if looks_like_one(bytes) || !encoding.eq_ignore_ascii_case("base64") {
        return Cow::Borrowed(bytes);
    }
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let text: Vec<u8> = lines.take_while(|line| !line.starts_with(b"--")).flatten().copied().collect();
    BASE64.decode(text).map_or(Cow::Borrowed(bytes), Cow::Owned)
}

/// Whether a part is a report: the media types of RFC 8460 §6.4 and §6.5, or other types that some senders use, if the
/// file name or the content shows a report.
fn is_report(part: &mail_parser::MessagePart<'_>) -> bool {
    let kind = part.content_type();
    let subtype = kind.and_then(|kind| kind.subtype()).unwrap_or_default().to_ascii_lowercase();
    if matches!(subtype.as_str(), "tlsrpt+gzip" | "tlsrpt+json" | "tlsrpt") {
        return true;
    }
    let name = part.attachment_name().unwrap_or_default().to_ascii_lowercase();
    if [".json", ".json.gz", ".json.zip"].iter().any(|end| name.ends_with(end)) {
        return true;
    }
    let content = &*content(part);
    let is_packed = is_gzip(content) || zip::is_zip(content);
    match subtype.as_str() {
        "gzip" | "x-gzip" | "zip" | "x-zip-compressed" | "octet-stream" => is_packed || is_json_report(content),
        // Ordinary text of a mail is not a report, whatever its first characters are.
        _ => is_json_report(content),
    }
}

/// Parses the reports in some content: one report, or several, one per line.
fn report(bytes: &[u8], now: Timestamp, found: &mut ParsedReports) {
    if zip::is_zip(bytes) {
        match zip::files(bytes, ATTACHMENTS, REPORT_BYTES) {
            Ok(files) => files.into_iter().for_each(|file| match file {
                // Nested archives are not extracted.
                Ok(file) => unpacked(&file, now, found),
                Err(error) => found.push(Err(error.into())),
            }),
            Err(error) => found.push(Err(error.into())),
        }
        return;
    }
    unpacked(bytes, now, found);
}

fn unpacked(bytes: &[u8], now: Timestamp, found: &mut ParsedReports) {
    if !is_gzip(bytes) {
        return json(bytes, now, found);
    }
    let (text, rest) = match inflate(bytes) {
        Ok(inflated) => inflated,
        Err(error) => return found.push(Err(error)),
    };
    // Data can be compressed twice, by the program that wrote it and by the one that sent it.
    match is_gzip(&text).then(|| inflate(&text)) {
        Some(Ok((inner, _))) => json(&inner, now, found),
        Some(Err(error)) => found.push(Err(error)),
        None => json(&text, now, found),
    }
    // Mail programs add line ends, and some file systems pad with zeros.
    if !rest.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0) {
        found.push(Err(InboundError::Trailing(rest.len())));
    }
}

/// Inflates all members of gzip data; returns the text and the bytes that follow.
fn inflate(bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), InboundError> {
    let (mut text, mut rest) = (Vec::new(), bytes);
    while is_gzip(rest) {
        let most = (REPORT_BYTES + 1 - text.len()) as u64;
        let mut member = GzDecoder::new(rest).take(most);
        member.read_to_end(&mut text).map_err(InboundError::Gzip)?;
        if text.len() > REPORT_BYTES {
            return Err(InboundError::Bomb);
        }
        rest = member.into_inner().into_inner();
    }
    Ok((text, rest))
}

fn json(bytes: &[u8], now: Timestamp, found: &mut ParsedReports) {
    let text = utf8(bytes);
    let end = text.iter().rposition(|byte| !byte.is_ascii_whitespace() && *byte != 0).map_or(0, |last| last + 1);
    let mut rest = &text[..end];
    // One report after the other, as `tlsrpt report` prints them.
    for _ in 0..ATTACHMENTS {
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        let complete = matches!(values.next(), Some(Ok(_)));
        let (one, more) = if complete { rest.split_at(values.byte_offset()) } else { (rest, &[][..]) };
        found.push(Report::parse(one, now).map_err(Into::into));
        rest = more.trim_ascii_start();
        if rest.is_empty() {
            return;
        }
    }
    found.push(Err(InboundError::TooMany));
}

/// The text as UTF-8: removes a byte order mark, and converts UTF-16 that has one.
fn utf8(bytes: &[u8]) -> Cow<'_, [u8]> {
    let unit: fn([u8; 2]) -> u16 = match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => return Cow::Borrowed(rest),
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => return Cow::Borrowed(bytes),
    };
    let (pairs, _) = bytes[2..].as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
    Cow::Owned(String::from_utf16_lossy(&units).into_bytes())
}

fn looks_like_one(bytes: &[u8]) -> bool {
    is_gzip(bytes) || zip::is_zip(bytes) || is_json(bytes)
}

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

fn is_json(bytes: &[u8]) -> bool {
    utf8(&bytes[..bytes.len().min(64)]).trim_ascii_start().starts_with(b"{")
}

/// Whether the content is a JSON object with the two keys that every report has (RFC 8460 §4.4).
fn is_json_report(bytes: &[u8]) -> bool {
    is_json(bytes) && {
        let text = utf8(bytes);
        let has = |key: &[u8]| text.windows(key.len()).any(|window| window == key);
        has(b"\"date-range\"") && has(b"\"policies\"")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use base64::engine::general_purpose::STANDARD;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_000_000);
    const JSON: &str = r#"{"organization-name":"Company-X","report-id":"7","policies":[],
        "date-range":{"start-datetime":"2016-04-01T00:00:00Z","end-datetime":"2016-04-01T23:59:59Z"}}"#;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn folded(bytes: &[u8]) -> String {
        let text = STANDARD.encode(bytes);
        text.as_bytes().chunks(76).map(|line| format!("{}\r\n", String::from_utf8_lossy(line))).collect()
    }

    fn part(kind: &str, bytes: &[u8]) -> String {
        format!("--b\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n{}", folded(bytes))
    }

    fn message(parts: &[String]) -> String {
        let head =
            "From: a@x.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=tlsrpt; boundary=b";
        let text = "--b\r\nContent-Type: text/plain\r\n\r\nA report.\r\n";
        format!("{head}\r\n\r\n{text}{}--b--\r\n", parts.concat())
    }

    fn ids(bytes: &[u8]) -> Vec<String> {
        reports(bytes, NOW)
            .into_iter()
            .map(|found| found.map_or_else(|error| error.to_string(), |report| report.report_id))
            .collect()
    }

    #[test]
    fn reports_come_in_every_wrapping() {
        let packed = gzip(JSON.as_bytes());
        let attached = message(&[part("application/tlsrpt+gzip", &packed)]);
        for bytes in [
            JSON.as_bytes().to_vec(),
            format!("\n  {JSON}").into_bytes(),
            packed.clone(),
            attached.clone().into_bytes(),
            message(&[part("application/tlsrpt+json", JSON.as_bytes())]).into_bytes(),
            message(&[part("application/octet-stream; name=\"a!b!1!2.json.gz\"", &packed)]).into_bytes(),
            // Not multipart.
            format!(
                "Subject: x\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n{}",
                folded(&packed)
            )
            .into_bytes(),
            // Multipart within multipart, and a forwarded message.
            format!("Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n{attached}\r\n--o--\r\n").into_bytes(),
            format!(
                "Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\nContent-Type: message/rfc822\r\n\r\n{attached}\
                 \r\n--o--\r\n"
            )
            .into_bytes(),
        ] {
            assert_eq!(ids(&bytes), ["7"], "{}", String::from_utf8_lossy(&bytes));
        }
        let two = message(&[part("application/tlsrpt+gzip", &packed), part("application/tlsrpt+gzip", b"x")]);
        let found = ids(two.as_bytes());
        assert_eq!((found.len(), found[0].as_str()), (2, "7"));
    }

    /// Variants of report files, as senders and mail programs produce them.
    #[test]
    fn reports_are_read_as_they_are_meant() {
        let packed = gzip(JSON.as_bytes());
        let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(JSON.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let line = JSON.replace('\n', " ");
        let one = message(&[part("application/tlsrpt+gzip", &packed)]);
        let open = one.trim_end().trim_end_matches("--b--").to_owned();
        for (bytes, read) in [
            ([packed.as_slice(), b"\r\n"].concat(), vec!["7"]),
            ([packed.as_slice(), &[0; 512]].concat(), vec!["7"]),
            ([b"\xef\xbb\xbf", JSON.as_bytes()].concat(), vec!["7"]),
            (gzip(&[b"\xef\xbb\xbf", JSON.as_bytes()].concat()), vec!["7"]),
            (utf16, vec!["7"]),
            (format!("{line}\n{line}\n").into_bytes(), vec!["7", "7"]),
            (format!("{JSON}\r\n\r\n{JSON}").into_bytes(), vec!["7", "7"]),
            (format!("{JSON}\n\0\0\0").into_bytes(), vec!["7"]),
            (gzip(&packed), vec!["7"]),
            (format!("\u{feff}{one}").into_bytes(), vec!["7"]),
            (format!("\r\n\r\n{one}").into_bytes(), vec!["7"]),
            (
                format!("\nFrom a@b Mon Nov 30 00:00:00 2026\n{one}From a@b Mon Nov 30 00:00:00 2026 +0100\r\n{one}")
                    .into_bytes(),
                vec!["7", "7"],
            ),
            (message(&[part("application/gzip", &packed)]).into_bytes(), vec!["7"]),
            (message(&[part("application/x-gzip", &packed)]).into_bytes(), vec!["7"]),
            (message(&[part("application/octet-stream", &packed)]).into_bytes(), vec!["7"]),
            (message(&[part("application/json", JSON.as_bytes())]).into_bytes(), vec!["7"]),
            (message(&[part("text/plain", JSON.as_bytes())]).into_bytes(), vec!["7"]),
            (open.clone().into_bytes(), vec!["7"]),
            (
                format!(
                    "From a@b Mon Nov 30 00:00:00 2026\r\n{one}\r\nFrom a@b Mon Nov 30 00:00:00 2026\r\n{open}\r\n"
                )
                .into_bytes(),
                vec!["7", "7"],
            ),
            // A paragraph that begins like a mailbox line.
            (
                format!(
                    "From a@b Mon Nov 30 00:00:00 2026\r\n{}",
                    one.replace("A report.", "x\r\n\r\nFrom here on.\r\n")
                )
                .into_bytes(),
                vec!["7"],
            ),
        ] {
            assert_eq!(ids(&bytes), read, "{}", String::from_utf8_lossy(&bytes));
        }
        // Unread bytes are reported in addition to the report.
        let found = ids(&[packed.as_slice(), b"more"].concat());
        assert_eq!(found[0], "7");
        assert!(found[1].contains("4 bytes after the gzip data are not read"), "{found:?}");
        let plain = "From a@b Mon Nov 30 00:00:00 2026\nSubject: x\n\nHello.\n\n";
        let found = ids(format!("{plain}From a@b Mon Nov 30 00:00:00 2026\n{one}\n{plain}").as_bytes());
        assert_eq!((found.len(), found[1].as_str()), (3, "7"), "{found:?}");
        assert!(found[0].starts_with("message 1: neither JSON") && found[2].starts_with("message 3: "), "{found:?}");
        let nested = (0..=DEPTH).fold(one, |inner, depth| {
            format!(
                "Content-Type: multipart/mixed; boundary=o{depth}\r\n\r\n--o{depth}\r\nContent-Type: message/rfc822\r\n\r\n\
                 {inner}\r\n--o{depth}--\r\n"
            )
        });
        let found = ids(nested.as_bytes());
        assert!(found[0].contains("forwarded more than 4 times"), "{found:?}");
    }

    #[test]
    fn the_shared_inputs_are_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases/policy/reports");
        if !directory.exists() {
            eprintln!("skipped: no reports beside this repository");
            return;
        }
        let mut names: Vec<_> =
            std::fs::read_dir(directory).expect("read").map(|entry| entry.expect("entry").path()).collect();
        names.sort();
        assert!(names.len() >= 10, "{names:?}");
        for path in names {
            let found = read(&path, NOW + std::time::Duration::from_secs(864_000)).expect("readable");
            let reports: Vec<&Report> =
                found.iter().map(|found| found.as_ref().unwrap_or_else(|error| panic!("{path:?}: {error}"))).collect();
            let wanted = if path.ends_with("two.mbox") { 2 } else { 1 };
            assert_eq!(reports.len(), wanted, "{path:?}");
            for report in reports {
                assert!(
                    !report.report_id.is_empty() && report.contact_info == "tls@sender.test",
                    "{path:?}: {report:?}"
                );
                assert_eq!(report.policies[0].failure_details[0].failed_session_count, 2, "{path:?}");
            }
        }
    }

    #[test]
    fn what_is_not_one_is_refused_with_the_reason() {
        let packed = gzip(JSON.as_bytes());
        let bomb = gzip(&vec![b' '; REPORT_BYTES + 1]);
        assert!(bomb.len() < REPORT_BYTES / 100);
        for (bytes, reason) in [
            (Vec::new(), "neither JSON, nor gzip"),
            (b"\x89PNG\r\n".to_vec(), "neither JSON, nor gzip"),
            (message(&[part("image/png", b"x")]).into_bytes(), "neither JSON, nor gzip"),
            (packed[..packed.len() / 2].to_vec(), "damaged or cut off"),
            (packed[..packed.len() - 1].to_vec(), "damaged or cut off"),
            (bomb.clone(), "gzip bomb"),
            (message(&[part("application/tlsrpt+gzip", &bomb)]).into_bytes(), "gzip bomb"),
            (gzip(b"[]"), "not a TLS report"),
            (message(&vec![part("application/tlsrpt+gzip", b"x"); 40]).into_bytes(), "not a TLS report"),
            ([packed.as_slice(), b"\x1f\x8b\x08"].concat(), "damaged or cut off"),
            (b"PK\x03\x04".to_vec(), "zip: "),
        ] {
            let found = ids(&bytes);
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
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(!reports(&bytes, NOW).is_empty());
        }

        #[test]
        fn any_change_of_a_message_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let attached = message(&[part("application/tlsrpt+gzip", &gzip(JSON.as_bytes()))]);
            let mut bytes =
                format!("Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n{attached}\r\n--o--\r\n").into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            prop_assert!(!reports(&bytes, NOW).is_empty());
        }

        #[test]
        fn any_change_of_gzip_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = gzip(JSON.as_bytes());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            prop_assert!(!reports(&bytes, NOW).is_empty());
        }
    }
}
