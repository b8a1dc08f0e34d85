//! Replay of files through the library.

use smtpwatch_config::Config;
use smtpwatch_core::{
    Finding,
    engine::{SessionResult, SessionSummary},
    finding::{Kind, StarttlsState},
    policy::history::History,
};
use smtpwatch_pipeline::replay::{Event, Replay};

use crate::traffic::{self, CLIENT, Packet, START_NS};

fn sessions(files: &[Vec<u8>]) -> (Vec<SessionSummary>, smtpwatch_pipeline::replay::Summary) {
    let directory = tempfile::tempdir().unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut sessions = Vec::new();
    for (index, bytes) in files.iter().enumerate() {
        let path = directory.path().join(index.to_string());
        std::fs::write(&path, bytes).unwrap();
        replay.file(&path, |event| sessions.extend(session(event))).unwrap();
    }
    let summary = replay.finish(|event| sessions.extend(session(event)));
    (sessions, summary)
}

/// The findings of one capture, in order.
fn findings(packets: &[Packet]) -> Vec<Finding> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    std::fs::write(&path, traffic::pcap(packets, 1, false, false)).unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut found = Vec::new();
    let mut take = |event| found.extend(if let Event::Finding(finding) = event { Some(*finding) } else { None });
    replay.file(&path, &mut take).unwrap();
    replay.finish(&mut take);
    found
}

fn session(event: Event) -> Option<SessionSummary> {
    if let Event::Session(session, _) = event { Some(session) } else { None }
}

#[test]
fn a_whole_session_is_reported() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let (found, summary) = sessions(&[traffic::pcap(&mail, 1, false, false)]);
    let [session] = found.as_slice() else { panic!("one session: {found:?}") };
    assert_eq!((session.result, session.starttls), (SessionResult::Plaintext, StarttlsState::Offered));
    assert_eq!((session.messages, session.gaps, session.starttls_sent), (1, 0, false));
    assert_eq!((summary.files, summary.packets, summary.unread), (1, mail.len() as u64, 0));
    assert_eq!(summary.sessions, [0, 1, 0, 0]);
}

/// A connection that continues in the next file is one session: files form one timeline.
#[test]
fn a_session_continues_in_the_next_file() {
    let mut first = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let second = first.split_off(9);
    let files = [traffic::pcap(&first, 1, false, false), traffic::pcapng(&second, &[("eth0", 101, 9)], true)];
    let (found, summary) = sessions(&files);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].messages, found[0].gaps, summary.files), (1, 0, 2));
}

/// The gate omits the message and reports its end: what follows is parsed.
#[test]
fn commands_after_a_message_are_read_and_the_message_is_not() {
    use traffic::Turn::{Client, Server};
    let before = [
        Server("220 mx1.example.net ESMTP\r\n"),
        Client("EHLO gw\r\n"),
        Server("250-mx1.example.net\r\n250 PIPELINING\r\n"),
        Client("MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"),
        Server("250 ok\r\n250 ok\r\n354 go\r\n"),
    ];
    let auth = "AUTH PLAIN AGFsaWNlAGh1bnRlcjI=\r\n";
    let message = "Subject: AUTH PLAIN AGEAYg==\r\n\r\nAUTH PLAIN AGEAYg==\r\nSTARTTLS\r\n.\r\n";
    let together = format!("{message}{auth}");
    let again = format!("{message}MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n");
    let after = [Client("QUIT\r\n"), Server("221 Bye\r\n")];
    let kinds = |middle: &[traffic::Turn]| {
        let turns = [&before[..], middle, &after].concat();
        let found = findings(&traffic::session(CLIENT, "198.51.100.25:25", START_NS, &turns));
        for finding in &found {
            let json = serde_json::to_string(finding).unwrap();
            assert!(!json.contains("Subject") && !json.contains("AGEAYg") && !json.contains("hunter2"), "{json}");
            assert_eq!(finding.gaps, 0);
        }
        found.into_iter().map(|finding| (finding.kind, finding.rule.into_owned())).collect::<Vec<_>>()
    };
    let said = [Server("250 queued\r\n235 ok\r\n")];
    let plaintext = [(Kind::AuthPlaintext, "F1".to_owned())];
    assert_eq!(kinds(&[&[Client(&together)][..], &said].concat()), plaintext, "in one segment");
    assert_eq!(kinds(&[&[Client(message), Client(auth)][..], &said].concat()), plaintext, "in the next one");
    assert_eq!(kinds(&[Client(message), Server("250 queued\r\n"), Client(auth), Server("235 ok\r\n")]), plaintext);
    // A second message after the first one is treated as a message too.
    let more = [Client(&again), Server("250 queued\r\n250 ok\r\n250 ok\r\n354 go\r\n"), Client(message)];
    assert_eq!(kinds(&[&more[..], &[Server("250 queued\r\n")]].concat()), []);
}

/// EV-25: a client may use a watched port as its source port.
#[test]
fn the_syn_tells_who_the_client_is() {
    for (client, server) in [
        ("192.0.2.10:25", "198.51.100.25:25"),
        ("203.0.113.9:25", "198.51.100.25:25"),
        ("192.0.2.10:25", "198.51.100.25:587"),
        ("192.0.2.10:587", "198.51.100.25:587"),
        ("192.0.2.10:587", "198.51.100.25:25"),
    ] {
        use traffic::Turn::{Client, Server};
        let turns = [
            Server("220 mx1.example.net ESMTP\r\n"),
            Client("EHLO gw\r\n"),
            Server("250 mx1.example.net\r\n"),
            Client("AUTH PLAIN AGFsaWNlAGh1bnRlcjI=\r\n"),
            Server("235 ok\r\n"),
        ];
        let found = findings(&traffic::session(client, server, START_NS, &turns));
        assert!(
            found.iter().any(|finding| finding.rule == "F1" && finding.flow.server == server),
            "{client} {found:?}"
        );
    }
}

/// The session is the same whichever end captured it, and whether or not the capture has directions. Arriving packets
/// with this host's own address are not part of it.
#[test]
fn directions_of_a_capture_tell_what_is_forged() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    for own_client in [true, false] {
        let mut packets = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
        // The third line of this host's side, as RST: offset 13 of the TCP header holds the flags.
        let (at, ours) =
            packets.iter().enumerate().filter(|(_, packet)| traffic::leaves(&packet.ip) == own_client).nth(5).unwrap();
        let mut forged = Packet { at_ns: ours.at_ns - 1, ip: ours.ip.clone() };
        forged.ip[20 + 13] = 0x04;
        packets.insert(at, forged);
        let file = traffic::pcapng_flagged(&packets, &[("eth0", 101, 9)], false, |index, packet| {
            let leaves = index != at && traffic::leaves(&packet.ip) == own_client;
            Some(if leaves { 2 } else { 1 })
        });
        let (found, summary) = sessions(&[file]);
        let [session] = found.as_slice() else { panic!("one session: {found:?}") };
        assert_eq!((session.result, session.starttls), (SessionResult::Plaintext, StarttlsState::Offered));
        assert_eq!((session.messages, session.gaps, session.starttls_sent), (1, 0, false), "{own_client}");
        assert_eq!((summary.packets, summary.unread), (mail.len() as u64 + 1, 1), "the forged one");
    }
}
