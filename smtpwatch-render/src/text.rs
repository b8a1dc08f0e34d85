//! Findings as text for people, and the escaping that makes foreign text safe on a terminal.

use std::{borrow::Cow, fmt::Write as _};

use smtpwatch_core::{Finding, Side, finding::Sender};

/// Escapes characters that a terminal may interpret: control characters (U+0000 to U+001F, U+007F to U+009F) and the
/// format characters that reorder text. Text from peers is shown on operators' screens.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if is_unsafe(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// The value as one line of JSON, with a line feed. Characters that a terminal may interpret are escaped.
#[must_use]
pub fn json_line(value: &impl serde::Serialize) -> String {
    // Serialising types with string keys to a string cannot fail.
    let json = serde_json::to_string(value).unwrap_or_default();
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        // These characters occur only inside strings; serde_json itself escapes those below U+0020.
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

/// The finding as text: one line that says what happened, then its indicators.
#[must_use]
pub fn finding(finding: &Finding) -> String {
    let mut text = String::new();
    let f = finding;
    let name = if f.peer.name.is_empty() { String::new() } else { format!(" ({})", f.peer.name) };
    let _ = writeln!(
        text,
        "{} {} {} [{}] {} -> {}{name}",
        f.time,
        f.severity.as_str().to_uppercase(),
        f.kind,
        f.rule,
        f.flow.client,
        f.flow.server
    );
    let _ = writeln!(text, "  evidence {}, outcome {}, this host is the {}", f.evidence, f.outcome, f.role.as_str());
    if let Some(sender) = &f.sender {
        let _ = writeln!(text, "  sender {}", self::sender(sender));
    }
    let starttls = if f.expected.starttls { "STARTTLS" } else { "nothing of STARTTLS" };
    let _ = writeln!(text, "  expected {starttls} ({}): {}", f.expected.source, f.expected.detail);
    let mechanism = f.observed.mechanism.as_ref().map(|name| format!(", mechanism {name}")).unwrap_or_default();
    let reply = f.observed.reply.map(|code| format!(", reply {code}")).unwrap_or_default();
    let _ = writeln!(text, "  observed STARTTLS {}{mechanism}{reply}", f.observed.starttls);
    for sign in &f.indicators {
        let _ = writeln!(text, "  sign {sign}");
    }
    if f.gaps > 0 {
        let _ = writeln!(text, "  gaps {}", f.gaps);
    }
    for line in &f.transcript {
        let from = match line.from {
            Side::Client => 'C',
            Side::Server => 'S',
        };
        let _ = writeln!(text, "    {from}: {}", line.text);
    }
    // Line breaks are this program's own; all other characters are escaped for terminals.
    text.split_inclusive('\n').map(|line| format!("{}\n", printable(line.trim_end_matches('\n')))).collect()
}

/// The sending process, such as `uid 33, php-fpm.service`; the cgroup path if it names no unit.
fn sender(sender: &Sender) -> String {
    let Sender { uid, cgroup_id, cgroup, unit, pod, container } = sender;
    let named = [("", unit), ("pod ", pod), ("container ", container)];
    let named: Vec<_> = named.iter().filter_map(|(what, name)| Some(format!("{what}{}", name.as_ref()?))).collect();
    let place = match (named.is_empty(), cgroup.is_empty()) {
        (false, _) => Some(named.join(", ")),
        (true, false) => Some(format!("cgroup {cgroup}")),
        (true, true) => (*cgroup_id > 0).then(|| format!("cgroup {cgroup_id}, which was gone")),
    };
    let uid = uid.map(|uid| format!("uid {uid}"));
    uid.into_iter().chain(place).collect::<Vec<_>>().join(", ")
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_described_as_far_as_known() {
        let php = Sender { uid: Some(33), cgroup_id: 7, cgroup: "/a/php-fpm.service".to_owned(), ..Sender::default() };
        let unit = Sender { unit: Some("php-fpm.service".to_owned()), pod: Some("12-34".to_owned()), ..php.clone() };
        assert_eq!(sender(&unit), "uid 33, php-fpm.service, pod 12-34");
        assert_eq!(sender(&php), "uid 33, cgroup /a/php-fpm.service");
        assert_eq!(sender(&Sender { cgroup_id: 7, ..Sender::default() }), "cgroup 7, which was gone");
        assert_eq!(sender(&Sender { uid: Some(0), ..Sender::default() }), "uid 0");
    }

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        for hostile in ["\u{1b}[2J", "\u{9b}31m", "a\u{202e}b", "\u{7f}", "\r\n"] {
            assert!(!printable(hostile).contains(is_unsafe), "{hostile:?}");
            let line = json_line(&hostile);
            assert!(!line.trim_end_matches('\n').contains(is_unsafe), "{line:?}");
            assert_eq!(serde_json::from_str::<String>(&line).expect("still JSON"), hostile);
        }
        assert_eq!(printable("250-mx ä"), "250-mx ä");
    }
}
